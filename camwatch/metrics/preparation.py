"""Maps and regions as rows of cells: what the measures share."""

from __future__ import annotations

import torch
from torch import Tensor

from camwatch.errors import InputError
from camwatch.regions.pooling import area_pool
from camwatch.regions.regions import Regions

NAN = float("nan")


def flatten_maps(maps: Tensor) -> Tensor:
    """Returns (N, h w) in double precision, all NaN where the map is zero or not finite."""
    if maps.ndim != 3:
        raise InputError(f"expected maps of shape (N, h, w), got {tuple(maps.shape)}")
    values = to_double(maps).flatten(1)
    if bool((values < 0).any()):
        raise InputError(
            f"expected non-negative maps, got values down to {values.min().item():.3g}; "
            "pass maps.clamp(min=0), or maps.abs() where the sign does not matter"
        )
    sound = values.isfinite().all(1) & (values > 0).any(1)
    return values.masked_fill(~sound[:, None], NAN)


def pool_regions(maps: Tensor, regions: Tensor | Regions) -> tuple[Tensor, Tensor, Tensor]:
    """Returns maps, their cells' shares inside and their counted shares, each (N, h w).

    A map without mass in the counted cells is all NaN.
    """
    values, inside, counted = flatten_maps(maps), *shares(maps, regions)
    dead = (values * counted).sum(1, keepdim=True) <= 0
    return values.masked_fill(dead, NAN), inside, counted


def shares(maps: Tensor, regions: Tensor | Regions) -> tuple[Tensor, Tensor]:
    """Returns which share of each cell lies inside the region, and which counts, each (N, h w)."""
    masks = regions.allowed if isinstance(regions, Regions) else regions
    if masks.ndim != 3 or len(masks) != len(maps):
        raise InputError(
            f"expected regions of shape ({len(maps)}, H, W) for maps of {tuple(maps.shape)}, got {tuple(masks.shape)}"
        )
    if masks.dtype != torch.bool and not bool(((masks >= 0) & (masks <= 1)).all()):
        raise InputError(
            f"expected regions of bool or of shares in [0, 1], got {masks.dtype} from {masks.min().item():.3g} to "
            f"{masks.max().item():.3g}; pass masks > 0, or masks == k for class id k"
        )
    grid = (maps.shape[-2], maps.shape[-1])
    if isinstance(regions, Regions):
        inside, counted = regions.pooled(grid), regions.considered(grid)
    else:
        inside = area_pool(regions, grid)
        counted = torch.ones_like(inside)
    inside, counted = (to_double(share.to(maps.device)).flatten(1) for share in (inside, counted))
    return torch.minimum(inside, counted), counted


def area_share(maps: Tensor, regions: Tensor | Regions) -> Tensor:
    """Returns (N,): the region's share of the counted area."""
    inside, counted = shares(maps, regions)
    return inside.sum(1) / counted.sum(1)


def cumulative_areas(values: Tensor, inside: Tensor, counted: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the areas inside and outside that lie at or above each value, highest first, from 0 on.

    Both (N, 1 + h w). Tied cells come together: between two corners the curve is a straight line.
    """
    ordered, order = values.sort(descending=True)
    last = torch.ones_like(ordered, dtype=torch.bool)
    last[:, :-1] = ordered[:, :-1] != ordered[:, 1:]
    covered, outside = (
        torch.nn.functional.pad((share.gather(1, order).cumsum(1) * last).cummax(1).values, (1, 0))
        for share in (inside, counted - inside)
    )
    undefined = values.isnan().any(1, keepdim=True)
    return covered.masked_fill(undefined, NAN), outside.masked_fill(undefined, NAN)


def defined(result: Tensor, valid: Tensor) -> Tensor:
    """Returns the result as float32, NaN where it is not valid."""
    return result.masked_fill(~valid, NAN).float()


def to_double(values: Tensor) -> Tensor:
    """Returns doubles, or floats on MPS, which has no doubles."""
    return values.float() if values.device.type == "mps" else values.double()
