"""What the measures of a snapshot add up to, and what they are before anything was measured."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from camwatch.run import (
    Recipe,
)

SPLIT = ("relevance_mass_accuracy", "pointing_game", "map_entropy")


PROBES = ("hide", "hide_elsewhere", "swap_context", "swap_region", "swap_confusion", "swaps")


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
