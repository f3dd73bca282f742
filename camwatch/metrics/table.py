"""The table of the numbers about maps, which the watcher and the audit measure."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from camwatch.metrics.agreement import map_similarity
from camwatch.metrics.localization import (
    centre_point,
    centre_prior,
    map_entropy,
    pointing_game,
    region_auroc,
    region_iou,
    relevance_mass_accuracy,
    relevance_rank_accuracy,
)
from camwatch.panel.panel import Panel
from camwatch.regions.regions import Regions

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
    "centre_mass_accuracy",
    "centre_pointing_game",
)


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
    found |= {"map_mass": maps.flatten(1).sum(1), "map_entropy": map_entropy(maps)}
    if regions is None:
        return found
    grid = (int(maps.shape[1]), int(maps.shape[2]))
    # Pooled once for all measures; with an ignore zone they need to know more than the share inside.
    inside = regions if regions.ignore is not None else regions.pooled(grid)
    area, ceiling = regions.area(), regions.ceiling(grid)

    def resolved(share: Tensor) -> Tensor:
        return share.masked_fill(~(ceiling >= LEAST_CEILING), math.nan)

    mass = resolved(relevance_mass_accuracy(maps, inside))
    # What the same regions give to the centre, whatever the image: a score is to be read beside it.
    prior, point = (baseline(1, grid).expand(maps.shape) for baseline in (centre_prior, centre_point))
    found |= {
        "centre_mass_accuracy": resolved(relevance_mass_accuracy(prior, inside)),
        "centre_pointing_game": pointing_game(point, regions),
        "relevance_mass_accuracy": mass,
        "relevance_rank_accuracy": relevance_rank_accuracy(maps, inside),
        "pointing_game": pointing_game(maps, regions),
        "region_iou": region_iou(maps, inside),
        "region_auroc": region_auroc(maps, inside),
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


# Undefined where the region, as the layer's grid sees it, cannot hold half of a perfect map's mass.
LEAST_CEILING = 0.5


def map_measures(maps: Tensor, panel: Panel, reference: Tensor | None) -> dict[str, Tensor]:
    """Measures (N, h, w) maps: each measure is (N,) float32, NaN where it is undefined.

    A region that the grid cannot resolve (ceiling below one half) leaves its image out of the share of the mass.
    """
    grid = (int(maps.shape[1]), int(maps.shape[2]))
    measures = {
        "map_mass": maps.flatten(1).sum(1),
        "map_entropy": map_entropy(maps),
        "map_similarity": map_similarity(maps, maps if reference is None else reference),
    }
    regions = panel.regions
    if regions is None:
        return measures
    ceiling = regions.ceiling(grid)
    unresolved = ~(ceiling >= LEAST_CEILING)
    mass = relevance_mass_accuracy(maps, regions)
    measures |= {
        "relevance_mass_accuracy": mass.masked_fill(unresolved, math.nan),
        "relevance_rank_accuracy": relevance_rank_accuracy(maps, regions),
        "pointing_game": pointing_game(maps, regions),
        "region_auroc": region_auroc(maps, regions),
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
