"""audit(): the one entry."""

from __future__ import annotations

import csv
import dataclasses
import importlib
import io
import math
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from camwatch.adapters.lightning.audit_loop import overrides, runner_class
from camwatch.auditing.examine import AuditConfig
from camwatch.auditing.sheet import Picture, draw, pick
from camwatch.auditing.source import MapStyleSource, Source, open_source
from camwatch.auditing.summary import Audit, Tally, summary_path, summary_rows, worst_of
from camwatch.auditing.table import check_output, written
from camwatch.auditing.unfinished import Parts
from camwatch.auditing.verdicts import COLUMNS
from camwatch.cam.methods.method import MapFunction
from camwatch.cam.model.execution import Forward
from camwatch.cam.model.layers import LayerName
from camwatch.descriptions import fingerprint
from camwatch.errors import CamwatchError, InputError, check_at_least
from camwatch.files import write_whole
from camwatch.isolation import isolate_rng
from camwatch.panel.dataset import class_names as find_class_names
from camwatch.panel.normalization import find_normalization
from camwatch.regions.annotations import entries
from camwatch.run import RunConfig


def audit(
    model: nn.Module,
    dataloader: Any,
    *,
    layer: LayerName | None = None,
    method: str | MapFunction = "gradcam",
    target: str | int | Callable[[Any], Tensor] = "label",
    regions: Sequence[Any] | Mapping[str, Any] | None = None,
    unpack: Callable[[Any], Any] | None = None,
    forward: Forward | None = None,
    output: str | Path = "audit.csv",
    trainer: Any = None,
    threshold: float = 0.0,
    worst: int = 24,
    resume: bool = True,
    class_names: Sequence[str] | None = None,
    denormalize: tuple[Any, Any] | None = None,
    rgb: Sequence[int] = (0, 1, 2),
) -> Audit:
    """Explains and measures every image of a data loader: how often is it right for the wrong reason?

    Written are the table (one row per image, in the data set's order), ``<output>.classes.csv`` with a
    summary per class, and ``<output>.worst.png``, the worst images: right for the wrong reason first. Rows
    are kept on disk as they come; an audit that was killed goes on where it was, and its table is the one
    that it would have been. A sample that cannot be read has its row marked. The order of a shuffling loader,
    ``drop_last`` and repetitions for equal shares are undone: each sample has one row.

    An image's verdict is "wrong", or "right" if the map's skill, (share inside - area) / (1 - area), is above
    the threshold; "right for the wrong reason" if it is not; "not measurable" without a label or a region, with
    a region too small for the layer's grid, or with a map that is zero; "unreadable".

    Each row has label, answer and probability, the localization numbers, and beside them what the same region gives to
    a map that looks at the centre (``centre_mass_accuracy``, ``centre_pointing_game``); the column ``note`` says why an
    image is not measurable or unreadable. The table is the same, byte for byte, on one process and on several. Memory
    does not grow with the number of images; the time is about that of plain inference.

    Args:
        model: Any vision model, or LightningModule, whose batch-transfer hooks are then used.
        dataloader: A ``DataLoader``, any iterable of batches (on one process), or a ``LightningDataModule``,
            whose validation loader is taken.
        layer: A layer's name or module; None: found on the first sample.
        method: One of ``camwatch.methods()``, or a function (activations, gradients) -> maps.
        target: What is explained: "label", "predicted", a class index, or a callable on the model's output. A
            label of -1 stands for an unknown one, for which the predicted class is explained.
        regions: One entry per sample as in ``Regions.coerce``, or a dictionary of zones with as many each, on the
            pixels of the images as the model takes them; None: they come with the batches.
        unpack: Callable(batch) -> (images, labels[, regions]) for batches of another shape.
        forward: Callable(model, images) -> output, where ``model(images)`` is not the way.
        output: The table, .csv or .parquet.
        trainer: A Lightning ``Trainer`` with devices, strategy and precision of your choice; by default one
            device of the best kind there is.
        threshold: The least skill of a map that is right: 0 what a map has that looks everywhere, 1 all inside.
        worst: How many images the sheet shows; 0 for none.
        resume: Whether to go on with an unfinished audit of the same name.
        class_names: One name per class; found in the data set by default.
        denormalize: (mean, std) for the eye; found in the data set by default.
        rgb: Which three bands are shown.

    Returns:
        An Audit: the files' paths, the summaries and the worst rows. ``print`` it.

    Raises:
        InputError: An argument is unusable, the loader is empty, or model and data do not fit together.
        CamwatchError: The audit was interrupted; call it again to go on.

    Example:
        >>> import tempfile
        >>> import torch
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> masks = torch.zeros(4, 8, 8, dtype=torch.bool).index_fill(1, torch.tensor([0, 1]), True)
        >>> batches = [(torch.rand(4, 3, 8, 8), torch.tensor([0, 1, 2, 3]), masks)]
        >>> import pytorch_lightning as pl
        >>> quiet = pl.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False)
        >>> found = audit(net, batches, output=f"{tempfile.mkdtemp()}/audit.csv", trainer=quiet)
        >>> found.total.images, len(found.table.read_text().splitlines())
        (4, 5)
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"expected a model, a torch.nn.Module, got {type(model).__name__}")
    table = check_output(output)
    check_at_least(0, worst=worst)
    if not math.isfinite(threshold):
        raise InputError(f"the threshold must be a finite number, got {threshold}")
    asked = RunConfig.of(
        model, None if layer is None else [layer], method=method, target=target, forward=forward, unpack=unpack
    )
    _check_forward(model, forward)
    framework = importlib.import_module(_package(trainer, model))
    trainer = trainer or framework.Trainer(
        accelerator="auto", devices=1, logger=False, enable_checkpointing=False, enable_model_summary=False
    )
    _check_trainer(trainer)
    with isolate_rng(), _in_its_place(model):
        loader, datamodule = _open_loader(dataloader, framework, trainer)
        source = open_source(loader, unpack)
        config = AuditConfig(asked, threshold, _one_per_sample(regions, source))
        parts = Parts(table)
        runner = runner_class(framework.__name__)(model, source, config, parts, datamodule)
        if trainer.is_global_zero:
            parts.open(_settings(model, source, config, trainer), resume)
        with _interruptible(parts, source.total):
            trainer.predict(runner, return_predictions=False)
        trainer.strategy.barrier("audited")
        _check_complete(source, parts, runner)

        # Every process reads the rows once, so that each of them returns the same; the first one writes.
        names = class_names or find_class_names(source.dataset)
        tally, rows = Tally(), parts.rows()
        found_worst = worst_of(tally.watch(written(rows, table) if trainer.is_global_zero else rows), worst)
        runner.config = dataclasses.replace(config, asked=dataclasses.replace(asked, layers=(parts.layer or "",)))
        sheet = table.with_name(f"{table.stem}.worst.png")
        result = Audit(
            table,
            sheet if found_worst else None,
            parts.layer or "",
            method if isinstance(method, str) else getattr(method, "__name__", type(method).__name__),
            tally.total(),
            tally.classes(names),
            found_worst,
        )
        if trainer.is_global_zero:
            _write_summary(result)
            sheet.unlink(missing_ok=True)
            if found_worst:
                _draw(result, runner, trainer, names, denormalize, rgb)
        trainer.strategy.barrier("written")
        if trainer.is_global_zero:
            parts.remove()
    return result


def _check_forward(model: nn.Module, forward: Forward | None) -> None:
    if forward is None and hasattr(model, "training_step") and not overrides(model, "forward"):
        raise InputError(
            f"{type(model).__name__} has no forward(); define one, or pass forward=callable(model, images) -> output"
        )


def _check_trainer(trainer: Any) -> None:
    if trainer.limit_predict_batches != 1.0 or isinstance(trainer.limit_predict_batches, int):
        raise InputError(
            f"the trainer has limit_predict_batches={trainer.limit_predict_batches} (fast_dev_run sets it), but an "
            "audit is of every image; give a loader over a torch.utils.data.Subset to audit some"
        )


def _one_per_sample(regions: Sequence[Any] | Mapping[str, Any] | None, source: Source) -> Sequence[Any] | None:
    """Returns regions handed over apart from the batches as one entry per sample."""
    if isinstance(regions, Mapping):  # by zone; of all samples, or it is no use to go on
        regions = entries(regions, len(next(iter(regions.values()), ())))
    if regions is not None and isinstance(source, MapStyleSource) and len(regions) != len(source.dataset):
        raise InputError(f"expected one region per sample, {len(source.dataset)} in all, got {len(regions)}")
    return regions


def _package(trainer: Any, model: nn.Module) -> str:
    """The Lightning namespace that the trainer is from, or else the model."""
    kinds = [kind for one in (trainer, model) for kind in type(one).__mro__]
    names = [kind.__module__ for kind in kinds if kind.__name__ in ("Trainer", "LightningModule")]
    ours = next((name for name in names if name.startswith(("pytorch_lightning.", "lightning.pytorch."))), "")
    return "lightning.pytorch" if ours.startswith("lightning.") else "pytorch_lightning"


@contextmanager
def _in_its_place(model: nn.Module) -> Iterator[None]:
    """Lightning moves a model, drops its gradients and attaches it to the trainer: all is undone."""
    devices = {parameter.device for parameter in model.parameters()}
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    attached = [(module, module._trainer) for module in model.modules() if hasattr(module, "_trainer")]
    try:
        yield
    finally:
        for module, trainer in attached:
            module._trainer = trainer
        if len(devices) == 1:
            model.to(devices.pop())
        for parameter, gradient in gradients:
            parameter.grad = None if gradient is None else gradient.to(parameter.device)


def _open_loader(given: Any, framework: Any, trainer: Any) -> tuple[Any, Any]:
    """Returns the loader, and the data module that it is of, if it is of any."""
    if not hasattr(given, "val_dataloader"):
        return given, None
    if trainer.local_rank == 0:
        given.prepare_data()
    given.setup("validate")
    loaders = given.val_dataloader()
    if isinstance(loaders, (list, tuple)):
        if len(loaders) != 1:
            raise InputError(
                f"{type(given).__name__}.val_dataloader() gives {len(loaders)} loaders; audit them one by one"
            )
        loaders = loaders[0]
    return loaders, given


def _settings(model: nn.Module, source: Source, config: AuditConfig, trainer: Any) -> dict[str, Any]:
    """What has to be the same for an unfinished audit to be gone on with, as plain data."""
    weights = {key: value for key, value in model.state_dict().items() if isinstance(value, Tensor)}
    return {
        **config.asked.describe(),
        "threshold": config.threshold,
        "regions": None if config.regions is None else fingerprint(config.regions),
        "precision": str(trainer.precision),
        **source.settings(),
        "weights": fingerprint(weights),
        "columns": list(COLUMNS),
    }


@contextmanager
def _interruptible(parts: Parts, total: int | None) -> Iterator[None]:
    """Lightning answers an interrupt (Ctrl-C) with an exit and goes on to ignore interrupts: both are undone."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as exit:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, handler)
        raise _interrupted(parts, total) from exit


def _check_complete(source: Source, parts: Parts, runner: Any) -> None:
    if len(parts.done()) < source.total if source.total is not None else not runner.finished:
        raise _interrupted(parts, source.total)


def _interrupted(parts: Parts, total: int | None) -> CamwatchError:
    return CamwatchError(
        f"the audit was interrupted after {len(parts.done())} batches{f' of {total}' if total else ''}; what is "
        f"done lies in {parts.folder}, and the same call goes on with it"
    )


def _write_summary(result: Audit) -> None:
    text = io.StringIO(newline="")
    csv.writer(text).writerows(summary_rows([*result.classes, result.total]))
    write_whole(summary_path(result.table), text.getvalue().encode())


def _draw(result: Audit, runner: Any, trainer: Any, names: Any, denormalize: Any, rgb: Sequence[int]) -> None:
    """Reads the worst images once more, explains them, and draws them."""
    wanted = [row["index"] for row in result.worst]
    pictures: dict[int, Picture] = {}
    with trainer.precision_plugin.forward_context():
        for loaded in runner.source.again(wanted):
            moved = runner.move(trainer.precision_plugin.convert_input(loaded))
            pictures |= pick(runner.examine(moved), wanted)
    bands = len(pictures[wanted[0]][0])
    known = denormalize or find_normalization(runner.source.dataset)
    if known is not None and len(known[0]) not in (1, bands):
        known = None
    counts = result.total.verdicts
    title = (
        f"the {len(pictures)} worst of {result.total.images} images, {result.method} at {result.layer}\n"
        f"in all: {', '.join(f'{count} {verdict}' for verdict, count in counts.items() if count)}"
    )
    assert result.sheet is not None
    draw(result.sheet, result.worst, pictures, names, title, denormalize=known, rgb=rgb)
