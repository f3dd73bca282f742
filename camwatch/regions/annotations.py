"""What a person gives as regions, taken apart: one entry per image, one mask per zone."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from camwatch.errors import CamwatchWarning, RegionError, unknown
from camwatch.regions.shapes import plain, rewrap, to_mask

ZONES = ("allowed", "forbidden", "ignore")


def per_image_regions(given: Any, n: int) -> list[Any]:
    """Returns what was given for n images as a list with one entry per image.

    Raises:
        RegionError: There are more or fewer than images, or the type is unknown.

    Example:
        >>> per_image_regions({"forbidden": [None, [(0, 0, 2, 2)]]}, 2)
        [{'forbidden': None}, {'forbidden': [(0, 0, 2, 2)]}]
    """
    if isinstance(given, Mapping):
        for zone in given:
            _check_zone(zone, "the regions")
        zones = {zone: per_image_regions(value, n) for zone, value in given.items() if value is not None}
        return [{zone: column[i] for zone, column in zones.items()} for i in range(n)]
    if not hasattr(given, "__getitem__") or not hasattr(given, "__len__"):
        raise RegionError(
            f"regions cannot be made of {type(given).__name__}; valid are masks (N, H, W), a list with a "
            "mask, boxes or None per image, or a dictionary of zones"
        )
    if getattr(given, "ndim", 1) == 0 or len(given) != n:
        shape = tuple(given.shape) if hasattr(given, "shape") else len(given)
        raise RegionError(f"expected one region per image, {n} in all, got {type(given).__name__} of {shape}")
    return [rewrap(given[i], given) for i in range(n)]


def zone_masks(entry: Any, size: tuple[int, int], where: str, cut: list[str]) -> dict[str, Tensor | None]:
    """Returns one image's (H, W) masks by zone; ``allowed`` is None exactly where nothing is annotated.

    Args:
        entry: One entry of a list as ``Regions.coerce`` takes it.
        size: (H, W) of the image.
        where: Names the image in errors.
        cut: Receives ``where`` if a box reached beyond the image and was cut off.
    """
    if hasattr(entry, "annotated"):  # Regions of one image
        given_zones = {zone: getattr(entry, zone) for zone in ZONES}
        entry = {zone: v[0] for zone, v in given_zones.items() if v is not None and v.any()}
    elif not isinstance(entry, Mapping):
        entry = {"allowed": entry}
    masks: dict[str, Tensor | None] = dict.fromkeys(ZONES)
    for zone, given in entry.items():
        _check_zone(zone, where)
        masks[zone] = None if given is None else to_mask(given, size, where, cut)
    if masks["allowed"] is None and masks["forbidden"] is not None:
        masks["allowed"] = torch.ones(size, dtype=torch.bool)
    return masks


def warn_cut(cut: Sequence[str], n: int) -> None:
    """Warns once that boxes reached beyond some of n images."""
    if cut:
        warnings.warn(
            f"boxes reach beyond {len(set(cut))} of {n} images and were cut off at the border, the first on {cut[0]}",
            CamwatchWarning,
            stacklevel=4,
        )


def _check_zone(zone: Any, where: str) -> None:
    if zone not in ZONES:
        raise RegionError(f"{where}: {unknown('zone', zone, ZONES)}")


def drop_empty(given: Sequence[Any]) -> list[Any] | None:
    """Returns entries with None for those that hold no pixel and no box, with a warning; None if none is left.

    For regions that come out of a data set or a random crop, where no person can leave them out beforehand.
    """
    kept = [None if entry is None or _is_empty(entry) else entry for entry in given]
    lost = [i for i, entry in enumerate(given) if entry is not None and kept[i] is None]
    if lost:
        warnings.warn(
            f"{len(lost)} of {len(given)} panel images have an empty region and count as not annotated, "
            f"the first is image {lost[0]}",
            CamwatchWarning,
            stacklevel=4,
        )
    return None if all(entry is None for entry in kept) else kept


def _is_empty(entry: Any) -> bool:
    if hasattr(entry, "annotated"):
        return not bool(entry.annotated.any())
    if isinstance(entry, Mapping):
        return entry.get("allowed") is not None and _is_empty(entry["allowed"])
    return not bool(plain(entry, "the region").any())
