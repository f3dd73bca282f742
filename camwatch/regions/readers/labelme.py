"""LabelMe JSON: polygons, rectangles (oriented ones too), circles and masks. https://github.com/wkentaro/labelme"""

from __future__ import annotations

import base64
import io
import math
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np
import torch
from torch import Tensor

from camwatch.errors import CamwatchWarning, RegionError
from camwatch.regions.readers.base import Class, FileRegions, Shape, load_json
from camwatch.regions.shapes import box_mask, polygon_mask

POLYGONS = ("oriented_rectangle", "polygon", "rotation")


def read(
    path: str | Path,
    class_ids: Mapping[Class, int] | None = None,
    zones: Mapping[Class, str] | None = None,
    per_class: bool = False,
) -> FileRegions:
    """Reads a folder of JSON files, or one of them.

    Classes are called by name. An image is called as its JSON file, with the suffix of the ``imagePath`` in
    it. Points and lines have no area: they are left out with a warning.

    Args:
        path: The folder or file.
        class_ids: See ``camwatch.regions.readers``.
        zones: See there.
        per_class: See there.

    Raises:
        RegionError: There is no JSON file, or one is no annotation.
    """
    path = Path(path)
    sources = sorted(path.glob("*.json")) if path.is_dir() else [path]
    if not sources:
        raise RegionError(f"{path}: expected a folder with .json files, found none")
    files: dict[str, Callable[[], list[Shape]]] = {}
    for source in sources:
        content = load_json(source, "LabelMe", {"imageHeight", "imageWidth", "shapes"})
        name = source.stem + PureWindowsPath(content.get("imagePath") or "").suffix
        files[name] = partial(_shapes, content["shapes"], (content["imageHeight"], content["imageWidth"]), source)
    return FileRegions(files, class_ids, zones, per_class)


def _shapes(found: list[dict[str, Any]], size: tuple[int, int], source: Path) -> list[Shape]:
    masks = [(shape, _mask(shape, size, source)) for shape in found]
    flat = sorted({str(shape.get("shape_type")) for shape, mask in masks if mask is None})
    if flat:
        warnings.warn(f"{source}: left out shapes without an area, {', '.join(flat)}", CamwatchWarning, stacklevel=4)
    return [Shape((shape["label"],), mask) for shape, mask in masks if mask is not None]


def _mask(shape: dict[str, Any], size: tuple[int, int], source: Path) -> Tensor | None:
    points = np.asarray(shape["points"], dtype=float).reshape(-1, 2)
    kind = shape.get("shape_type") or "polygon"
    if len(points) < 2:
        return None
    low, high = points.min(0), points.max(0)
    if kind in POLYGONS and len(points) > 2:
        return polygon_mask(points, size)
    if kind == "rectangle":
        return box_mask(torch.tensor([[*low, *high]]), size, str(source), [])
    if kind == "circle":  # its centre, and a point on it
        radius = math.dist(*points.tolist())
        turn = np.linspace(0, 2 * np.pi, 361)[:-1]
        return polygon_mask(points[0] + radius * np.stack([np.cos(turn), np.sin(turn)], axis=1), size)
    if kind == "mask" and shape.get("mask"):  # a PNG of the part between its two points, both inside
        from PIL import Image

        part = torch.from_numpy(np.array(Image.open(io.BytesIO(base64.b64decode(shape["mask"]))))) > 0
        mask, (x, y) = torch.zeros(size, dtype=torch.bool), low.astype(int)
        mask[y : y + part.shape[0], x : x + part.shape[1]] = part
        return mask
    return None
