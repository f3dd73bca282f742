"""The summary, the sheet of the worst images, and the table in other formats."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from camwatch.auditing.sheet import GREY, INKS
from camwatch.auditing.summary import worst_of
from camwatch.auditing.verdicts import COLUMNS
from camwatch.metrics.table import AUDITED
from camwatch.pictures import text
from tests.support.audits import Faulty, Reading, audit, lights, rows_of, together
from tests.support.nets import SmallNet, data, loader


# What is added up.
def test_summary_equals_adding_up_the_table(net: SmallNet, tmp_path: Path) -> None:
    found = audit(net, loader(data(20)), tmp_path, class_names=["a", "b", "c"])
    rows = rows_of(found.table)
    assert [(one.label, one.name) for one in found.classes] == [(0, "a"), (1, "b"), (2, "c")]
    for one in [*found.classes, found.total]:
        mine = [row for row in rows if one.label in (None, row["label"])]
        assert one.images == len(mine)
        assert one.accuracy == np.mean([row["label"] == row["predicted"] for row in mine])
        for name in AUDITED:
            values = [row[name] for row in mine if not math.isnan(row[name])]
            assert one.means[name] == (
                pytest.approx(np.mean(values)) if values else pytest.approx(math.nan, nan_ok=True)
            )
    with open(tmp_path / "audit.classes.csv", newline="") as file:
        written = list(csv.DictReader(file))
    assert [row["name"] for row in written] == ["a", "b", "c", "all"]
    assert float(written[-1]["accuracy"]) == pytest.approx(found.total.accuracy, rel=1e-5)
    assert f"audit of 20 images, gradcam at {found.layer}" in str(found)


def test_worst_are_right_for_the_wrong_reason_first(tmp_path: Path) -> None:
    places = [(0, 0, "in"), (1, 0, "in"), (1, 1, "beside"), (2, 2, "none"), (2, 2, "beside")]
    dataset = lights(places)
    dataset.tensors[0][2, 1, :, 3] = 1  # some of it lies inside: less bad than the last
    found = audit(Reading(), DataLoader(dataset, 2), tmp_path, layer="look.1", worst=4)
    assert [row["index"] for row in found.worst] == [4, 2, 1, 0]
    assert worst_of([], 3) == ()
    none = audit(Reading(), DataLoader(dataset, 2), tmp_path, layer="look.1", worst=0)
    assert none.sheet is None and not (tmp_path / "audit.worst.png").exists()


def captions(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What is written on sheets from now on."""
    written: list[list[str]] = []
    draw = text.text

    def noted(image: torch.Tensor, lines: Any, *args: Any) -> torch.Tensor:
        written.append(list(lines))
        return draw(image, lines, *args)

    monkeypatch.setattr("camwatch.pictures.text.text", noted)
    return written


def test_sheet_says_which_image_it_is_and_what_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = lights([(0, 0, "in"), (1, 0, "in"), (1, 1, "beside"), (2, 2, "none")])
    dataset.samples = [(f"photos/a_very_long_name_of_a_photo_{i}.jpg", 0) for i in range(4)]  # type: ignore[attr-defined]
    written = captions(monkeypatch)
    names = ["crested tit", "blue tit", "a bird whose name is much longer than its picture is wide"]
    found = audit(Reading(), DataLoader(dataset, 2), tmp_path, layer="look.1", class_names=names)
    assert found.sheet is not None
    (wrong_reason, wrong, right, unmeasured), (head, legends) = written[:4], written[4:]
    assert wrong_reason[0].startswith("index 2 · a_very") and wrong_reason[0].endswith("oto_2.jpg")
    assert wrong_reason[1:] == ["label blue tit", "✓ 0.45 blue tit", "0% inside, area 50%"]
    assert wrong[1:] == ["label crested tit", "✗ 0.45 blue tit", "the map shows nothing"]
    assert right[2].startswith("✓") and unmeasured[3] == "no region"
    assert unmeasured[1].startswith("label a bird") and "…" in unmeasured[1]
    assert head == ["the 4 worst of 4 images, gradcam at look.1"]
    assert legends == [
        "in all: 1 right, 1 right for the wrong reason, 1 wrong, 1 not measurable",
        "frames: right blue, right for the wrong reason purple, wrong orange, not measurable grey",
        "outlines: region green",
    ]
    with Image.open(found.sheet) as sheet:
        colours = {colour for _, colour in sheet.getcolors(maxcolors=1 << 20)}
    assert {*INKS.values(), GREY} <= colours


def test_sheet_holds_images_of_several_sizes_uncut(tmp_path: Path) -> None:
    sizes = [(16, 40), (40, 16), (300, 200)]
    batches = [tuple(t[:1] for t in data(3, size=size).tensors) for size in sizes]
    torch.manual_seed(0)
    found = audit(SmallNet().eval(), batches, tmp_path)
    assert found.sheet is not None
    with Image.open(found.sheet) as sheet:
        # The largest picture's height, and room for the longest side of the others.
        assert sheet.height > 256 + 4 * 15 and sheet.width >= 3 * (200 + 8)
    assert len(found.worst) == 3


def test_parquet_holds_what_csv_holds(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    given = DataLoader(Faulty(), 4, collate_fn=together)
    torch.manual_seed(0)
    model = SmallNet().eval()
    table = pq.read_table(audit(model, given, tmp_path, output=tmp_path / "audit.parquet").table)
    rows = rows_of(audit(model, given, tmp_path).table)
    assert table.column_names == list(COLUMNS) and str(table.schema.field("label").type) == "int64"
    for parquet, row in zip(table.to_pylist(), rows, strict=True):
        for name, value in parquet.items():
            empty = "" if name in ("id", "verdict", "note") else pytest.approx(math.nan, nan_ok=True)
            assert row[name] == (empty if value is None else value)
