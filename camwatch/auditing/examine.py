"""One batch: explained once, measured, and judged image by image."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from camwatch.auditing.source import LoadedBatch
from camwatch.auditing.verdicts import COLUMNS, UNMEASURED, UNREADABLE, Row, judge, why
from camwatch.errors import CamwatchWarning, InputError, RegionError, TargetError
from camwatch.metrics.table import AUDITED, measure_maps
from camwatch.panel.batch import split_sample
from camwatch.regions.annotations import drop_empty, per_image_regions
from camwatch.regions.regions import Regions
from camwatch.run import Answers, RunConfig, explain_images

# Under which a batch that is a dictionary may name its images.
ID_KEYS = ("id", "ids", "path", "paths", "file", "files", "filename", "filenames", "file_name", "image_path")


@dataclass(frozen=True, eq=False)
class AuditConfig:
    """What is done to every batch.

    Attributes:
        asked: What is asked of the model.
        threshold: The least skill of a map that is right.
        regions: One entry per sample, in the place of those in the batches.
    """

    asked: RunConfig
    threshold: float = 0.0
    regions: Sequence[Any] | None = None


@dataclass(frozen=True, eq=False)
class Examined:
    """One batch, explained.

    Attributes:
        indices: Of the samples, (N,).
        rows: One per sample, and one per sample that could not be read; see ``COLUMNS``.
        images: (N, C, H, W) as the model took them; None where none could be read.
        maps: (N, h, w) raw, on the CPU.
        regions: Of the images, None where none has any.
    """

    indices: tuple[int, ...]
    rows: list[Row]
    images: Tensor | None = None
    maps: Tensor | None = None
    regions: Regions | None = None


def examine(model: nn.Module, loaded: LoadedBatch, config: AuditConfig, name: Callable[[int], str]) -> Examined:
    """Explains and measures one batch.

    Args:
        model: The model; nothing of it changes.
        loaded: The batch, on the model's device.
        config: What is done.
        name: Index -> id.

    Raises:
        InputError: The batch, the labels or the model do not fit together.
    """
    if loaded.fault is not None:
        raise InputError(loaded.fault)
    rows = [_row(i, name(i), {"verdict": UNREADABLE, "note": why}) for i, why in loaded.failures.items()]
    if loaded.batch is None:
        return Examined((), rows)
    images, labels, given = split_sample(loaded.batch, config.asked.unpack)
    if len(images) != len(loaded.indices):
        raise InputError(
            f"the loader's collate_fn made {len(images)} images of {len(loaded.indices)} samples, so they cannot be "
            "told apart; return None from the data set for a sample to leave out"
        )
    labels = _check_labels(labels, len(images), config.asked.target)
    regions, faulty = _regions(_given(config, loaded, given), len(images), (int(images.shape[2]), int(images.shape[3])))
    called = _names(loaded, name)
    answers = explain_images(model, config.asked, images, labels, name=lambda k: f"sample {called[k]!r}")
    columns = _columns(answers, labels, regions)
    for k, index in enumerate(loaded.indices):
        values = {key: column[k] for key, column in columns.items()}
        rows.append(_row(index, called[k], values | _verdict(values, config.threshold, faulty.get(k))))
    rows.sort(key=lambda row: int(row[0]))
    return Examined(loaded.indices, rows, images, answers.maps[0], regions)


def _given(config: AuditConfig, loaded: LoadedBatch, regions: Any) -> Any:
    """Returns a batch's regions: those of its samples, where all were handed over, or its own."""
    if config.regions is None:
        return regions
    if loaded.indices and loaded.indices[-1] >= len(config.regions):
        raise InputError(f"expected one region per sample, got {len(config.regions)}, and the loader gives more")
    return [config.regions[i] for i in loaded.indices]


def _names(loaded: LoadedBatch, name: Callable[[int], str]) -> list[str]:
    """Returns one name per sample: the data set's, or the batch's own where that knows no more than the index."""
    own = _own_ids(loaded.batch, len(loaded.indices)) or [str(index) for index in loaded.indices]
    return [own[k] if name(index) == str(index) else name(index) for k, index in enumerate(loaded.indices)]


def _columns(answers: Answers, labels: Tensor | None, regions: Regions | None) -> dict[str, list[Any]]:
    maps = answers.maps[0]
    columns: dict[str, list[Any]] = {key: [math.nan] * len(maps) for key in AUDITED}
    columns |= {key: values.tolist() for key, values in measure_maps(maps, regions, names=AUDITED).items()}
    columns["predicted"] = answers.predicted.tolist()
    columns["probability"] = answers.chances.gather(1, answers.predicted[:, None])[:, 0].tolist()
    if labels is not None:
        columns["label"] = [label if label >= 0 else None for label in labels.tolist()]
        columns["label_probability"] = answers.of_labels(labels).tolist()
    return columns


def _verdict(values: Mapping[str, Any], threshold: float, fault: str | None) -> dict[str, Any]:
    if not math.isfinite(values["probability"]):
        return {"verdict": UNREADABLE, "note": "the model's scores are not finite"}
    verdict = judge(values.get("label"), values["predicted"], values["skill"], threshold)
    return {"verdict": verdict, "note": fault or (why(values) if verdict == UNMEASURED else None)}


def _own_ids(batch: Any, n: int) -> list[str] | None:
    """The names that a batch carries beside its n images: paths or ids, all different."""
    if isinstance(batch, Mapping):
        known = {str(key).lower(): value for key, value in batch.items()}
        found = [known[key] for key in ID_KEYS if key in known]
    else:
        found = list(batch[1:]) if isinstance(batch, (list, tuple)) else []
    for names in found:
        named = isinstance(names, (list, tuple)) and all(isinstance(name, (str, os.PathLike)) for name in names)
        if named and n == len(names) == len(set(names)):
            return [os.fspath(name) for name in names]
    return None


def _row(index: int, name: str, values: Mapping[str, Any]) -> Row:
    known = {"index": index, "id": name, **values}
    return [_plain(known.get(column)) for column in COLUMNS]


def _plain(value: Any) -> Any:
    if not isinstance(value, float):
        return value
    return float(f"{value:.6g}") if math.isfinite(value) else None


def _check_labels(labels: Tensor | None, n: int, target: Any) -> Tensor | None:
    if labels is None:
        if target == "label":
            raise TargetError(
                "target='label' needs batches with labels, and none were found; pass target='predicted', or "
                "unpack=callable(batch) -> (images, labels[, regions])"
            )
        return None
    if tuple(labels.shape) != (n,) or labels.is_floating_point():
        raise TargetError(
            f"an audit needs one class per image: expected integer labels of shape ({n},), got {labels.dtype} of "
            f"{tuple(labels.shape)}; make them so with unpack=callable(batch) -> (images, labels[, regions])"
        )
    return labels.cpu()


def _regions(given: Any, n: int, size: tuple[int, int]) -> tuple[Regions | None, dict[int, str]]:
    """Makes regions of a batch's; an entry that does not fit its image is left out, and why is returned."""
    if given is None:
        return None, {}
    listed, faulty = per_image_regions(given, n), dict[int, str]()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CamwatchWarning)  # such rows say "not measurable"
        try:
            return _coerce(listed, size), {}
        except RegionError:
            for i, entry in enumerate(listed):
                try:
                    _coerce([entry], size)
                except RegionError as error:
                    listed[i], faulty[i] = None, str(error).removeprefix("image 0: ")
            return _coerce(listed, size), faulty


def _coerce(listed: list[Any], size: tuple[int, int]) -> Regions | None:
    kept = drop_empty(listed)
    return None if kept is None else Regions.coerce(kept, len(listed), size)
