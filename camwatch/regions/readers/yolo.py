"""YOLO txt: boxes and segmentation polygons as shares of the image, one text file per image."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path

import torch

from camwatch.errors import RegionError
from camwatch.regions.readers.base import Class, FileRegions, Shape
from camwatch.regions.shapes import box_mask, polygon_mask


def read(
    path: str | Path,
    images: str | Path | Iterable[str | Path],
    class_ids: Mapping[Class, int] | None = None,
    zones: Mapping[Class, str] | None = None,
    per_class: bool = False,
) -> FileRegions:
    """Reads a folder of label files.

    A line is ``class cx cy width height``, with or without a confidence behind it, or
    ``class x1 y1 x2 y2 x3 y3 …`` for a polygon (an oriented box is one too). Classes are called by their number.

    Args:
        path: The folder with one .txt per image.
        images: The images, or their folder, whose sizes turn shares into pixels.
        class_ids: See ``camwatch.regions.readers``.
        zones: See there.
        per_class: See there.

    Raises:
        RegionError: No image has a label file, or a line is none of the two.
    """
    if isinstance(images, (str, Path)):
        images = sorted(Path(images).iterdir())
    pictures = [Path(image) for image in images if Path(image).suffix != ".txt"]  # both may share a folder
    sources = {image: Path(path) / f"{image.stem}.txt" for image in pictures}
    files: dict[str, Callable[[], list[Shape]]] = {
        image.name: partial(_shapes, image, source) for image, source in sources.items() if source.is_file()
    }
    if not files:
        raise RegionError(f"{path}: no .txt file has the name of one of the {len(sources)} images")
    return FileRegions(files, class_ids, zones, per_class)


def _shapes(image: Path, source: Path) -> list[Shape]:
    from PIL import Image

    with Image.open(image) as file:
        width, height = file.size
    shapes = []
    for number, line in enumerate(source.read_text().splitlines(), 1):
        if not (words := line.split()):
            continue
        try:
            kind, values = int(words[0]), torch.tensor([float(word) for word in words[1:]])
        except ValueError:
            kind, values = -1, torch.empty(0)
        scale = torch.tensor([width, height])
        if len(values) in (4, 5):
            centre, extent = values[:2] * scale, values[2:4] * scale
            box = torch.cat([centre - extent / 2, centre + extent / 2])
            # shares are written with few digits: what is off by less than 1/100 pixel lies on the edge
            edge = torch.where((box - box.round()).abs() < 0.01, box.round(), box)
            mask = box_mask(edge[None], (height, width), f"{source}, line {number}", [])
        elif len(values) >= 6 and len(values) % 2 == 0:
            mask = polygon_mask(values.reshape(-1, 2) * scale, (height, width))
        else:
            raise RegionError(
                f"{source}, line {number}: expected class cx cy width height, or class and at least three "
                f"points, got {line!r}"
            )
        shapes.append(Shape((kind,), mask))
    return shapes
