"""What a panel is given, checked and copied once: what a caller does to theirs later changes no panel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from camwatch.errors import InputError, PanelError
from camwatch.regions.regions import Regions

Statistics = tuple[tuple[float, ...], tuple[float, ...]]


def own_images(given: Any) -> Tensor:
    """Returns a copy of images (N, C, H, W), floating point and finite, at least one.

    Raises:
        PanelError: They are something else.
    """
    images = _copy(given, "images")
    if images.ndim != 4 or 0 in images.shape:
        raise PanelError(
            f"expected images (N, C, H, W) as the model takes them, at least one, got {tuple(images.shape)}"
        )
    if not images.is_floating_point():
        raise PanelError(
            f"expected floating point images as the model takes them, got {images.dtype}; "
            "scale and normalize them as for training"
        )
    broken = (~images.flatten(1).isfinite().all(1)).nonzero().flatten().tolist()
    if broken:
        raise PanelError(f"images hold NaN or infinite values, the first is image {broken[0]}")
    return images


def own_labels(given: Any, n: int, names: Sequence[str] | None) -> Tensor:
    """Returns a copy of the labels of n images as (N,) int64.

    Raises:
        PanelError: There are more or fewer, or one is no index of a class.
    """
    labels = _copy(given, "labels")
    if tuple(labels.shape) != (n,):
        raise PanelError(f"expected one label per image, {n} in all, got shape {tuple(labels.shape)}")
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise PanelError(f"expected labels that are integers, the classes' indices, got {labels.dtype}")
    valid = "0 and above" if names is None else f"0 to {len(names) - 1}, one for each of the class names"
    wrong = (labels < 0) if names is None else (labels < 0) | (labels >= len(names))
    if wrong.any():
        i = int(wrong.nonzero()[0])
        raise PanelError(f"image {i} has the label {int(labels[i])}; valid is {valid}")
    return labels.long()


def own_regions(given: Any, n: int, size: tuple[int, int]) -> Regions:
    """Returns a copy of the regions of n images of (H, W) pixels.

    Raises:
        RegionError: A region does not fit its image.
    """
    regions = Regions.coerce(given, n, size)
    if regions is not given:  # masks made of what was given
        return regions
    return Regions.from_state({zone: None if v is None else v.clone() for zone, v in regions.state_dict().items()})


def statistics(given: Any, bands: int) -> Statistics:
    """Returns mean and standard deviation, each with one number per band.

    Raises:
        PanelError: There are more or fewer, or a deviation is zero.
    """
    if not isinstance(given, (tuple, list)) or len(given) != 2:
        raise PanelError(f"expected denormalize=(mean, std), got {given!r}")
    mean, std = (tuple(float(v) for v in torch.as_tensor(part, dtype=torch.float64).flatten()) for part in given)
    if {len(mean), len(std)} - {1, bands}:
        raise PanelError(
            f"expected denormalize=(mean, std) with one number for each of {bands} bands, "
            f"got {len(mean)} and {len(std)}"
        )
    if any(v == 0 for v in std):
        raise PanelError(f"a standard deviation of 0 cannot have been divided by, got std={std}")
    return mean * (bands // len(mean)), std * (bands // len(std))


def shown_bands(given: Sequence[int], bands: int) -> tuple[int, int, int]:
    """Returns the three bands to show.

    Raises:
        InputError: There is no such band, or there are not three.
    """
    if len(given) != 3 or (bands > 1 and not all(0 <= band < bands for band in given)):
        raise InputError(f"expected rgb to be three band indices from 0 to {bands - 1}, got {tuple(given)}")
    return int(given[0]), int(given[1]), int(given[2])


def _copy(given: Any, what: str) -> Tensor:
    if isinstance(given, Tensor):
        return given.detach().as_subclass(Tensor).to("cpu", copy=True)
    try:
        return torch.tensor(given)  # copies, unlike as_tensor
    except (TypeError, ValueError, RuntimeError) as error:
        got = f"{type(given).__name__}: {error}"
        raise PanelError(f"expected {what} as a tensor or array, got {got}") from None
