"""``camwatch explain``: one photo."""

from __future__ import annotations

import argparse
from pathlib import Path

from camwatch.cli.common import (
    MODEL,
    add_explain_options,
    add_model_options,
    add_photo_options,
    make_model,
    make_transform,
    preset_of,
    target_of,
)
from camwatch.errors import InputError

BRIEF = "explain one photo"
ABOUT = "Explain one photo: writes the overlay of where the evidence for a class is, and prints the best classes."
EXAMPLES = """\
examples:
  camwatch explain cat.jpg --model resnet50
  camwatch explain cat.jpg --model resnet50 --target 281 --method layercam --layer layer3 --output cat_layer3.png
  camwatch explain cat.jpg --model my_project.models.Classifier --weights last.ckpt

exit codes: 0 done; 1 the weights cannot be downloaded, or the picture not written; 2 what was given cannot be used
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments and options."""
    parser.add_argument("image", type=Path, metavar="IMAGE", help="a photo that Pillow reads: .jpg, .png, .webp, …")
    parser.add_argument("--model", required=True, metavar="NAME", help=MODEL)
    parser.add_argument("--weights", default="default", metavar="WHICH", help="default (pretrained), none (random), or "
                        "a file (default)")  # fmt: skip
    add_model_options(parser)
    add_photo_options(parser)
    add_explain_options(parser, "predicted")
    picture = parser.add_argument_group("picture")
    picture.add_argument("--output", type=Path, default=Path("explanation.png"), metavar="FILE", help=".png "
                         "(explanation.png)")  # fmt: skip
    picture.add_argument("--alpha", type=float, default=0.5, metavar="SHARE", help="weight of the heatmap, 0 to 1 "
                         "(0.5)")  # fmt: skip
    picture.add_argument("--colormap", default="jet", metavar="NAME", help="any of matplotlib's (jet)")


def run(options: argparse.Namespace) -> int:
    """Writes the overlay, prints the best classes and returns the exit code."""
    from PIL import Image, UnidentifiedImageError

    from camwatch.cam.engine import explain
    from camwatch.panel.files import read_aligned
    from camwatch.pictures.encoding import to_png

    if options.output.suffix != ".png":
        raise InputError(f"output {str(options.output)!r} must end in .png")
    model, entry = make_model(options, options.weights)
    preset = preset_of(entry)
    transform = preset if preset is not None and options.size is None else make_transform(options)
    try:
        Image.open(options.image).verify()
        images = read_aligned([options.image], transform)[0]
    except (UnidentifiedImageError, SyntaxError, OSError) as error:
        raise InputError(f"image {str(options.image)!r} cannot be read: {error}") from None
    target = target_of(options.target)
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
