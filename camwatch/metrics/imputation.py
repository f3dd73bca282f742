"""Pixels taken away: in which order, and what is put in their place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from camwatch.errors import InputError, unknown
from camwatch.metrics.preparation import flatten_maps

Fill: TypeAlias = Literal["zero", "mean", "blur"] | Callable[[Tensor], Tensor]


# Offset of a neighbour -> its weight, 1/6 beside and 1/12 across.
_NEIGHBOURS = {(dy, dx): 1 / (6 * max(1, abs(dy) + abs(dx))) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if dy or dx}


def pixel_ranks(images: Tensor, maps: Tensor) -> tuple[Tensor, Tensor]:
    """Returns each pixel's rank in its map, 0 the highest, (N, H W), and which maps are sound."""
    values, sound = upsampled(images, maps)
    shuffle = torch.randperm(values.shape[1] * values.shape[2], generator=torch.Generator().manual_seed(0)).to(
        images.device
    )
    order = shuffle[values.flatten(1)[:, shuffle].argsort(dim=1, descending=True, stable=True)]
    return order.argsort(1), sound


def upsampled(images: Tensor, maps: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the maps at the images' size with a maximum of 1, (N, H, W), and which are sound."""
    if images.ndim != 4 or len(images) != len(maps):
        raise InputError(
            f"expected images (N, C, H, W) and as many maps (N, h, w), "
            f"got {tuple(images.shape)} and {tuple(maps.shape)}"
        )
    values = flatten_maps(maps).view(maps.shape).to(images.device)
    sound = ~values.flatten(1).isnan().any(1)
    values = (values / values.amax((1, 2), keepdim=True)).nan_to_num(0.0).float()
    size = (images.shape[2], images.shape[3])
    large = F.interpolate(values[:, None], size, mode="bilinear", align_corners=False)[:, 0]
    return large / large.amax((1, 2), keepdim=True).clamp(min=1e-12), sound


def filled(images: Tensor, fill: Fill) -> Tensor:
    """Returns what the images' pixels are replaced by where they are taken away."""
    if callable(fill):
        result = fill(images)
        if result.shape != images.shape:
            raise InputError(f"the fill returned {tuple(result.shape)} for images of {tuple(images.shape)}")
        return result
    if fill == "zero":
        return torch.zeros_like(images)
    if fill == "mean":
        return images.mean((2, 3), keepdim=True).expand_as(images)
    if fill == "blur":
        return _blur(images, max(images.shape[2:]) / 20)
    raise InputError(unknown("fill", fill, ("zero", "mean", "blur")))


def _blur(images: Tensor, sigma: float) -> Tensor:
    reach = max(1, round(3 * sigma))
    weights = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, device=images.device) / sigma) ** 2).to(images)
    channels = images.shape[1]
    kernel = (weights / weights.sum()).expand(channels, 1, 1, -1)
    padded = F.pad(images, (reach,) * 4, mode="replicate")
    return F.conv2d(F.conv2d(padded, kernel, groups=channels), kernel.mT, groups=channels)


def impute_linearly(image: Tensor, missing: Tensor, noise: float, generator: torch.Generator) -> Tensor:
    """Returns the image with its missing pixels imputed.

    Each missing pixel is the weighted mean of its eight neighbours, missing ones included: one sparse linear
    system, the same for all channels. Noise then hides that imputed pixels are smoother than others.

    Args:
        image: (C, H, W).
        missing: (H, W) bool. At least one pixel must be left.
        noise: Standard deviation of the noise, in units of the image.
        generator: On the CPU, for the noise.

    Source: Rong et al., ICML 2022, section 4.
    """
    import numpy as np
    from scipy.sparse import csr_matrix
    from scipy.sparse.linalg import splu

    height, width = missing.shape
    hole = missing.cpu().numpy()
    rows, columns = np.nonzero(hole)
    if not len(rows):
        return image.clone()
    known = image.detach().cpu().double().numpy()
    number = np.cumsum(hole).reshape(hole.shape) - 1
    diagonal = np.zeros(len(rows))
    right = np.zeros((len(rows), len(known)))
    entries = []
    for (dy, dx), weight in _NEIGHBOURS.items():
        y, x = rows + dy, columns + dx
        equation = np.nonzero((y >= 0) & (y < height) & (x >= 0) & (x < width))[0]
        y, x = y[equation], x[equation]
        diagonal[equation] += weight
        is_hole = hole[y, x]
        entries.append((equation[is_hole], number[y, x][is_hole], np.full(is_hole.sum(), -weight)))
        right[equation[~is_hole]] += weight * known[:, y[~is_hole], x[~is_hole]].T
    entries.append((np.arange(len(rows)), np.arange(len(rows)), diagonal))
    equations, unknowns, weights = (np.concatenate(part) for part in zip(*entries, strict=True))
    system = csr_matrix((weights, (equations, unknowns)), shape=(len(rows), len(rows))).tocsc()
    solved = torch.from_numpy(splu(system, permc_spec="MMD_AT_PLUS_A").solve(right).T)
    solved = solved + noise * torch.randn(solved.shape, generator=generator, dtype=solved.dtype)
    result = image.clone()
    result[:, missing] = solved.to(result)
    return result
