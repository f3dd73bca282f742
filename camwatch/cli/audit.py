"""``camwatch audit``: every image of a data set, explained and measured."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path
from typing import Any

from camwatch.cli.common import (
    MODEL,
    add_explain_options,
    add_model_options,
    add_photo_options,
    json_object,
    make_model,
    make_transform,
    positive,
    target_of,
)
from camwatch.errors import CamwatchError, InputError

BRIEF = "explain and measure every image of a data set"
ABOUT = """\
Explain and measure every image of a data set: how often is the model right for the wrong reason, for which
classes, on which images?

Writes OUTPUT (one row per image), OUTPUT's stem + .classes.csv (a summary per class) and .worst.png (the worst
images: right for the wrong reason first). If it is killed, the same command goes on where it was.

An image is "right for the wrong reason" if the answer is right and no more of the map lies inside the region than
a map that looks everywhere would have there (--threshold 0; towards 1 for a stricter judgement).
"""
EXAMPLES = """\
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


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments and options."""
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="Lightning's .ckpt, or a state dict")
    parser.add_argument("--module", "--model", dest="model", required=True, metavar="NAME", help=MODEL)
    add_model_options(parser)
    _add_data_options(parser.add_argument_group("data: one of --data and --datamodule"))
    add_explain_options(parser, "label")
    result = parser.add_argument_group("result")
    result.add_argument("--output", default="audit.csv", metavar="FILE", help=".csv or .parquet (audit.csv)")
    result.add_argument("--threshold", type=float, default=0.0, metavar="SKILL", help="least skill of a map that is "
                        "right: 0 looks everywhere, 1 all inside the region (0)")  # fmt: skip
    result.add_argument("--worst", type=int, default=24, metavar="N", help="images on the contact sheet (24)")
    result.add_argument("--fail-above", type=float, metavar="SHARE", help="exit with 1 if more of the right answers "
                        "than this share are right for the wrong reason")  # fmt: skip
    result.add_argument("--no-resume", action="store_true", help="forget what an interrupted audit has done")
    devices = parser.add_argument_group("devices: see Lightning's Trainer")
    devices.add_argument("--accelerator", default="auto", help="cpu, gpu, … (auto)")
    devices.add_argument("--devices", default="1", help="how many, or auto (1)")
    devices.add_argument("--strategy", default="auto", help="ddp, … (auto)")
    devices.add_argument("--precision", default="32-true", help="32-true, bf16-mixed, … (32-true)")
    devices.add_argument("--quiet", action="store_true", help="no progress bar")


def _add_data_options(data: Any) -> None:
    data.add_argument("--data", type=Path, metavar="FOLDER", help="photos, as <class>/*.jpg or val/<class>/*.jpg")
    data.add_argument("--split", default="val", help="folder in --data that is audited, where there is one (val)")
    data.add_argument("--regions", type=Path, metavar="PATH", help="folder of masks, boxes as .csv, or COCO's .json; "
                      "by default masks/ or boxes.csv beside the split")  # fmt: skip
    add_photo_options(data)
    data.set_defaults(size=224)
    data.add_argument("--batch-size", type=positive, default=32, metavar="N", help="photos per batch (32)")
    data.add_argument("--workers", type=int, default=0, metavar="N", help="processes that read photos (0)")
    data.add_argument("--datamodule", metavar="NAME", help="import path of a LightningDataModule, or of a function "
                      "that returns one or a DataLoader")  # fmt: skip
    data.add_argument("--data-args", default="{}", metavar="JSON", help="its arguments")


def run(options: argparse.Namespace) -> int:
    """Audits, prints the summary and returns the exit code."""
    from camwatch.adapters.lightning.audit import audit

    if (options.data is None) == (options.datamodule is None):
        raise InputError("give either --data FOLDER or --datamodule package.module.Class")
    if options.checkpoint in ("none", "default") or not Path(options.checkpoint).is_file():
        raise InputError(f"checkpoint {options.checkpoint!r}: there is no such file")
    model = make_model(options, options.checkpoint)[0]
    loader = _photos(options, model) if options.data is not None else _datamodule(options)
    result = audit(
        model,
        loader,
        layer=options.layer,
        method=options.method,
        target=target_of(options.target),
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

    photos = open_folder(options.data, options.split, options.regions, make_transform(options))
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

    kind, arguments = load_object(options.datamodule, "data module"), json_object(options.data_args, "--data-args")
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
