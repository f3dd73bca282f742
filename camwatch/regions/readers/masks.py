"""Mask images: one PNG per image, whose pixel values are classes (VOC, ADE20K, trimaps, binary masks)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import torch

from camwatch.errors import RegionError
from camwatch.regions.readers.base import Class, FileRegions, Shape


def read(
    path: str | Path,
    class_ids: Mapping[Class, int] | None = None,
    zones: Mapping[Class, str] | None = None,
    per_class: bool = False,
    suffix: str = "",
    pattern: str = "*.png",
) -> FileRegions:
    """Reads a folder of mask images, or one of them.

    Classes are called by pixel value (of a palette image: by index); 0 is no class unless it is named in
    ``class_ids`` or ``zones``. Oxford-IIIT Pet's trimaps, where 1 is the pet, 2 the background and 3 the
    border, are read with ``class_ids={1: 0}, zones={3: "ignore"}``; VOC's with its classes and
    ``zones={255: "ignore"}``.

    Args:
        path: The folder or file.
        class_ids: See ``camwatch.regions.readers``.
        zones: See there.
        per_class: See there.
        suffix: What the mask's name has behind the image's, as in ``"_mask"``. Names are without extension.
        pattern: Which files of the folder are masks.

    Raises:
        RegionError: There is no file, one has several bands, or one holds several values and neither
            ``class_ids`` nor ``zones`` says what they mean.
    """
    path = Path(path)
    sources = sorted(path.glob(pattern)) if path.is_dir() else [path]
    named: set[Class] = {*(class_ids or ()), *(zones or ())}
    files: dict[str, Callable[[], list[Shape]]] = {
        source.stem.removesuffix(suffix): partial(_shapes, source, named)
        for source in sources
        if source.stem.endswith(suffix)
    }
    if not files:
        raise RegionError(f"{path}: found no file {pattern} whose name ends in {suffix!r}")
    return FileRegions(files, class_ids, zones, per_class)


def read_binary(path: str | Path) -> FileRegions:
    """Reads a folder of masks, ``<name>.png`` or ``<class>/<name>.png``: any pixel above 0 is the region.

    Images are called as their masks, without suffix. One whose mask is empty has no region.
    """
    path = Path(path)
    sources = [*path.glob("*.png"), *path.glob("*/*.png")]
    return FileRegions(
        {source.relative_to(path).with_suffix("").as_posix(): partial(_above_zero, source) for source in sources}
    )


def _above_zero(source: Path) -> list[Shape]:
    from PIL import Image

    with Image.open(source) as file:
        mask = torch.from_numpy(np.array(file.convert("L")) > 0)
    return [Shape((), mask)] if bool(mask.any()) else []


def _shapes(source: Path, named: set[Class]) -> list[Shape]:
    from PIL import Image

    with Image.open(source) as file:
        values = np.array(file)
    if values.ndim != 2:
        raise RegionError(f"{source}: expected a mask with one band, got an image of shape {values.shape}")
    found = [int(value) for value in np.unique(values) if value != 0 or 0 in named]
    if not named and len(found) > 1:
        raise RegionError(
            f"{source}: the mask holds the values {', '.join(map(str, found[:6]))}, so which of them are the "
            "region is ambiguous; say so by class_ids={value: class} or zones={value: zone}"
        )
    return [Shape((value,), torch.from_numpy(values == value)) for value in found]
