"""Measuring one snapshot: one of the two places that decide when a forward pass runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from camwatch.measures import measure_layers, panel_means
from camwatch.panel.panel import Panel
from camwatch.parallel import Share
from camwatch.probes.table import Asked, Ledger, measure_probes
from camwatch.records import Snapshot
from camwatch.run import RunConfig, explain_images, shared_predict

BEST = 5  # classes that are recorded with their probabilities


@dataclass(frozen=True)
class Moment:
    """Where in the training a snapshot stands; the fields are those of ``Snapshot``."""

    epoch: int
    global_step: int
    look: int
    planned: int | None
    averaged: bool = False


def measure(
    model: nn.Module,
    config: RunConfig,
    panel: Panel,
    moment: Moment,
    *,
    reference: Mapping[str, Tensor],
    probes: bool,
    share: Share,
    batch_size: int,
) -> Snapshot:
    """Explains the panel and measures what the maps and the answers say.

    Args:
        model: The model as it is now; nothing of it changes.
        config: What is asked of it.
        panel: The images.
        moment: For the record.
        reference: Layer -> maps of the first snapshot, empty at the first one.
        probes: Whether the behavioural tests are run as well.
        share: This process's part of the work.
        batch_size: Images per forward pass.
    """
    found = _explained(model, config, panel, share, batch_size)
    maps, labels = {name: found[f"maps/{i}"] for i, name in enumerate(config.layers)}, panel.labels
    predicted, chances = found["predicted"], found["chances"]
    right = None if labels is None else predicted == labels

    per_image = measure_layers(maps, config.layers, panel.regions, reference)
    if labels is not None and right is not None:
        per_image["label_probability"] = chances.gather(1, labels[:, None])[:, 0]
        per_image["correct"] = right.float()
    ledger = Ledger()
    if probes and panel.regions is not None and labels is not None:
        grid = (int(found["maps/0"].shape[1]), int(found["maps/0"].shape[2]))
        run = shared_predict(model, config, share, batch_size)
        per_image |= measure_probes(Asked(run, panel, grid, right, batch_size, config.chances, ledger))
    best = chances.topk(min(BEST, chances.shape[1]), dim=1)
    return Snapshot(
        **vars(moment),
        labels=predicted if labels is None else labels,
        predicted=predicted,
        probability=chances.gather(1, predicted[:, None])[:, 0],
        per_image=per_image,
        scalars=panel_means(per_image, right),
        maps=maps,
        predicted_maps={name: found[f"predicted/{i}"] for i, name in enumerate(config.layers)},
        top_classes=best.indices,
        top_probabilities=best.values,
        pastes=ledger.pastes(),
    )


def _explained(model: nn.Module, config: RunConfig, panel: Panel, share: Share, batch_size: int) -> dict[str, Tensor]:
    """Explains the panel, each process its share of it."""

    def explain_rows(rows: Tensor) -> dict[str, Tensor]:
        labels = None if panel.labels is None else panel.labels[rows]
        answers = explain_images(model, config, panel.images[rows], labels, also_predicted=True, batch_size=batch_size)
        found = {f"maps/{i}": maps for i, maps in enumerate(answers.maps)}
        found |= {f"predicted/{i}": maps for i, maps in enumerate(answers.predicted_maps)}
        return found | {"predicted": answers.predicted, "chances": answers.chances}

    return share.gather_rows(len(panel), explain_rows)


def failed(panel: Panel, moment: Moment, error: Exception) -> Snapshot:
    """Returns the record of a snapshot that could not be measured."""
    nothing = torch.full((len(panel),), -1, dtype=torch.int64)
    labels = nothing if panel.labels is None else panel.labels
    unknown = torch.full((len(panel),), torch.nan)
    reason = f"{type(error).__name__}: {error}"
    return Snapshot(**vars(moment), labels=labels, predicted=nothing, probability=unknown, error=reason)
