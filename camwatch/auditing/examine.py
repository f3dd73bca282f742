"""One batch: explained once, measured, and judged image by image."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from camwatch import metrics
from camwatch.auditing.source import Loaded
from camwatch.cam.engine import BlankMapWarning, Forward, explain
from camwatch.cam.methods import Method
from camwatch.cam.targets import Target, class_scores, predicted_classes, probabilities, score, two_sided
from camwatch.errors import CamwatchWarning, InputError, RegionError, TargetError
from camwatch.regions import Regions
from camwatch.regions.annotations import entries, without_empty
from camwatch.sampling.batch import split_sample

RIGHT, WRONG_REASON, WRONG = "right", "right for the wrong reason", "wrong"
UNMEASURED, UNREADABLE = "not measurable", "unreadable"
VERDICTS = (RIGHT, WRONG_REASON, WRONG, UNMEASURED, UNREADABLE)
MEASURES = (
    "relevance_mass_accuracy",
    "relevance_rank_accuracy",
    "pointing_game",
    "region_iou",
    "region_auroc",
    "lift",
    "skill",
    "map_entropy",
    "map_mass",
    "region_area",
    "region_ceiling",
    "forbidden_mass",
)
COLUMNS = ("index", "id", "label", "predicted", "probability", "label_probability", *MEASURES, "verdict", "note")
Row = list[Any]

# Undefined where the region, as the layer's grid sees it, cannot hold half of a perfect map's mass.
LEAST_CEILING = 0.5


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
        given = [recipe.regions[i] for i in loaded.indices]
    regions, faulty = _regions(given, n, size)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BlankMapWarning)  # such a row says "not measurable"
        explanation = explain(
            model,
            images,
            target=_target(recipe.target, labels, partial(_check_range, labels, loaded.indices, name)),
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
        _check_range(labels, loaded.indices, name, chances.shape[1])
        columns["label"] = [label if label >= 0 else None for label in labels.tolist()]
        columns["label_probability"] = _of_label(chances, labels).tolist()
    for k, index in enumerate(loaded.indices):
        values = {key: column[k] for key, column in columns.items()}
        if not math.isfinite(values["probability"]):
            values |= {"verdict": UNREADABLE, "note": "the model's scores are not finite"}
        else:
            verdict = judge(values.get("label"), values["predicted"], values["skill"], recipe.threshold)
            note = faulty.get(k) or (_why(values) if verdict == UNMEASURED else None)
            values |= {"verdict": verdict, "note": note}
        rows.append(_row(index, name(index), values))
    rows.sort(key=lambda row: int(row[0]))
    return Examined(loaded.indices, rows, images, maps, regions)


def judge(label: int | None, predicted: int, skill: float, threshold: float = 0.0) -> str:
    """Returns an image's verdict.

    An answer is right for the wrong reason where the map has no more inside the region than the threshold
    asks: at 0, no more than a map that looks everywhere; 1 would be all of it.

    Example:
        >>> judge(3, 3, 0.4), judge(3, 3, -0.1), judge(3, 5, 0.4), judge(3, 3, float("nan"))
        ('right', 'right for the wrong reason', 'wrong', 'not measurable')
    """
    if label is None:
        return UNMEASURED
    if label != predicted:
        return WRONG
    if math.isnan(skill):
        return UNMEASURED
    return RIGHT if skill > threshold else WRONG_REASON


def measure(maps: Tensor, regions: Regions | None) -> dict[str, Tensor]:
    """Measures (N, h, w) maps: name -> (N,) float32, NaN where undefined.

    Where the grid cannot resolve the region (ceiling below one half) the share of the mass is undefined, and
    what follows from it.

    Example:
        >>> measure(torch.ones(1, 2, 2), Regions.coerce([[(0, 0, 2, 4)]], 1, (4, 4)))["lift"]
        tensor([1.])
    """
    nothing = torch.full((len(maps),), math.nan)
    found = dict.fromkeys(MEASURES, nothing)
    found |= {"map_mass": maps.flatten(1).sum(1), "map_entropy": metrics.map_entropy(maps)}
    if regions is None:
        return found
    grid = (int(maps.shape[1]), int(maps.shape[2]))
    # Pooled once for all measures; with an ignore zone they need to know more than the share inside.
    inside = regions if regions.ignore is not None else regions.pooled(grid)
    area, ceiling = regions.area(), regions.ceiling(grid)
    mass = metrics.relevance_mass_accuracy(maps, inside).masked_fill(~(ceiling >= LEAST_CEILING), math.nan)
    found |= {
        "relevance_mass_accuracy": mass,
        "relevance_rank_accuracy": metrics.relevance_rank_accuracy(maps, inside),
        "pointing_game": metrics.pointing_game(maps, regions),
        "region_iou": metrics.region_iou(maps, inside),
        "region_auroc": metrics.region_auroc(maps, inside),
        "lift": mass / area,
        "skill": ((mass - area) / (1 - area)).masked_fill(~(area < 1), math.nan),
        "region_area": area,
        "region_ceiling": ceiling,
    }
    if regions.forbidden is not None:
        forbidden = regions.pooled(grid, "forbidden")
        share = (maps * forbidden).flatten(1).sum(1) / (maps * regions.considered(grid)).flatten(1).sum(1)
        found["forbidden_mass"] = share.masked_fill(~forbidden.flatten(1).any(1), math.nan)
    return found


def _row(index: int, name: str, values: Mapping[str, Any]) -> Row:
    known = {"index": index, "id": name, **values}
    return [_plain(known.get(column)) for column in COLUMNS]


def _why(values: Mapping[str, Any]) -> str:
    """Says why an image is not measurable."""
    if values.get("label") is None:
        return "no label"
    if math.isnan(values["region_area"]):
        return "no region"
    if values["region_ceiling"] < LEAST_CEILING:
        return "the region is too small for the layer's grid"
    return "the region is the whole image" if values["region_area"] >= 1 else "the map shows nothing"


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


def _check_range(labels: Tensor | None, indices: Sequence[int], name: Callable[[int], str], classes: int) -> None:
    assert labels is not None
    worst = int(labels.argmax())
    if int(labels[worst]) >= classes:
        raise TargetError(
            f"sample {name(indices[worst])!r} has label {int(labels[worst])}, but the model scores {classes} "
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
