"""COCO JSON: boxes, polygons and run-length encoded masks. https://cocodataset.org/#format-data"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from camwatch.errors import RegionError, UnsupportedError
from camwatch.regions.readers.base import Class, FileRegions, Shape, load_json
from camwatch.regions.shapes import box_mask


def read(
    path: str | Path,
    class_ids: Mapping[Class, int] | None = None,
    zones: Mapping[Class, str] | None = None,
    per_class: bool = False,
    boxes: bool = False,
) -> FileRegions:
    """Reads an instances file.

    Classes are called by category id or name. Crowds (``iscrowd``) become the ignore zone. Masks need
    pycocotools; an object without a segmentation counts by its box.

    Args:
        path: The JSON file.
        class_ids: See ``camwatch.regions.readers``.
        zones: See there.
        per_class: See there.
        boxes: Use the bounding boxes instead of the masks.

    Raises:
        RegionError: The file is no instances file.
        UnsupportedError: Masks are wanted and pycocotools is not installed.
    """
    content = load_json(Path(path), "COCO", {"annotations", "images"})
    names = {category["id"]: category["name"] for category in content.get("categories", [])}

    def called(category: Any) -> tuple[Class, ...]:
        return (category, names[category]) if category in names else (category,)

    grouped: dict[Any, list[dict[str, Any]]] = {}
    for annotation in content["annotations"]:
        grouped.setdefault(annotation["image_id"], []).append(annotation)
    if not boxes and any(annotation.get("segmentation") for annotation in content["annotations"]):
        _decoder()  # what is missing is said now, not at the first image

    def shapes_of(image: dict[str, Any]) -> Callable[[], list[Shape]]:
        def load() -> list[Shape]:
            return [
                Shape(
                    called(found["category_id"]),
                    _corners(found) if boxes else _mask(found, image),
                    "ignore" if found.get("iscrowd") else "allowed",
                )
                for found in grouped.get(image["id"], [])
            ]

        return load

    files = {image["file_name"]: shapes_of(image) for image in content["images"]}
    return FileRegions(files, class_ids, zones, per_class)


def _corners(annotation: dict[str, Any]) -> Tensor:
    x, y, width, height = (float(v) for v in annotation["bbox"])
    return torch.tensor([x, y, x + width, y + height])


def _mask(annotation: dict[str, Any], image: dict[str, Any]) -> Tensor:
    given = annotation.get("segmentation")
    if isinstance(given, list):  # a part of fewer than three points has no area
        given = [part for part in given if len(part) >= 6]
    size = (int(image["height"]), int(image["width"]))
    if not given:
        return box_mask(_corners(annotation)[None], size, str(image["file_name"]), [])
    decoder = _decoder()
    try:
        if isinstance(given, list):
            encoded = decoder.merge(decoder.frPyObjects(given, *size))
        else:
            encoded = decoder.frPyObjects(given, *size) if isinstance(given["counts"], list) else given
        mask = torch.from_numpy(decoder.decode(encoded)).bool()
    except (KeyError, TypeError, ValueError) as error:
        name = f"{image['file_name']}, annotation {annotation.get('id')}"
        raise RegionError(f"{name}: pycocotools cannot read its segmentation ({error})") from error
    if tuple(mask.shape) != size:
        raise RegionError(f"{image['file_name']}: a mask of {tuple(mask.shape)} on an image of {size} pixels")
    return mask


def _decoder() -> Any:
    try:
        from pycocotools import mask
    except ImportError:
        raise UnsupportedError(
            "COCO's masks are read by pycocotools, which is not installed: pip install 'camwatch[coco]', "
            "or pass boxes=True"
        ) from None
    return mask
