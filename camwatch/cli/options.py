"""What can be typed: commands, options, and the help that goes with them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from camwatch import __version__
from camwatch.errors import unknown

TOP = """\
examples:
  camwatch explain cat.jpg --model resnet50                  where does the model look?
  camwatch layers resnet50                                   which layers can be explained?
  camwatch audit last.ckpt --module my_project.models.Net --data DATA
                                                             on which images is it right for the wrong reason?

camwatch COMMAND --help explains a command, with examples.
exit codes: 0 all is well; 1 the work failed; 2 what was given cannot be used
"""
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

exit codes: 0 done; 1 the weights cannot be downloaded; 2 what was given cannot be used
"""
EXPLAIN_EXAMPLES = """\
examples:
  camwatch explain cat.jpg --model resnet50
  camwatch explain cat.jpg --model resnet50 --target 281 --method layercam --layer layer3 --output cat_layer3.png
  camwatch explain cat.jpg --model my_project.models.Classifier --weights last.ckpt

exit codes: 0 done; 1 the weights cannot be downloaded, or the picture not written; 2 what was given cannot be used
"""


def parse(arguments: list[str]) -> argparse.Namespace:
    """Parses a command line; near names are offered for a command or an option that does not exist."""
    parser, known = _parser()
    wanted = next((word for word in arguments if not word.startswith("-")), None)
    if wanted is not None and wanted not in known:
        parser.error(unknown("command", wanted, known))
    options, rest = parser.parse_known_args(arguments)
    command = known[options.command]
    odd = next((word.partition("=")[0] for word in rest if word.startswith("--")), None)
    if odd is not None:
        names = [name for action in command._actions for name in action.option_strings if name.startswith("--")]
        command.error(unknown("option", odd, names))
    if rest:
        command.error(f"unrecognized arguments: {' '.join(rest)}")
    return options


def commands() -> dict[str, argparse.ArgumentParser]:
    """Returns each command's parser by name.

    Example:
        >>> sorted(commands())
        ['audit', 'explain', 'layers']
    """
    return _parser()[1]


def _parser() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    """Returns the parser, and that of each command."""
    parser = argparse.ArgumentParser(
        "camwatch",
        description="See where an image model looks.",
        epilog=TOP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"camwatch {__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, brief: str, about: str, examples: str) -> argparse.ArgumentParser:
        made = subparsers.add_parser(
            name,
            help=brief,
            description=about,
            epilog=examples,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        return made

    audit = command("audit", "explain and measure every image of a data set", AUDIT, AUDIT_EXAMPLES)
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
    layers = command("layers", "list a model's layers that can be explained", about, LAYERS_EXAMPLES)
    layers.add_argument("model", metavar="MODEL", help=MODEL)
    layers.add_argument(
        "--weights", default="none", metavar="WHICH", help="default (pretrained), none (random), or a file (none)"
    )
    _model_options(layers)
    layers.add_argument("--size", type=_positive, metavar="PIXELS", help="side of the image (the model's own, or 224)")
    layers.add_argument("--channels", type=_positive, default=3, metavar="N", help="bands of the image (3)")

    about = "Explain one photo: writes the overlay of where the evidence for a class is, and prints the best classes."
    explain = command("explain", "explain one photo", about, EXPLAIN_EXAMPLES)
    explain.add_argument("image", type=Path, metavar="IMAGE", help="a photo that Pillow reads: .jpg, .png, .webp, …")
    explain.add_argument("--model", required=True, metavar="NAME", help=MODEL)
    explain.add_argument(
        "--weights",
        default="default",
        metavar="WHICH",
        help="default (pretrained), none (random), or a file (default)",
    )
    _model_options(explain)
    _photo_options(explain)
    _explain_options(explain, "predicted")
    picture = explain.add_argument_group("picture")
    picture.add_argument(
        "--output", type=Path, default=Path("explanation.png"), metavar="FILE", help=".png (explanation.png)"
    )
    picture.add_argument(
        "--alpha", type=float, default=0.5, metavar="SHARE", help="weight of the heatmap, 0 to 1 (0.5)"
    )
    picture.add_argument("--colormap", default="jet", metavar="NAME", help="any of matplotlib's (jet)")
    return parser, dict(subparsers.choices)


def _model_options(parser: Any) -> None:
    parser.add_argument("--model-args", default="{}", metavar="JSON", help="the model's arguments")
    parser.add_argument("--trust", action="store_true", help="load Python objects from the file; they can run code")


def _photo_options(parser: Any) -> None:
    parser.add_argument("--size", type=_positive, metavar="PIXELS", help="side of the square that the model sees")
    parser.add_argument("--resize", type=_positive, metavar="PIXELS", help="shorter side before the crop (as --size)")
    for name, values in zip(("mean", "std"), IMAGENET, strict=True):
        shown = " ".join(map(str, values))
        parser.add_argument(f"--{name}", type=float, nargs=3, default=values, metavar=("R", "G", "B"), help=f"of the "
                            f"model's normalization (ImageNet's, {shown})")  # fmt: skip


def _explain_options(parser: Any, target: str) -> None:
    group = parser.add_argument_group("explanation")
    group.add_argument("--layer", metavar="NAME", help="as camwatch layers lists them (found for you)")
    group.add_argument("--method", default="gradcam", metavar="NAME", help="such as hirescam, layercam; a wrong name "
                       "lists all (gradcam)")  # fmt: skip
    choices = "label, predicted, or a class's number" if target == "label" else "predicted, or a class's number"
    group.add_argument("--target", default=target, metavar="WHICH", help=f"{choices} ({target})")


def _positive(given: str) -> int:
    if not given.isdigit() or int(given) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of 1 or more, got {given!r}")
    return int(given)
