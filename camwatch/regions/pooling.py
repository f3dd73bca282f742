"""Pooling of a region to the grid of a map, by area."""

from __future__ import annotations

import torch
from torch import Tensor

from camwatch.errors import RegionError


def area_pool(masks: Tensor, grid: tuple[int, int]) -> Tensor:
    """Returns the share of each grid cell's area that the mask covers.

    A cell covers H/h x W/w pixels of the mask, whole or in part; each pixel counts by the area that lies in
    the cell. So the total area is kept on every grid: the mean of the result is the mean of the mask, also
    where H is no multiple of h (unlike adaptive pooling, whose windows overlap) and where the grid is finer
    than the mask.

    Args:
        masks: (N, H, W) bool, or numbers in [0, 1].
        grid: (h, w) of the map.

    Returns:
        (N, h, w) float32.

    Raises:
        RegionError: The masks are not (N, H, W), or they or the grid have no cells.

    Example:
        >>> area_pool(torch.tensor([[[1, 0, 0]]]), (1, 2))
        tensor([[[0.6667, 0.0000]]])
    """
    if masks.ndim != 3 or 0 in masks.shape[1:] or min(grid) < 1:
        raise RegionError(
            f"expected masks of shape (N, H, W) and a grid (h, w) of at least 1x1, "
            f"got masks of {tuple(masks.shape)} and the grid {tuple(grid)}"
        )
    if masks.shape[1:] == tuple(grid):
        return masks.float()
    # Doubles: float products are at the mercy of autocast and of the TF32 setting. MPS has no doubles.
    device = torch.device("cpu") if masks.device.type == "mps" else masks.device
    rows, columns = (_overlap(n, cells, device) for n, cells in zip(masks.shape[1:], grid, strict=True))
    return (rows @ masks.to(device, torch.float64) @ columns.T).clamp(0, 1).float().to(masks.device)


def _overlap(pixels: int, cells: int, device: torch.device) -> Tensor:
    """Returns (cells, pixels) float64: which share of a cell's length lies on which pixel."""
    # In units of 1 / (pixels * cells) of the side every edge is an integer, so the overlaps are exact.
    cell = torch.arange(cells, device=device)[:, None] * pixels
    pixel = torch.arange(pixels, device=device)[None, :] * cells
    shared = torch.minimum(cell + pixels, pixel + cells) - torch.maximum(cell, pixel)
    return shared.clamp(min=0).double() / pixels
