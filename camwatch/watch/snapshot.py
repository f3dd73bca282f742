"""Measuring one snapshot: one of the two places that decide when a forward pass runs."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from camwatch import metrics, probe
from camwatch.cam.dispatch import needs_layer
from camwatch.cam.engine import BlankMapWarning, Forward, explain, layers, predict
from camwatch.cam.explanation import concatenate
from camwatch.cam.layers import Layer
from camwatch.cam.methods.gradients import Method
from camwatch.cam.targets import predicted_classes, probabilities, score
from camwatch.errors import InputError, LayerError, TargetError
from camwatch.panel import Panel
from camwatch.records import Snapshot
from camwatch.watch.share import Share

PanelTarget = str | int | Callable[[Any], Tensor]

# Undefined where the region, as the layer's grid sees it, cannot hold half of a perfect map's mass.
LEAST_CEILING = 0.5
SPLIT = ("relevance_mass_accuracy", "pointing_game", "map_entropy")
PROBES = ("hide", "hide_elsewhere", "swap_context", "swap_region", "swap_confusion", "swaps")


@dataclass(frozen=True, eq=False)
class Measured:
    """A snapshot, and what is needed to draw it.

    Attributes:
        snapshot: The record.
        predicted_maps: Layer -> (N, h, w) maps of the predicted class, NaN where it is the explained one.
    """

    snapshot: Snapshot
    predicted_maps: Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class Recipe:
    """What every snapshot of a run measures, and how; checked once, before training.

    Attributes:
        panel: The images.
        layers: Names of the layers; the first one's measures are the run's.
        method: As in ``explain``.
        target: "label", "predicted", a class index, or a callable on the model's output for the whole batch.
        forward: As in ``explain``.
        batch_size: Images per forward pass.
    """

    panel: Panel
    layers: tuple[str, ...]
    method: str | Method
    target: PanelTarget
    forward: Forward | None
    batch_size: int = 32

    def with_batch_size(self, batch_size: int) -> Recipe:
        """Returns the same recipe with smaller batches."""
        return Recipe(self.panel, self.layers, self.method, self.target, self.forward, batch_size)


def write_recipe(
    model: nn.Module,
    panel: Panel,
    layer: str | list[str] | tuple[str, ...] | None,
    method: str | Method,
    target: PanelTarget,
    forward: Forward | None,
) -> Recipe:
    """Resolves and checks everything that a snapshot needs, on the panel's first image.

    Raises:
        InputError: The target, a layer, the method or the labels do not fit the model; the message says why.
    """
    if target == "label" and panel.labels is None:
        raise TargetError("target='label' needs a panel with labels; pass labels, or target='predicted'")
    if layer is not None and not isinstance(layer, str) and not len(layer):
        raise LayerError("layer is an empty sequence; pass None for the default layer, a name, or several names")
    if layer is not None:
        if not needs_layer(method):
            raise InputError(
                f"the method {method!r} explains the image itself, no layer: leave layer= out, got {layer!r}"
            )
        names = (layer,) if isinstance(layer, str) else tuple(layer)
    elif needs_layer(method):
        names = (_default(layers(model, panel.images[:1], forward=forward)).name,)
    else:
        names = ("input",)
    recipe = Recipe(panel, names, method, target, forward)
    classes = predict(model, panel.images[:1], forward=forward).shape[1]
    _check_classes(panel, max(classes, 2), target)
    first = torch.zeros(1, dtype=torch.long)
    _explain_rows(model, recipe, first)
    return recipe


def _default(found: list[Layer]) -> Layer:
    return next(one for one in found if one.default)


def _check_classes(panel: Panel, classes: int, target: PanelTarget) -> None:
    if panel.labels is not None and int(panel.labels.max()) >= classes:
        worst = int(panel.labels.argmax())
        raise TargetError(
            f"panel image {worst} has label {int(panel.labels[worst])}, but the model scores {classes} classes, "
            f"0 to {classes - 1}"
        )
    if isinstance(target, int) and not 0 <= target < classes:
        raise TargetError(f"target {target} is out of range: the model scores {classes} classes, 0 to {classes - 1}")


def measure(
    model: nn.Module,
    recipe: Recipe,
    *,
    epoch: int,
    global_step: int,
    look: int,
    planned: int | None,
    reference: Mapping[str, Tensor],
    probes: bool,
    averaged: bool = False,
    share: Share | None = None,
) -> Measured:
    """Explains the panel and measures what the maps and the answers say.

    Args:
        model: The model as it is now; nothing of it changes.
        recipe: What is measured.
        epoch: For the record.
        global_step: For the record.
        look: Position in the history.
        planned: Number of snapshots that the schedule will take; None where unknown.
        reference: Layer -> maps of the first snapshot, empty at the first one.
        probes: Whether the behavioural tests are run as well.
        averaged: Whether the weights are averaged ones.
        share: This process's part of the work.
    """
    share = share or Share()
    panel, n = recipe.panel, len(recipe.panel)
    raw = share.map(n, lambda rows: _explain_rows(model, recipe, rows))
    maps = {name: raw.pop(f"maps/{i}") for i, name in enumerate(recipe.layers)}
    others = {name: raw.pop(f"others/{i}") for i, name in enumerate(recipe.layers)}
    predicted, labels = raw["predicted"], panel.labels
    known = labels if labels is not None else predicted
    right = predicted == known

    per_image: dict[str, Tensor] = {}
    for i, name in enumerate(recipe.layers):
        prefix = "" if i == 0 else f"{name}/"
        measures = map_measures(maps[name], panel, reference.get(name))
        per_image.update({f"{prefix}{key}": value for key, value in measures.items()})
    if labels is not None:
        per_image["label_probability"] = raw["label_probability"]
        per_image["correct"] = right.float()
    if probes and panel.regions is not None and labels is not None:
        grid = (int(maps[recipe.layers[0]].shape[1]), int(maps[recipe.layers[0]].shape[2]))
        run = shared_predict(model, recipe, share)
        per_image.update(probe.measure(run, panel.images, labels, panel.regions, grid, right, recipe.batch_size))
    snapshot = Snapshot(
        epoch=epoch,
        global_step=global_step,
        look=look,
        planned=planned,
        labels=known,
        predicted=predicted,
        probability=raw["probability"],
        per_image=per_image,
        scalars=panel_means(per_image, right if labels is not None else None),
        maps=maps,
        averaged=averaged,
    )
    return Measured(snapshot, others)


def _explain_rows(model: nn.Module, recipe: Recipe, rows: Tensor) -> dict[str, Tensor]:
    """Explains some images twice in one forward pass: for the target and for the predicted class."""
    panel, target = recipe.panel, recipe.target
    batches = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BlankMapWarning)  # a blank map is counted in the record
        for batch in torch.split(rows, recipe.batch_size):
            run = partial(
                explain,
                model,
                panel.images[batch],
                target=_both(target, panel.labels[batch] if panel.labels is not None else None),
                method=recipe.method,
                forward=recipe.forward,
            )
            batches.append(run(layer=list(recipe.layers)) if needs_layer(recipe.method) else [run()])
    found = [concatenate(list(parts)) for parts in zip(*batches, strict=True)]
    labels = panel.labels[rows] if panel.labels is not None else None
    output = found[0].output
    predicted, chances = predicted_classes(output).cpu(), probabilities(output).cpu()
    explained = {"label": labels, "predicted": predicted}.get(target) if isinstance(target, str) else None
    if isinstance(target, int):
        explained = torch.full_like(predicted, target)
    result = {"predicted": predicted, "probability": chances.gather(1, predicted[:, None])[:, 0]}
    if labels is not None:
        result["label_probability"] = chances.gather(1, labels[:, None])[:, 0]
    for i, explanation in enumerate(found):
        maps = explanation.maps.cpu()
        if maps.ndim != 4:
            raise InputError(
                f"layer {explanation.layer!r} has a grid of {maps.ndim - 2} axes; a panel is watched on images, "
                f"with maps (N, h, w)"
            )
        result[f"maps/{i}"] = maps[:, 0]
        same = torch.ones_like(predicted, dtype=torch.bool) if explained is None else explained == predicted
        result[f"others/{i}"] = maps[:, 1].masked_fill(same[:, None, None], math.nan)
    return result


def _both(target: PanelTarget, labels: Tensor | None) -> Callable[[Any], Tensor]:
    """Returns a target (N, 2): what is to be explained, and the class predicted at the first call."""
    answers: Tensor | None = None

    def scores(output: Any) -> Tensor:
        nonlocal answers
        if answers is None:
            answers = predicted_classes(output)
        wanted = {"label": labels, "predicted": answers}[target] if isinstance(target, str) else target
        assert wanted is not None  # 'label' without labels was refused with the recipe
        return torch.stack([score(output, wanted), score(output, answers)], dim=1)

    return scores


def shared_predict(model: nn.Module, recipe: Recipe, share: Share) -> Callable[[Tensor], Tensor]:
    """Returns a function from images to class scores, whose work the processes share."""

    def run(images: Tensor) -> Tensor:
        def rows_of(rows: Tensor) -> dict[str, Tensor]:
            return {"scores": predict(model, images[rows], forward=recipe.forward)}

        return share.map(len(images), rows_of)["scores"]

    return run


def map_measures(maps: Tensor, panel: Panel, reference: Tensor | None) -> dict[str, Tensor]:
    """Measures (N, h, w) maps: each measure is (N,) float32, NaN where it is undefined.

    A region that the grid cannot resolve (ceiling below one half) leaves its image out of the share of the mass.
    """
    grid = (int(maps.shape[1]), int(maps.shape[2]))
    measures = {
        "map_mass": maps.flatten(1).sum(1),
        "map_entropy": metrics.map_entropy(maps),
        "map_similarity": metrics.map_similarity(maps, maps if reference is None else reference),
    }
    regions = panel.regions
    if regions is None:
        return measures
    ceiling = regions.ceiling(grid)
    unresolved = ~(ceiling >= LEAST_CEILING)
    mass = metrics.relevance_mass_accuracy(maps, regions)
    measures |= {
        "relevance_mass_accuracy": mass.masked_fill(unresolved, math.nan),
        "relevance_rank_accuracy": metrics.relevance_rank_accuracy(maps, regions),
        "pointing_game": metrics.pointing_game(maps, regions),
        "region_auroc": metrics.region_auroc(maps, regions),
        "region_area": regions.area(),
        "region_ceiling": ceiling,
    }
    if regions.forbidden is not None:
        forbidden = regions.pooled(grid, "forbidden")
        counted = (maps * regions.considered(grid)).flatten(1).sum(1)
        share = (maps * forbidden).flatten(1).sum(1) / counted
        annotated = forbidden.flatten(1).any(1)
        measures["forbidden_mass"] = share.masked_fill(~annotated, math.nan)
        measures["forbidden_area"] = forbidden.flatten(1).mean(1).masked_fill(~annotated, math.nan)
    return measures


def panel_means(per_image: Mapping[str, Tensor], right: Tensor | None) -> dict[str, float]:
    """Returns the mean over the images where a measure is defined, for some also of right and wrong ones apart.

    Example:
        >>> panel_means({"pointing_game": torch.tensor([1.0, float("nan"), 0.0])}, torch.tensor([True, True, False]))
        {'pointing_game': 0.5, 'pointing_game/right': 1.0, 'pointing_game/wrong': 0.0}
    """
    means: dict[str, float] = {}
    for name, values in per_image.items():
        if name.rsplit("/", 1)[-1] == "map_mass":
            prefix = name.removesuffix("map_mass")
            means[f"{prefix}blank_maps"] = float((~(values > 0)).float().mean())
        groups = {"": torch.ones_like(values, dtype=torch.bool)}
        if right is not None and name.rsplit("/", 1)[-1] in SPLIT:
            groups |= {"/right": right, "/wrong": ~right}
        for suffix, members in groups.items():
            mean = float(values[members].nanmean())
            if math.isfinite(mean):
                means[f"{name}{suffix}"] = mean
    return means


def expected(recipe: Recipe, probes: bool) -> dict[str, float]:
    """Returns the scalars that snapshots of this recipe can have, with what an uninformative map would have.

    Whoever monitors one of them finds it before it is first measured.
    """
    panel = recipe.panel
    every = {"map_mass": 0.0, "map_entropy": 1.0, "map_similarity": 1.0, "blank_maps": 0.0}
    if panel.regions is not None:
        area = float(panel.regions.area().nanmean())
        every |= dict.fromkeys(("relevance_mass_accuracy", "relevance_rank_accuracy", "pointing_game"), area)
        every |= {"region_auroc": 0.5, "region_area": area, "region_ceiling": 1.0}
        if panel.regions.forbidden is not None:
            every |= dict.fromkeys(("forbidden_mass", "forbidden_area"), float(panel.regions.forbidden.float().mean()))
    if panel.labels is not None:
        every |= {f"{key}/{group}": every[key] for key in SPLIT if key in every for group in ("right", "wrong")}
    prefixes = ["", *(f"{name}/" for name in recipe.layers[1:])]
    found = {f"{prefix}{key}": value for prefix in prefixes for key, value in every.items()}
    if panel.labels is not None:
        found |= {"correct": 0.0, "label_probability": 0.0}
        if probes and panel.regions is not None:
            found |= dict.fromkeys(PROBES, 0.0)
    return found
