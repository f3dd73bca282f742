"""``camwatch layers``: which layers of a model can be explained."""

from __future__ import annotations

import argparse

from camwatch.cli.common import MODEL, add_model_options, make_model, positive, preset_of

BRIEF = "list a model's layers that can be explained"
ABOUT = "List the layers that can be explained, in the order in which they run, the default one marked."
EXAMPLES = """\
examples:
  camwatch layers resnet50
  camwatch layers timm/vit_base_patch16_224
  camwatch layers my_project.models.Classifier --model-args '{"classes": 5}' --size 256

exit codes: 0 done; 1 the weights cannot be downloaded; 2 what was given cannot be used
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments and options."""
    parser.add_argument("model", metavar="MODEL", help=MODEL)
    parser.add_argument("--weights", default="none", metavar="WHICH", help="default (pretrained), none (random), or a "
                        "file (none)")  # fmt: skip
    add_model_options(parser)
    parser.add_argument("--size", type=positive, metavar="PIXELS", help="side of the image (the model's own, or 224)")
    parser.add_argument("--channels", type=positive, default=3, metavar="N", help="bands of the image (3)")


def run(options: argparse.Namespace) -> int:
    """Prints the table and returns the exit code."""
    import torch

    from camwatch.cam.model.layers import layers

    model, entry = make_model(options, options.weights)
    size = options.size or getattr(preset_of(entry), "crop_size", [224])[0]
    found = layers(model, torch.rand(1, options.channels, size, size, generator=torch.Generator().manual_seed(0)))
    width = max(len("layer"), *(len(layer.name) for layer in found))
    print(f"{'layer':{width}}  grid     channels   ({options.model}, images of {size} x {size})")
    for layer in found:
        grid = " x ".join(map(str, layer.grid))
        print(f"{layer.name:{width}}  {grid:9}{layer.channels:8}{'   <- default' if layer.default else ''}")
    return 0
