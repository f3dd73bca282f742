"""What several commands share: options, and what is made of them."""

from __future__ import annotations

import argparse
import json
from typing import Any

from camwatch.errors import InputError

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
MODEL = "a torchvision model (resnet50), a timm model (timm/resnet50), or an import path (package.module.Net)"


def add_model_options(parser: Any) -> None:
    """Adds what a model is built with, to a parser or a group."""
    parser.add_argument("--model-args", default="{}", metavar="JSON", help="the model's arguments")
    parser.add_argument("--trust", action="store_true", help="load Python objects from the file; they can run code")


def add_photo_options(parser: Any) -> None:
    """Adds what photos go through before the model sees them."""
    parser.add_argument("--size", type=positive, metavar="PIXELS", help="side of the square that the model sees")
    parser.add_argument("--resize", type=positive, metavar="PIXELS", help="shorter side before the crop (as --size)")
    for name, values in zip(("mean", "std"), IMAGENET, strict=True):
        shown = " ".join(map(str, values))
        parser.add_argument(f"--{name}", type=float, nargs=3, default=values, metavar=("R", "G", "B"), help=f"of the "
                            f"model's normalization (ImageNet's, {shown})")  # fmt: skip


def add_explain_options(parser: Any, target: str) -> None:
    """Adds which map is made; by default of this target."""
    group = parser.add_argument_group("explanation")
    group.add_argument("--layer", metavar="NAME", help="as camwatch layers lists them (found for you)")
    group.add_argument("--method", default="gradcam", metavar="NAME", help="such as hirescam, layercam; a wrong name "
                       "lists all (gradcam)")  # fmt: skip
    choices = "label, predicted, or a class's number" if target == "label" else "predicted, or a class's number"
    group.add_argument("--target", default=target, metavar="WHICH", help=f"{choices} ({target})")


def positive(given: str) -> int:
    """Reads a whole number of 1 or more, as argparse wants it.

    Example:
        >>> positive("3")
        3
    """
    if not given.isdigit() or int(given) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of 1 or more, got {given!r}")
    return int(given)


def make_model(options: argparse.Namespace, weights: str) -> tuple[Any, Any]:
    """Returns the model that was asked for, and torchvision's weights entry or None; see ``load_model``."""
    import torch

    from camwatch.cli.models import load_model

    torch.manual_seed(0)  # random weights are the same each time
    return load_model(options.model, weights, json_object(options.model_args, "--model-args"), options.trust)


def preset_of(entry: Any) -> Any:
    """Returns the transform that belongs to torchvision's weights; None where none is known."""
    preset = None if entry is None else entry.transforms()
    return preset if hasattr(preset, "crop_size") else None


def make_transform(options: argparse.Namespace) -> Any:
    """Returns the transform that the photo options describe."""
    import torch
    from torchvision.transforms import v2

    size = options.size or 224
    return v2.Compose([
        v2.ToImage(),
        v2.Resize(options.resize or size, antialias=True),
        v2.CenterCrop(size),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(options.mean, options.std),
    ])  # fmt: skip


def target_of(given: str) -> str | int:
    """Reads a target: a class's number, or a word.

    Example:
        >>> target_of("281"), target_of("label")
        (281, 'label')
    """
    return int(given) if given.isdigit() else given


def json_object(given: str, option: str) -> dict[str, Any]:
    """Reads a JSON object that was given to an option.

    Raises:
        InputError: It is none.

    Example:
        >>> json_object('{"classes": 5}', "--model-args")
        {'classes': 5}
    """
    try:
        found = json.loads(given)
    except json.JSONDecodeError as error:
        raise InputError(f"""{option} {given!r} is no JSON ({error}); expected such as '{{"classes": 5}}'""") from None
    if not isinstance(found, dict):
        raise InputError(f"{option} {given!r}: expected a JSON object, such as '{{\"classes\": 5}}'")
    return found
