"""Pascal VOC XML: boxes. http://host.robots.ox.ac.uk/pascal/VOC/ (its masks: readers.masks)"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

import torch

from camwatch.errors import RegionError
from camwatch.regions.readers.base import Class, FileRegions, Shape


def read(
    path: str | Path,
    class_ids: Mapping[Class, int] | None = None,
    zones: Mapping[Class, str] | None = None,
    per_class: bool = False,
    origin: int = 1,
) -> FileRegions:
    """Reads a folder of XML files, or one of them.

    Classes are called by name. An image is called as its XML file, with the suffix of the ``filename`` in it.

    Args:
        path: The folder or file.
        class_ids: See ``camwatch.regions.readers``.
        zones: See there.
        per_class: See there.
        origin: The coordinate of the first pixel. VOC's is 1, and xmax is the last pixel inside, so that a
            box covers the columns [xmin - 1, xmax). With 0 the numbers are taken as edges, [xmin, xmax).

    Raises:
        RegionError: There is no XML file, or one is no annotation.
    """
    path = Path(path)
    sources = sorted(path.glob("*.xml")) if path.is_dir() else [path]
    if not sources:
        raise RegionError(f"{path}: expected a folder with .xml files, found none")
    files: dict[str, Callable[[], list[Shape]]] = {}
    for source in sources:
        try:
            root = ElementTree.parse(source).getroot()
        except ElementTree.ParseError as error:
            raise RegionError(f"{source}: expected VOC's XML, which this is not ({error})") from None
        if root.tag != "annotation":
            raise RegionError(f"{source}: expected the root element annotation, got {root.tag}")
        name = source.stem + Path(root.findtext("filename") or "").suffix
        files[name] = partial(_shapes, root, source, origin)
    return FileRegions(files, class_ids, zones, per_class)


def _shapes(root: ElementTree.Element, source: Path, origin: int) -> list[Shape]:
    shapes = []
    for found in root.iter("object"):
        edges = [found.findtext(f"bndbox/{edge}") for edge in ("xmin", "ymin", "xmax", "ymax")]
        try:
            box = torch.tensor([float(edge or "") for edge in edges])
        except ValueError:
            raise RegionError(f"{source}: expected xmin, ymin, xmax, ymax of an object, got {edges}") from None
        shapes.append(Shape((found.findtext("name") or "",), box - torch.tensor([origin, origin, 0, 0])))
    return shapes
