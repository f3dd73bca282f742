"""One batch: explained once, measured, and judged image by image."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from camwatch.auditing.source import Loaded
from camwatch.auditing.verdicts import COLUMNS, UNMEASURED, UNREADABLE, Row, judge, why
from camwatch.cam.blank_maps import BlankMapWarning
from camwatch.cam.engine import explain
from camwatch.cam.methods.gradients import Method
from camwatch.cam.model.execution import Forward
from camwatch.cam.model.targets import Target, class_scores, predicted_classes, probabilities, score, two_sided
from camwatch.errors import CamwatchWarning, InputError, RegionError, TargetError
from camwatch.metrics.table import measure
from camwatch.panel.batch import split_sample
from camwatch.regions.annotations import entries, without_empty
from camwatch.regions.regions import Regions

# Under which a batch that is a dictionary may name its images.
ID_KEYS = ("id", "ids", "path", "paths", "file", "files", "filename", "filenames", "file_name", "image_path")


@dataclass(frozen=True, eq=False)
class Recipe:
    """What is done to every batch.

    Attributes:
        layer: Its name, or None: not yet found.
        method: As in ``explain``.
        target: "label", "predicted", a class index, or a callable on the model's output.
        threshold: The least skill of a map that is right.
        unpack: Makes (images, labels[, regions]) of a batch of another shape.
        forward: As in ``explain``.
        regions: One entry per sample, in the place of those in the batches.
    """

    layer: str | None
    method: str | Method
    target: str | int | Callable[[Any], Tensor]
    threshold: float
    unpack: Callable[[Any], Any] | None
    forward: Forward | None
    regions: Sequence[Any] | None


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


def examine(model: nn.Module, loaded: Loaded, recipe: Recipe, name: Callable[[int], str]) -> Examined:
    """Explains and measures one batch.

    Args:
        model: The model; nothing of it changes.
        loaded: The batch, on the model's device.
        recipe: What is done.
        name: Index -> id.

    Raises:
        InputError: The batch, the labels or the model do not fit together.
    """
    if loaded.fault is not None:
        raise InputError(loaded.fault)
    rows = [_row(i, name(i), {"verdict": UNREADABLE, "note": why}) for i, why in loaded.failures.items()]
    if loaded.batch is None:
        return Examined((), rows)
    images, labels, given = split_sample(loaded.batch, recipe.unpack)
    n, size = len(images), (int(images.shape[2]), int(images.shape[3]))
    if n != len(loaded.indices):
        raise InputError(
            f"the loader's collate_fn made {n} images of {len(loaded.indices)} samples, so they cannot be told "
            "apart; return None from the data set for a sample to leave out"
        )
    labels = _check_labels(labels, n, recipe.target)
    if recipe.regions is not None:
        if loaded.indices and loaded.indices[-1] >= len(recipe.regions):
            raise InputError(f"expected one region per sample, got {len(recipe.regions)}, and the loader gives more")
        given = [recipe.regions[i] for i in loaded.indices]
    regions, faulty = _regions(given, n, size)
    own = _own_ids(loaded.batch, n)

    def called(k: int) -> str:
        index = loaded.indices[k]
        known = name(index)
        return known if own is None or known != str(index) else own[k]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BlankMapWarning)  # such a row says "not measurable"
        explanation = explain(
            model,
            images,
            target=_target(recipe.target, labels, partial(_check_range, labels, called)),
            layer=recipe.layer,
            method=recipe.method,
            forward=recipe.forward,
        )
    maps, predicted = explanation.maps.cpu(), predicted_classes(explanation.output).cpu()
    if maps.ndim != 3:
        raise InputError(f"an audit needs one map (h, w) per image, got maps of {tuple(maps.shape)}")
    chances = probabilities(explanation.output).cpu()
    columns: dict[str, list[Any]] = {key: value.tolist() for key, value in measure(maps, regions).items()}
    columns["predicted"] = predicted.tolist()
    columns["probability"] = chances.gather(1, predicted[:, None])[:, 0].tolist()
    if labels is not None:
        _check_range(labels, called, chances.shape[1])
        columns["label"] = [label if label >= 0 else None for label in labels.tolist()]
        columns["label_probability"] = _of_label(chances, labels).tolist()
    for k, index in enumerate(loaded.indices):
        values = {key: column[k] for key, column in columns.items()}
        if not math.isfinite(values["probability"]):
            values |= {"verdict": UNREADABLE, "note": "the model's scores are not finite"}
        else:
            verdict = judge(values.get("label"), values["predicted"], values["skill"], recipe.threshold)
            note = faulty.get(k) or (why(values) if verdict == UNMEASURED else None)
            values |= {"verdict": verdict, "note": note}
        rows.append(_row(index, called(k), values))
    rows.sort(key=lambda row: int(row[0]))
    return Examined(loaded.indices, rows, images, maps, regions)


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


def _check_range(labels: Tensor | None, called: Callable[[int], str], classes: int) -> None:
    assert labels is not None
    worst = int(labels.argmax())
    if int(labels[worst]) >= classes:
        raise TargetError(
            f"sample {called(worst)!r} has label {int(labels[worst])}, but the model scores {classes} "
            f"classes, 0 to {classes - 1}: the model and the data do not belong together"
        )


def _target(target: str | int | Callable[[Any], Tensor], labels: Tensor | None, check: Callable[[int], None]) -> Target:
    if target != "label":
        return target
    assert labels is not None
    known = labels

    def scores(output: Any) -> Tensor:
        check(two_sided(class_scores(output)).shape[1])
        answers = predicted_classes(output)
        wanted = known.to(answers.device)
        return score(output, torch.where(wanted >= 0, wanted, answers))  # -1 stands for an unknown label

    return scores


def _of_label(chances: Tensor, labels: Tensor) -> Tensor:
    return chances.gather(1, labels.clamp(min=0)[:, None])[:, 0].masked_fill(labels < 0, math.nan)


def _regions(given: Any, n: int, size: tuple[int, int]) -> tuple[Regions | None, dict[int, str]]:
    """Makes regions of a batch's; an entry that does not fit its image is left out, and why is returned."""
    if given is None:
        return None, {}
    listed, faulty = entries(given, n), dict[int, str]()
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
    kept = without_empty(listed)
    return None if kept is None else Regions.coerce(kept, len(listed), size)
