"""From what a person annotates (masks, boxes, polygons) to a boolean mask on the image's pixels."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from camwatch.errors import RegionError

Size = tuple[int, int]


def plain(given: Any, where: str) -> Tensor:
    """Returns an annotation as a plain CPU tensor; a tensor subclass is unwrapped."""
    if isinstance(given, Tensor):
        return given.detach().as_subclass(Tensor).cpu()
    array = np.asarray(given)
    if array.dtype.kind not in "biuf":
        raise RegionError(f"{where}: expected a mask or boxes, got {type(given).__name__}")
    return torch.from_numpy(array.copy())


def is_tv(given: Any, name: str) -> bool:
    """Whether this is the named kind of torchvision ``tv_tensor``; nothing is imported to find out."""
    module = sys.modules.get("torchvision.tv_tensors")
    return module is not None and isinstance(given, getattr(module, name))


def rewrap(row: Any, whole: Any) -> Any:
    """Returns a row of boxes with the format that torchvision's indexing drops; all else as it is."""
    if not is_tv(whole, "BoundingBoxes"):
        return row
    from torchvision import tv_tensors

    return tv_tensors.wrap(row[None], like=whole)


def to_mask(given: Any, size: Size, where: str, cut: list[str]) -> Tensor:
    """Turns one image's annotation into a mask.

    A (H, W) or (K, H, W) array of 0 and 1 is a mask (K of them are united); a (4,) or (K, 4) array holds
    boxes x1, y1, x2, y2 in pixels. A torchvision ``BoundingBoxes`` is converted from its own format.

    Args:
        given: The annotation.
        size: (H, W) of the image.
        where: Names the image in errors.
        cut: Receives ``where`` if a box reached beyond the image and was cut off.

    Returns:
        (H, W) bool.

    Raises:
        RegionError: The annotation does not fit the image.
    """
    if is_tv(given, "BoundingBoxes"):
        return _tv_box_mask(given, size, where, cut)
    values = plain(given, where)
    if values.ndim >= 2 and tuple(values.shape[-2:]) == size:
        return _binary(values, where).flatten(0, -3).any(0) if values.ndim > 2 else _binary(values, where)
    if values.ndim in (1, 2) and values.shape[-1] == 4:
        return box_mask(values.reshape(-1, 4), size, where, cut)
    raise RegionError(
        f"{where}: a region of shape {tuple(values.shape)} does not fit an image of {size[0]} x {size[1]} "
        "pixels; valid are masks (H, W) of that size and boxes (K, 4) as x1, y1, x2, y2 in pixels"
    )


def _binary(mask: Tensor, where: str) -> Tensor:
    if mask.dtype == torch.bool:
        return mask
    if not ((mask == 0) | (mask == 1)).all():
        found = torch.unique(mask)
        shown = ", ".join(f"{v:g}" for v in found[:6].tolist()) + (", …" if len(found) > 6 else "")
        raise RegionError(
            f"{where}: the mask holds the values {shown}, so which pixels belong to the region is ambiguous; "
            "pass a boolean mask, such as `mask > 0` or `mask == k` for class id k"
        )
    return mask == 1


def box_mask(boxes: Tensor, size: Size, where: str, cut: list[str]) -> Tensor:
    """Fills boxes (K, 4), x1, y1, x2, y2 in pixels, into a mask.

    Pixel column c covers [c, c + 1), so a box covers the columns [x1, x2), and a column that it covers in
    part counts as covered (edges are rounded outward). A box reaching beyond the image is cut off there.

    Example:
        >>> box_mask(torch.tensor([[1.0, 0.0, 2.5, 1.0]]), (2, 4), "image 0", []).int().tolist()
        [[0, 1, 1, 0], [0, 0, 0, 0]]
    """
    height, width = size
    mask = torch.zeros(size, dtype=torch.bool)
    if boxes.is_floating_point() and len(boxes) and boxes.max() <= 1 and max(size) > 1:
        raise RegionError(
            f"{where}: the box {_shown(boxes[0].tolist())} lies within one pixel, as if its coordinates were "
            f"fractions; multiply by the image's width and height ({width}, {height})"
        )
    for box in boxes.tolist():
        x1, y1, x2, y2 = box
        if not all(map(math.isfinite, box)) or x2 <= x1 or y2 <= y1:
            raise RegionError(
                f"{where}: the box {_shown(box)} is no box; valid is x1, y1, x2, y2 in pixels, "
                "finite, with x1 < x2 and y1 < y2"
            )
        inner = (max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height)))
        kept = max(inner[2] - inner[0], 0) * max(inner[3] - inner[1], 0) / ((x2 - x1) * (y2 - y1))
        if kept < 0.5:
            raise RegionError(
                f"{where}: {'all' if kept == 0 else 'most'} of the box {_shown(box)} lies outside the image, "
                f"which is {width} pixels wide and {height} high; valid is x1, y1, x2, y2 in pixels of the "
                "image as the model gets it"
            )
        if max(abs(a - b) for a, b in zip(box, inner, strict=True)) > 1:
            cut.append(where)
        mask[math.floor(inner[1]) : math.ceil(inner[3]), math.floor(inner[0]) : math.ceil(inner[2])] = True
    return mask


def _shown(box: Sequence[float]) -> str:
    return "(" + ", ".join(f"{v:g}" for v in box) + ")"


def polygon_mask(points: Any, size: Size) -> Tensor:
    """Fills one polygon, (K, 2) or flat x, y, x, y, … in pixels, into a (H, W) mask.

    A pixel belongs to the polygon if its centre does (its area is kept on average, where drawing the outline
    too adds a fifth to a polygon of 16 pixels). What lies beyond the image is cut off.

    Example:
        >>> polygon_mask([1, 0, 3, 0, 3, 2, 1, 2], (3, 4)).int().tolist()
        [[0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]]
    """
    from matplotlib.path import Path

    corners = np.asarray(points, dtype=float).reshape(-1, 2)
    low = np.floor(corners.min(0)).astype(int).clip(0)
    high = np.minimum(np.ceil(corners.max(0)).astype(int), (size[1], size[0])).clip(low)
    x, y = np.meshgrid(np.arange(low[0], high[0]) + 0.5, np.arange(low[1], high[1]) + 0.5)
    inside = Path(corners).contains_points(np.stack([x.ravel(), y.ravel()], axis=1)).reshape(x.shape)
    mask = torch.zeros(size, dtype=torch.bool)
    mask[low[1] : high[1], low[0] : high[0]] = torch.from_numpy(inside)
    return mask


def _tv_box_mask(boxes: Any, size: Size, where: str, cut: list[str]) -> Tensor:
    from torchvision.ops import box_convert

    if tuple(boxes.canvas_size) != size:
        raise RegionError(
            f"{where}: the boxes belong to an image of {tuple(boxes.canvas_size)} pixels (height, width), "
            f"the image given has {size}"
        )
    values, form = plain(boxes, where).reshape(-1, boxes.shape[-1]), boxes.format.value.lower()
    if form in ("xyxy", "xywh", "cxcywh"):
        return box_mask(box_convert(values, form, "xyxy"), size, where, cut)
    corners = box_convert(values.float(), form, "xyxyxyxy")
    masks = [polygon_mask(polygon, size) for polygon in corners]
    return torch.stack(masks).any(0) if masks else torch.zeros(size, dtype=torch.bool)
