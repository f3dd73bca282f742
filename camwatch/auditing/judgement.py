"""The numbers of an image's map and the verdict on it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from camwatch import metrics
from camwatch.regions import Regions

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
    "centre_mass_accuracy",
    "centre_pointing_game",
)
COLUMNS = ("index", "id", "label", "predicted", "probability", "label_probability", *MEASURES, "verdict", "note")
Row = list[Any]

# Undefined where the region, as the layer's grid sees it, cannot hold half of a perfect map's mass.
LEAST_CEILING = 0.5


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

    def resolved(share: Tensor) -> Tensor:
        return share.masked_fill(~(ceiling >= LEAST_CEILING), math.nan)

    mass = resolved(metrics.relevance_mass_accuracy(maps, inside))
    # What the same regions give to the centre, whatever the image: a score is to be read beside it.
    prior, point = (baseline(1, grid).expand(maps.shape) for baseline in (metrics.centre_prior, metrics.centre_point))
    found |= {
        "centre_mass_accuracy": resolved(metrics.relevance_mass_accuracy(prior, inside)),
        "centre_pointing_game": metrics.pointing_game(point, regions),
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


def why(values: Mapping[str, Any]) -> str:
    """Says why an image is not measurable.

    Example:
        >>> why({"label": 3, "region_area": math.nan})
        'no region'
    """
    if values.get("label") is None:
        return "no label"
    if math.isnan(values["region_area"]):
        return "no region"
    if values["region_ceiling"] < LEAST_CEILING:
        return "the region is too small for the layer's grid"
    if values["region_area"] >= 1:
        return "the region is the whole image"
    return "the map shows nothing" if math.isfinite(values["map_mass"]) else "the map is not finite"
