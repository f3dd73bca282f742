"""The command line: ``camwatch audit``, ``camwatch layers``, ``camwatch explain``.

Exit codes: 0, all is well; 1, the work failed, or an audit found more than ``--fail-above`` allows; 2, what was
given cannot be used.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from camwatch.cli.options import parse
from camwatch.errors import CamwatchError, CamwatchWarning, InputError


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit code; a user's mistake is told in one line, without a traceback."""
    sys.path.insert(0, os.getcwd())  # so that import paths mean what they mean to `python -m`
    runs = {"audit": _audit, "layers": _layers, "explain": _explain}
    options = parse(sys.argv[1:] if arguments is None else list(arguments))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what concerns the libraries' developers
            warnings.simplefilter("always", CamwatchWarning)
            warnings.showwarning = lambda message, *_, **__: print(f"warning: {message}", file=sys.stderr)
            return runs[options.command](options)
    except InputError as error:
        print(f"camwatch {options.command}: {error}", file=sys.stderr)
        return 2
    except (CamwatchError, OSError) as error:
        print(f"camwatch {options.command}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"camwatch {options.command}: interrupted", file=sys.stderr)
        return 1


def _audit(options: argparse.Namespace) -> int:
    from camwatch.adapters.lightning.audit import audit

    if (options.data is None) == (options.datamodule is None):
        raise InputError("give either --data FOLDER or --datamodule package.module.Class")
    if options.checkpoint in ("none", "default") or not Path(options.checkpoint).is_file():
        raise InputError(f"checkpoint {options.checkpoint!r}: there is no such file")
    model = _model(options, options.checkpoint)[0]
    loader = _photos(options, model) if options.data is not None else _datamodule(options)
    result = audit(
        model,
        loader,
        layer=options.layer,
        method=options.method,
        target=_target(options.target),
        output=options.output,
        trainer=(trainer := _trainer(options)),
        threshold=options.threshold,
        worst=options.worst,
        resume=not options.no_resume,
    )
    if not trainer.is_global_zero:
        return 0
    print(result)
    if result.total.verdicts["unreadable"] == result.total.images:
        raise CamwatchError(f"none of the {result.total.images} images could be read; see the table's column note")
    found = result.total.wrong_reason
    if options.fail_above is not None and not found <= options.fail_above:
        share = "no image could be judged" if found != found else f"{found:.1%} are right for the wrong reason"
        raise CamwatchError(f"{share}, --fail-above allows {options.fail_above:.1%}")
    return 0


def _photos(options: argparse.Namespace, model: Any) -> Any:
    import torch
    from torch.utils.data import DataLoader

    from camwatch.cam.prediction import predict
    from camwatch.cli.photos import collate, open_folder

    photos = open_folder(options.data, options.split, options.regions, _transform(options))
    if photos.regions is None:
        print("no regions were given (--regions): no right answer can be judged", file=sys.stderr)
    classes = predict(model, torch.zeros(1, 3, options.size, options.size)).shape[1]
    if classes != len(photos.classes):
        raise InputError(
            f"{options.data} has {len(photos.classes)} classes ({', '.join(photos.classes[:4])}, …), the model "
            f"scores {classes}: they do not belong together, or a class's folder is missing (an empty one will do)"
        )
    return DataLoader(photos, options.batch_size, num_workers=options.workers, collate_fn=collate)


def _datamodule(options: argparse.Namespace) -> Any:
    from camwatch.cli.models import load_object

    kind, arguments = load_object(options.datamodule, "data module"), _json(options.data_args, "--data-args")
    try:
        return kind(**arguments)
    except TypeError as error:
        raise InputError(f"{options.datamodule} cannot be built with the arguments {arguments}: {error}") from error


def _trainer(options: argparse.Namespace) -> Any:
    import pytorch_lightning as pl
    from lightning_fabric.utilities.exceptions import MisconfigurationException

    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    try:
        return pl.Trainer(
            accelerator=options.accelerator,
            devices=int(options.devices) if options.devices.lstrip("-").isdigit() else options.devices,
            strategy=options.strategy,
            precision=options.precision,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=not options.quiet,
            enable_model_summary=False,
        )
    except (MisconfigurationException, ValueError) as error:
        raise InputError(f"Lightning refuses these devices: {error}") from error


def _layers(options: argparse.Namespace) -> int:
    import torch

    from camwatch.cam.model.layers import layers

    model, entry = _model(options, options.weights)
    size = options.size or getattr(_preset(entry), "crop_size", [224])[0]
    found = layers(model, torch.rand(1, options.channels, size, size, generator=torch.Generator().manual_seed(0)))
    width = max(len("layer"), *(len(layer.name) for layer in found))
    print(f"{'layer':{width}}  grid     channels   ({options.model}, images of {size} x {size})")
    for layer in found:
        grid = " x ".join(map(str, layer.grid))
        print(f"{layer.name:{width}}  {grid:9}{layer.channels:8}{'   <- default' if layer.default else ''}")
    return 0


def _explain(options: argparse.Namespace) -> int:
    from PIL import Image, UnidentifiedImageError

    from camwatch.cam.engine import explain
    from camwatch.panel.files import read_aligned
    from camwatch.pictures.encoding import to_png

    if options.output.suffix != ".png":
        raise InputError(f"output {str(options.output)!r} must end in .png")
    model, entry = _model(options, options.weights)
    preset = _preset(entry)
    transform = preset if preset is not None and options.size is None else _transform(options)
    try:
        Image.open(options.image).verify()
        images = read_aligned([options.image], transform)[0]
    except (UnidentifiedImageError, SyntaxError, OSError) as error:
        raise InputError(f"image {str(options.image)!r} cannot be read: {error}") from None
    target = _target(options.target)
    if target == "label":
        raise InputError("an image by itself has no label: --target takes predicted or a class's number")
    found = explain(model, images, target=target, layer=options.layer, method=options.method)
    normalized = (preset.mean, preset.std) if transform is preset else (options.mean, options.std)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    overlay = found.overlays(images, alpha=options.alpha, colormap=options.colormap, denormalize=normalized)[0]
    options.output.write_bytes(to_png(overlay))
    names = entry.meta["categories"] if entry is not None and options.weights == "default" else None
    classes, chances = (tensor[0].tolist() for tensor in found.top(5))
    print(f"{options.output}: {found.method} at {found.layer}, maps of {' x '.join(map(str, found.maps.shape[1:]))}")
    for index, chance in zip(classes, chances, strict=True):
        print(f"{chance:7.1%}  {index:4}  {names[index] if names else ''}".rstrip())
    return 0


def _model(options: argparse.Namespace, weights: str) -> tuple[Any, Any]:
    import torch

    from camwatch.cli.models import load_model

    torch.manual_seed(0)  # random weights are the same each time
    return load_model(options.model, weights, _json(options.model_args, "--model-args"), options.trust)


def _preset(entry: Any) -> Any:
    preset = None if entry is None else entry.transforms()
    return preset if hasattr(preset, "crop_size") else None


def _transform(options: argparse.Namespace) -> Any:
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


def _target(given: str) -> str | int:
    return int(given) if given.isdigit() else given


def _json(given: str, option: str) -> dict[str, Any]:
    try:
        found = json.loads(given)
    except json.JSONDecodeError as error:
        raise InputError(f"""{option} {given!r} is no JSON ({error}); expected such as '{{"classes": 5}}'""") from None
    if not isinstance(found, dict):
        raise InputError(f"{option} {given!r}: expected a JSON object, such as '{{\"classes\": 5}}'")
    return found
