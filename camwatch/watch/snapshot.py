"""Measuring one snapshot: one of the two places that decide when a forward pass runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from camwatch.measures import panel_means
from camwatch.metrics.table import map_measures
from camwatch.parallel import Share
from camwatch.probes.table import measure as measure_probes
from camwatch.records import Snapshot
from camwatch.run import (
    Recipe,
    _explain_rows,
    shared_predict,
)


@dataclass(frozen=True, eq=False)
class Measured:
    """A snapshot, and what is needed to draw it.

    Attributes:
        snapshot: The record.
        predicted_maps: Layer -> (N, h, w) maps of the predicted class, NaN where it is the explained one.
    """

    snapshot: Snapshot
    predicted_maps: Mapping[str, Tensor]


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
        per_image.update(measure_probes(run, panel.images, labels, panel.regions, grid, right, recipe.batch_size))
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
