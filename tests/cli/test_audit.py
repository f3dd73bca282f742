"""``camwatch audit``: what it prints, what it writes, its exit code."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from tests.cli.conftest import AUDIT, Run
from tests.cli.nets import Net


def rows_of(path: str | Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_audit_of_a_folder(run: Run, photos: Path, checkpoint: Path) -> None:
    (photos / "val/dogs/3.jpg").write_bytes(b"no photo")
    (photos / "masks/cats/2.png").unlink()
    code, out, err = run(AUDIT)
    assert (code, err) == (0, "")
    assert "audit of 12 images, gradcam at features" in out and "worst images: audit.worst.png" in out
    rows = rows_of("audit.csv")
    assert [row["id"] for row in rows][:2] == ["DATA/val/cats/0.jpg", "DATA/val/cats/1.jpg"]
    assert [row["label"] for row in rows] == ["0"] * 6 + ["1"] * 3 + [""] + ["1"] * 2
    assert rows[9]["verdict"] == "unreadable" and "cannot identify image file" in rows[9]["note"]
    assert rows[2]["region_area"] == "" and float(rows[0]["region_area"]) == pytest.approx(0.33, abs=0.2)
    assert [row["name"] for row in rows_of("audit.classes.csv")] == ["cats", "dogs", "(no label)", "all"]
    assert Image.open("audit.worst.png").width > 500


def test_audit_takes_boxes_masks_and_coco(run: Run, photos: Path, checkpoint: Path) -> None:
    boxes = {
        f"{name}/{i}.jpg": (left + i, 8, left + i + 24, 32)
        for name, left in (("cats", 4), ("dogs", 30))
        for i in range(6)
    }
    lines = [f"{name},{','.join(map(str, box))}" for name, box in boxes.items()]
    Path("boxes.csv").write_text("\n".join(["file,x1,y1,x2,y2", *lines]))
    coco = {
        "images": [{"id": k, "file_name": name, "width": 60, "height": 40} for k, name in enumerate(boxes)],
        "annotations": [
            {"id": k, "image_id": k, "category_id": 1, "bbox": [x1, y1, x2 - x1, y2 - y1]}
            for k, (x1, y1, x2, y2) in enumerate(boxes.values())
        ],
        "categories": [{"id": 1, "name": "thing"}],
    }
    Path("coco.json").write_text(json.dumps(coco))
    (photos / "masks").rename("drawn")
    found = []
    for source in ("boxes.csv", "coco.json", "drawn"):
        code, _, err = run(f"{AUDIT} --regions {source} --output {source}.csv")
        assert (code, err) == (0, ""), source
        found.append(Path(f"{source}.csv").read_bytes())
    assert found[0] == found[1] == found[2]
    code, out, err = run(AUDIT)
    assert code == 0 and "no regions were given" in err and "0 right ·" in out


def test_audit_of_a_data_module(run: Run, checkpoint: Path) -> None:
    code, out, _ = run(
        "audit last.ckpt --module tests.cli.nets:Net --datamodule tests.cli.nets.Noise --data-args '{\"n\": 11}' "
        "--accelerator cpu --quiet --output audit.parquet --layer features.2 --method hirescam --target predicted"
    )
    assert code == 0 and "audit of 11 images, hirescam at features.2" in out
    assert Path("audit.parquet").exists()


def test_audit_of_a_state_dict(run: Run, photos: Path) -> None:
    line = "audit net.pth --model tests.cli.nets.Net --data DATA --size 32 --accelerator cpu --quiet"
    torch.manual_seed(0)
    state = Net().state_dict()
    torch.save(state, "net.pth")
    assert "is missing: a LightningModule takes a checkpoint of Lightning" in run(line)[2]
    torch.save({"state_dict": {f"net.{key}": value for key, value in state.items()}}, "net.pth")
    code, _, err = run(f"{line.replace('tests.cli.nets.Net', 'tests.cli.nets.plain')}")
    assert (code, err) == (0, "")


def test_audit_fails_above_a_share(run: Run, photos: Path, checkpoint: Path) -> None:
    code, out, err = run(f"{AUDIT} --threshold 1 --fail-above 0.25")
    assert code == 1 and "table: audit.csv" in out
    assert "100.0% are right for the wrong reason, --fail-above allows 25.0%" in err
    assert run(f"{AUDIT} --threshold 1 --fail-above 1")[0] == 0
    assert run(f"{AUDIT} --regions DATA/masks --threshold -100 --fail-above 0")[0] == 0


def test_audit_of_unreadable_photos_fails(run: Run, photos: Path, checkpoint: Path) -> None:
    for path in photos.glob("val/*/*.jpg"):
        path.write_bytes(b"")
    code, _, err = run(AUDIT)
    assert code == 2 and "none of the 12 samples can be read" in err


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (AUDIT.replace("last.ckpt", "lost.ckpt"), "checkpoint 'lost.ckpt': there is no such file"),
        (AUDIT.replace("tests.cli.nets.Net", "tests.cli.nets.Nett"), "did you mean 'Net'"),
        (AUDIT.replace("tests.cli.nets.Net", "nowhere.Net"), "there is no module 'nowhere' here"),
        (AUDIT.replace("tests.cli.nets.Net", "resnet8"), "unknown model 'resnet8'; did you mean 'resnet18'"),
        (AUDIT.replace("tests.cli.nets.Net", "tests.cli.nets.Other"), "fit Other: .*size mismatch.*--model-args"),
        (AUDIT.replace("tests.cli.nets.Net", "resnet18"), r"last.ckpt does not fit ResNet: .*Missing key\(s\)"),
        (AUDIT.replace("last.ckpt", "DATA/masks/cats/0.png"), "0.png does not fit Net"),
        (AUDIT + " --model-args '{\"classes\": 3}'", "does not fit Net: .*size mismatch for head.weight"),
        (AUDIT + " --model-args '[3]'", "expected a JSON object"),
        (AUDIT + " --model-args classes=3", "is no JSON"),
        (AUDIT + " --output DATA/val/cats/0.jpg/audit.csv", "cannot be written to .*(Not a directory|File exists)"),
        (AUDIT + " --output audit.txt", r"must end in \.csv or \.parquet"),
        (AUDIT + " --layer features.7", "unknown layer of Net 'features.7'"),
        (AUDIT + " --method gradcm", "did you mean 'gradcam'"),
        (AUDIT + " --target 7", "target 7 is out of range: the model scores 2 classes"),
        (AUDIT + " --regions nothing", "regions nothing does not exist"),
        (AUDIT + " --regions DATA/val", "none of the 12 photos, such as cats/0.jpg, has a region"),
        (AUDIT + " --regions last.ckpt", "is no folder and no .csv or .json file"),
        (AUDIT + " --accelerator abacus", "Lightning refuses these devices"),
        (AUDIT + " --datamodule tests.cli.nets.Noise", "give either --data FOLDER or --datamodule"),
        (AUDIT.replace("--data DATA", "--data DATA/val/cats"), "no folders with photos in them"),
        (AUDIT.replace("--data DATA", "--data nowhere"), "nowhere has no folders with photos"),
        (AUDIT.replace("--data DATA", "--datamodule tests.cli.nets.Noise"), "be built with the arguments {}.*'n'"),
        (AUDIT.replace("--data DATA", "--datamodule tests.cli.nets.Noise --data-args '{\"n\": 0}'"), "loader is empty"),
        (AUDIT + " --batch-size 0", "expected a whole number of 1 or more, got '0'"),
        (AUDIT.replace("--module tests.cli.nets.Net", ""), "the following arguments are required: --module"),
    ],
)  # fmt: skip
def test_audit_of_bad_input_says_why_and_exits_with_2(
    run: Run, photos: Path, checkpoint: Path, line: str, said: str
) -> None:
    code, out, err = run(line)
    assert code == 2 and out == ""
    assert re.search(said, err), err
    assert not Path("audit.csv").exists()


def test_audit_of_an_empty_folder_or_other_classes_exits_with_2(run: Run, photos: Path, checkpoint: Path) -> None:
    (photos / "val/birds").mkdir()
    code, _, err = run(AUDIT)
    assert code == 2 and "has 3 classes (birds, cats, dogs, …), the model scores 2" in err
    (photos / "val/birds").rmdir()
    for path in photos.glob("val/*/*.jpg"):
        path.unlink()
    code, _, err = run(AUDIT)
    assert code == 2 and "DATA/val is empty: no photo was found in cats, dogs" in err


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("broken.json", "{", "broken.json: expected COCO's JSON, which this is not"),
        ("other.json", "{}", r"other.json: expected COCO's keys annotations, images, got \[\]"),
        ("boxes.csv", "file,x,y\n", "boxes.csv: expected the columns file,x1,y1,x2,y2, got file,x,y"),
        ("words.csv", "file,x1,y1,x2,y2\na.jpg,1,2,three,4\n", "words.csv, line 2: .* holds no box of four numbers"),
    ],
)
def test_audit_with_broken_regions_exits_with_2(
    run: Run, photos: Path, checkpoint: Path, name: str, content: str, said: str
) -> None:
    Path(name).write_text(content)
    code, out, err = run(f"{AUDIT} --regions {name}")
    assert (code, out) == (2, "") and re.search(said, err), err


def test_audit_that_breaks_exits_with_1(
    run: Run, photos: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("camwatch.auditing.unfinished.Parts.append", full)
    code, _, err = run(AUDIT)
    assert code == 1 and "No space left on device" in err


def test_checkpoint_with_python_objects_needs_trust(run: Run, photos: Path, checkpoint: Path) -> None:
    content = torch.load(checkpoint, weights_only=True)
    torch.save({**content, "callbacks": {"mine": Path("x")}}, checkpoint)
    code, _, err = run(AUDIT)
    assert code == 2 and "--trust" in err
    assert run(f"{AUDIT} --trust")[0] == 0
