"""One map from several layers' maps, and what maps of different grids need to be put together."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from camwatch.errors import InputError, unknown

FUSIONS = ("max", "mean", "product")
INTERPOLATION = {1: "linear", 2: "bilinear", 3: "trilinear"}  # by the number of the grid's axes


def check_fusion(how: str | None) -> None:
    """Raises InputError for an unknown way to fuse."""
    if how is not None and how not in FUSIONS:
        raise InputError(unknown("fusion", how, FUSIONS))


def fuse(maps: list[Tensor], how: str, axes: int = 2) -> Tensor:
    """Scales each layer's maps to [0, 1], upsamples them to the finest grid, and takes their mean, max or product.

    The mean shows what any layer sees, the max the strongest, the product what all agree on. A blank map counts 0;
    one that is not finite stays so.

    Args:
        maps: (N[, K], *grid) for each layer.
        how: "mean", "max" or "product".
        axes: Number of the grid's axes.

    Example:
        >>> fuse([torch.tensor([[0.0, 2.0]]), torch.tensor([[4.0, 0.0]])], "mean", axes=1)
        tensor([[0.5000, 0.5000]])
    """
    check_fusion(how)
    finest = tuple(max(extents) for extents in zip(*(m.shape[-axes:] for m in maps), strict=True))
    leading = maps[0].shape[:-axes]
    scaled = [unit(m.reshape(-1, 1, *m.shape[-axes:])) for m in maps]
    mode = INTERPOLATION[axes]
    layers = torch.stack([functional.interpolate(m, finest, mode=mode, align_corners=False) for m in scaled])
    fused = {"mean": layers.mean(0), "max": layers.amax(0), "product": layers.prod(0)}[how]
    return fused.reshape(*leading, *finest)


def unit(masks: Tensor) -> Tensor:
    """Scales each channel's map in (N, C, *size) to [0, 1]; a constant one becomes 0."""
    axes = tuple(range(2, masks.ndim))
    low, high = masks.amin(axes, keepdim=True), masks.amax(axes, keepdim=True)
    return torch.where(high == low, 0.0, (masks - low) / (high - low))
