"""The table of annotation formats: what a path holds is found out, and what is none of them is said."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from camwatch.errors import RegionError
from camwatch.regions import Regions
from camwatch.regions.readers.formats import FORMATS, read_regions

SIZE = (6, 8)


def coco(path: Path) -> Path:
    (path / "a.json").write_text(
        '{"images": [{"id": 1, "file_name": "a.png", "height": 6, "width": 8}],'
        '"annotations": [{"image_id": 1, "category_id": 1, "bbox": [2, 1, 3, 2]}]}'
    )
    return path / "a.json"


def boxes(path: Path) -> Path:
    (path / "a.csv").write_text("file,x1,y1,x2,y2,by\na.png,2,1,3,3,me\na.png,3,1,5,3,you\n")
    return path / "a.csv"


def voc(path: Path) -> Path:
    edges = "<xmin>3</xmin><ymin>2</ymin><xmax>5</xmax><ymax>3</ymax>"
    named = "<filename>a.png</filename>"
    (path / "a.xml").write_text(f"<annotation>{named}<object><bndbox>{edges}</bndbox></object></annotation>")
    return path


def labelme(path: Path) -> Path:
    (path / "a.json").write_text(
        '{"imagePath": "a.png", "imageHeight": 6, "imageWidth": 8,'
        '"shapes": [{"label": "x", "shape_type": "rectangle", "points": [[2, 1], [5, 3]]}]}'
    )
    return path


def masks(path: Path) -> Path:
    mask = np.zeros(SIZE, np.uint8)
    mask[1:3, 2:5], mask[1, 2] = 255, 7
    Image.fromarray(mask).save(path / "a.png")
    (path / "cats").mkdir()
    Image.fromarray(0 * mask).save(path / "cats" / "b.png")
    return path


@pytest.mark.parametrize("write", [boxes, coco, voc, labelme, masks])
def test_each_format_is_found_and_read_alike(tmp_path: Path, write: object) -> None:
    path = write(tmp_path)  # type: ignore[operator]
    found = read_regions(str(path))
    allowed = torch.zeros(1, *SIZE, dtype=torch.bool)
    allowed[0, 1:3, 2:5] = True
    entry = found["a" if write is masks else "a.png"]
    assert torch.equal(Regions.coerce([entry], 1, SIZE).allowed, allowed)
    if write is masks:
        assert set(found) == {"a", "cats/b"} and found["cats/b"] is None


def test_every_line_of_the_table_is_tested() -> None:
    assert len(FORMATS) == 5 and len({one.name for one in FORMATS}) == 5


def test_names_are_looked_up_without_reading_a_file(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no image")
    found = read_regions(tmp_path)
    assert "a" in found and "b" not in found
    with pytest.raises(OSError, match="cannot identify image file"):
        found["a"]


def test_what_is_no_format_is_said_with_all_that_are(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("")
    every = ", ".join(one.name for one in FORMATS)
    for name, kind in (("a.txt", r"is no folder and no \.csv or \.json file"), ("b.json", "does not exist")):
        with pytest.raises(RegionError, match=f"{name} {kind}; valid are {every}"):
            read_regions(tmp_path / name)
