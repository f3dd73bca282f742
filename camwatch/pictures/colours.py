"""Images and heatmaps in colours, for the eye; statistics never come from here.

Pure functions on tensors. Every tensor made here names its dtype, because another thread may have changed
the process-wide default.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from camwatch.errors import InputError, unknown

Colour = tuple[int, int, int]


Denormalize = tuple[Sequence[float], Sequence[float]]


def heatmaps(maps: Tensor, size: tuple[int, int], peak: Tensor | None = None) -> Tensor:
    """Scales maps to [0, 1] and brings them to the size of the image.

    Each map is divided by its maximum and upsampled bilinearly. The minimum is not subtracted: a floor that
    covers the whole image stays visible as a floor. A map that is zero, or holds a NaN, gives zeros.

    Args:
        maps: (..., h, w) raw non-negative maps.
        size: (H, W) in pixels.
        peak: (...) what to divide by instead of each map's maximum, to show several maps on one scale.

    Returns:
        (..., H, W) float32 in [0, 1].

    Example:
        >>> heatmaps(torch.tensor([[[2.0, 4.0]]]), (1, 2))
        tensor([[[0.5000, 1.0000]]])
    """
    maps = maps.detach().to(torch.float32)
    peak = maps.amax((-2, -1)) if peak is None else peak.to(torch.float32)
    usable = maps.isfinite().all(-1).all(-1) & (peak > 0)
    scaled = torch.where(usable[..., None, None], maps / peak[..., None, None], 0.0)
    flat = scaled.reshape(-1, 1, *maps.shape[-2:])
    upsampled = F.interpolate(flat, size=size, mode="bilinear", align_corners=False)
    return upsampled.clamp(0, 1).reshape(*maps.shape[:-2], *size)


def colorize(values: Tensor, colormap: str = "jet") -> Tensor:
    """Maps values in [0, 1] to the colours of a matplotlib colormap.

    Args:
        values: (..., H, W).
        colormap: The name of any matplotlib colormap.

    Returns:
        (..., 3, H, W) float32 in [0, 1].

    Raises:
        InputError: The colormap is unknown; near names are offered.

    Example:
        >>> colorize(torch.tensor([[0.0, 1.0]]), "gray").flatten().tolist()
        [0.0, 1.0, 0.0, 1.0, 0.0, 1.0]
    """
    index = (values.clamp(0, 1) * 255).round().to(torch.int32)
    bands = _colour_table(colormap).to(values.device).unbind(1)
    # Whole planes, and not by indexing: four times as fast.
    return torch.stack([band.index_select(0, index.flatten()).reshape(index.shape) for band in bands], -3)


@lru_cache(maxsize=32)
def _colour_table(name: str) -> Tensor:
    import matplotlib
    import numpy as np

    if name not in matplotlib.colormaps:
        raise InputError(unknown("colormap", name, matplotlib.colormaps))
    colours = np.asarray(matplotlib.colormaps[name](np.linspace(0, 1, 256)), dtype=np.float32)
    return torch.from_numpy(colours[:, :3].copy())


def overlay(images_rgb: Tensor, heatmaps: Tensor, alpha: float = 0.5, colormap: str = "jet") -> Tensor:
    """Lays coloured heatmaps over images.

    Args:
        images_rgb: (N, 3, H, W) float in [0, 1].
        heatmaps: (N, H, W) in [0, 1].
        alpha: Weight of the heatmap's colour; 0 shows the image alone.
        colormap: The name of any matplotlib colormap.

    Returns:
        (N, 3, H, W) uint8.

    Example:
        >>> overlay(torch.zeros(1, 3, 1, 1), torch.ones(1, 1, 1), alpha=0.5, colormap="gray").flatten()
        tensor([128, 128, 128], dtype=torch.uint8)
    """
    if not 0 <= alpha <= 1:
        raise InputError(f"alpha must lie in [0, 1], got {alpha}")
    return to_uint8(torch.lerp(images_rgb.to(torch.float32), colorize(heatmaps, colormap), alpha))


def true_colours(images: Tensor, denormalize: Denormalize | None = None, rgb: Sequence[int] = (0, 1, 2)) -> Tensor:
    """Turns images as the model takes them into images as people see them.

    Args:
        images: (N, C, H, W), float as the model takes them, or uint8.
        denormalize: (mean, std) of the normalization, per band or one value for all. None stretches each
            image between its own minimum and maximum (uint8 images are taken as they are).
        rgb: The three bands to show as red, green and blue. One band, or an image of one band, is repeated.

    Returns:
        (N, 3, H, W) float32 in [0, 1].

    Raises:
        InputError: A band does not exist, or the normalization has another number of bands.

    Example:
        >>> true_colours(torch.full((1, 1, 1, 1), -1.0), ([0.5], [0.25])).flatten()
        tensor([0.2500, 0.2500, 0.2500])
    """
    bands = images.shape[1]
    chosen = [0] if bands == 1 else list(rgb)
    if len(chosen) not in (1, 3) or not all(-bands <= band < bands for band in chosen):
        raise InputError(f"rgb={tuple(rgb)} must name one or three of the images' {bands} bands (0 to {bands - 1})")
    shown = images.detach().to(torch.float32)
    if denormalize is not None:
        mean, std = (_per_band(v, name, shown) for v, name in zip(denormalize, ("mean", "std"), strict=True))
        shown = shown * std + mean
    elif images.dtype == torch.uint8:
        shown = shown / 255
    shown = shown[:, chosen * (3 // len(chosen))].nan_to_num()
    if denormalize is None and images.dtype != torch.uint8:
        low, high = (f(shown, (1, 2, 3), keepdim=True) for f in (torch.amin, torch.amax))
        shown = torch.where(high > low, (shown - low) / (high - low), shown)
    return shown.clamp(0, 1)


def _per_band(values: Any, name: str, images: Tensor) -> Tensor:
    bands = torch.as_tensor(values, dtype=torch.float32, device=images.device).flatten()
    if len(bands) not in (1, images.shape[1]):
        raise InputError(f"denormalize: {name} has {len(bands)} values, the images have {images.shape[1]} bands")
    return bands[:, None, None]


def to_uint8(images: Tensor) -> Tensor:
    """Rounds images in [0, 1] to 0 … 255.

    Example:
        >>> to_uint8(torch.tensor([0.0, 0.5, 1.0]))
        tensor([  0, 128, 255], dtype=torch.uint8)
    """
    return images.clamp(0, 1).mul_(255).add_(0.5).to(torch.uint8)
