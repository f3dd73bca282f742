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

from camwatch import __version__
from camwatch.errors import CamwatchError, CamwatchWarning, InputError

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
MODEL = "a torchvision model (resnet50), a timm model (timm/resnet50), or an import path (package.module.Net)"

AUDIT = """\
Explain and measure every image of a data set: how often is the model right for the wrong reason, for which
classes, on which images?

Writes OUTPUT (one row per image), OUTPUT's stem + .classes.csv (a summary per class) and .worst.png (the worst
images: right for the wrong reason first). If it is killed, the same command goes on where it was.

An image is "right for the wrong reason" if the answer is right and no more of the map lies inside the region than
a map that looks everywhere would have there (--threshold 0; towards 1 for a stricter judgement).
"""
AUDIT_EXAMPLES = """\
examples:
  a LightningModule and a folder, laid out as DATA/val/<class>/*.jpg with DATA/masks/<class>/<name>.png:
    camwatch audit last.ckpt --module my_project.models.Classifier --data DATA

  boxes instead of masks (CSV: file,x1,y1,x2,y2), a photo folder without val/, two GPUs:
    camwatch audit last.ckpt --module my_project.models.Classifier --data photos --regions boxes.csv --devices 2

  your own data module, whose validation loader gives (images, labels, masks); arguments as JSON:
    camwatch audit last.ckpt --module my_project.models.Classifier \\
        --datamodule my_project.data.Photos --data-args '{"root": "DATA", "batch_size": 64}'

  a state dict of a torchvision model; fail a CI job where over a tenth is right for the wrong reason:
    camwatch audit best.pth --model resnet18 --model-args '{"num_classes": 37}' --data DATA --fail-above 0.1

exit codes: 0 done; 1 the audit failed, or found more than --fail-above allows; 2 what was given cannot be used
"""
LAYERS_EXAMPLES = """\
examples:
  camwatch layers resnet50
  camwatch layers timm/vit_base_patch16_224
  camwatch layers my_project.models.Classifier --model-args '{"classes": 5}' --size 256
"""
EXPLAIN_EXAMPLES = """\
examples:
  camwatch explain cat.jpg --model resnet50
  camwatch explain cat.jpg --model resnet50 --target 281 --method layercam --layer layer3 --output cat_layer3.png
  camwatch explain cat.jpg --model my_project.models.Classifier --weights last.ckpt
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit code; a user's mistake is told in one line, without a traceback."""
    sys.path.insert(0, os.getcwd())  # so that import paths mean what they mean to `python -m`
    options = _parser().parse_args(arguments)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what concerns the libraries' developers
            warnings.simplefilter("always", CamwatchWarning)
            warnings.showwarning = lambda message, *_, **__: print(f"warning: {message}", file=sys.stderr)
            return int(options.run(options))
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
    from camwatch.auditing import audit

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

    from camwatch.auditing.folder import collate, open_folder
    from camwatch.cam.engine import predict

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
    from camwatch.auditing.loading import load_object

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

    from camwatch.cam.engine import layers

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

    from camwatch import imaging
    from camwatch.cam.engine import explain
    from camwatch.regions.alignment import read_aligned

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
    options.output.write_bytes(imaging.to_png(overlay))
    names = entry.meta["categories"] if entry is not None and options.weights == "default" else None
    classes, chances = (tensor[0].tolist() for tensor in found.top(5))
    print(f"{options.output}: {found.method} at {found.layer}, maps of {' x '.join(map(str, found.maps.shape[1:]))}")
    for index, chance in zip(classes, chances, strict=True):
        print(f"{chance:7.1%}  {index:4}  {names[index] if names else ''}".rstrip())
    return 0


def _model(options: argparse.Namespace, weights: str) -> tuple[Any, Any]:
    import torch

    from camwatch.auditing.loading import load_model

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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("camwatch", description="See where an image model looks.")
    parser.add_argument("--version", action="version", version=f"camwatch {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, run: Any, brief: str, about: str, examples: str) -> argparse.ArgumentParser:
        made = commands.add_parser(
            name,
            help=brief,
            description=about,
            epilog=examples,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        made.set_defaults(run=run)
        return made

    audit = command("audit", _audit, "explain and measure every image of a data set", AUDIT, AUDIT_EXAMPLES)
    audit.add_argument("checkpoint", metavar="CHECKPOINT", help="Lightning's .ckpt, or a state dict")
    audit.add_argument("--module", "--model", dest="model", required=True, metavar="NAME", help=MODEL)
    _model_options(audit)
    data = audit.add_argument_group("data: one of --data and --datamodule")
    data.add_argument("--data", type=Path, metavar="FOLDER", help="photos, as <class>/*.jpg or val/<class>/*.jpg")
    data.add_argument("--split", default="val", help="folder in --data that is audited, where there is one (val)")
    data.add_argument("--regions", type=Path, metavar="PATH", help="folder of masks, boxes as .csv, or COCO's .json; "
                      "by default masks/ or boxes.csv beside the split")  # fmt: skip
    _photo_options(data)
    data.set_defaults(size=224)
    data.add_argument("--batch-size", type=_positive, default=32, metavar="N", help="photos per batch (32)")
    data.add_argument("--workers", type=int, default=0, metavar="N", help="processes that read photos (0)")
    data.add_argument("--datamodule", metavar="NAME", help="import path of a LightningDataModule, or of a function "
                      "that returns one or a DataLoader")  # fmt: skip
    data.add_argument("--data-args", default="{}", metavar="JSON", help="its arguments")
    _explain_options(audit, "label")
    result = audit.add_argument_group("result")
    result.add_argument("--output", default="audit.csv", metavar="FILE", help=".csv or .parquet (audit.csv)")
    result.add_argument("--threshold", type=float, default=0.0, metavar="SKILL", help="least skill of a map that is "
                        "right: 0 looks everywhere, 1 all inside the region (0)")  # fmt: skip
    result.add_argument("--worst", type=int, default=24, metavar="N", help="images on the contact sheet (24)")
    result.add_argument("--fail-above", type=float, metavar="SHARE", help="exit with 1 if more of the right answers "
                        "than this share are right for the wrong reason")  # fmt: skip
    result.add_argument("--no-resume", action="store_true", help="forget what an interrupted audit has done")
    devices = audit.add_argument_group("devices: see Lightning's Trainer")
    devices.add_argument("--accelerator", default="auto", help="cpu, gpu, … (auto)")
    devices.add_argument("--devices", default="1", help="how many, or auto (1)")
    devices.add_argument("--strategy", default="auto", help="ddp, … (auto)")
    devices.add_argument("--precision", default="32-true", help="32-true, bf16-mixed, … (32-true)")
    devices.add_argument("--quiet", action="store_true", help="no progress bar")

    about = "List the layers that can be explained, in the order in which they run, the default one marked."
    layers = command("layers", _layers, "list a model's layers that can be explained", about, LAYERS_EXAMPLES)
    layers.add_argument("model", metavar="MODEL", help=MODEL)
    layers.add_argument("--weights", default="none", help="default (pretrained), none (random), or a file (none)")
    _model_options(layers)
    layers.add_argument("--size", type=_positive, metavar="PIXELS", help="side of the image (the model's own, or 224)")
    layers.add_argument("--channels", type=_positive, default=3, metavar="N", help="bands of the image (3)")

    about = "Explain one photo: writes the overlay of where the evidence for a class is, and prints the best classes."
    explain = command("explain", _explain, "explain one photo", about, EXPLAIN_EXAMPLES)
    explain.add_argument("image", type=Path, metavar="IMAGE")
    explain.add_argument("--model", required=True, metavar="NAME", help=MODEL)
    explain.add_argument(
        "--weights", default="default", help="default (pretrained), none (random), or a file (default)"
    )
    _model_options(explain)
    _photo_options(explain)
    _explain_options(explain, "predicted")
    explain.add_argument("--output", type=Path, default=Path("explanation.png"), help="(explanation.png)")
    explain.add_argument("--alpha", type=float, default=0.5, help="weight of the heatmap, 0 to 1 (0.5)")
    explain.add_argument("--colormap", default="jet", help="any of matplotlib's (jet)")
    return parser


def _model_options(parser: Any) -> None:
    parser.add_argument("--model-args", default="{}", metavar="JSON", help="the model's arguments")
    parser.add_argument("--trust", action="store_true", help="load Python objects from the file; they can run code")


def _photo_options(parser: Any) -> None:
    parser.add_argument("--size", type=_positive, metavar="PIXELS", help="side of the square that the model sees")
    parser.add_argument("--resize", type=_positive, metavar="PIXELS", help="shorter side before the crop (as --size)")
    for name, values in zip(("mean", "std"), IMAGENET, strict=True):
        parser.add_argument(f"--{name}", type=float, nargs=3, default=values, metavar="V", help="(ImageNet's)")


def _explain_options(parser: Any, target: str) -> None:
    group = parser.add_argument_group("explanation")
    group.add_argument("--layer", help="a layer's name; camwatch layers lists them (found for you)")
    group.add_argument("--method", default="gradcam", help="a CAM method (gradcam)")
    choices = "label, predicted, or a class's number" if target == "label" else "predicted, or a class's number"
    group.add_argument("--target", default=target, help=f"{choices} ({target})")


def _positive(given: str) -> int:
    if not given.isdigit() or int(given) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of 1 or more, got {given!r}")
    return int(given)


if __name__ == "__main__":
    sys.exit(main())
