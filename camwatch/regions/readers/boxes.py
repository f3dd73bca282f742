"""A CSV file of boxes, one a line, without classes."""

from __future__ import annotations

import csv
from collections import defaultdict
from functools import partial
from pathlib import Path

import torch

from camwatch.errors import RegionError
from camwatch.regions.readers.base import FileRegions, Shape

COLUMNS = ("file", "x1", "y1", "x2", "y2")


def read(path: str | Path) -> FileRegions:
    """Reads a file with the columns ``file,x1,y1,x2,y2``, in pixels of the image; others are passed over.

    Raises:
        RegionError: A column is missing, or a line holds no four numbers.
    """
    boxes: dict[str, list[Shape]] = defaultdict(list)
    with open(path, newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        columns = reader.fieldnames or ()
        if not set(COLUMNS) <= set(columns):
            raise RegionError(f"{path}: expected the columns {','.join(COLUMNS)}, got {','.join(columns)}")
        for row in reader:
            try:
                box = torch.tensor([float(row[key]) for key in COLUMNS[1:]])
            except (TypeError, ValueError):
                raise RegionError(f"{path}, line {reader.line_num}: {row} holds no box of four numbers") from None
            boxes[row["file"]].append(Shape((), box))
    return FileRegions({name: partial(list, found) for name, found in boxes.items()})
