"""The examples run as they stand: on a smaller budget, without downloaded weights."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from camwatch import load_archive
from tests.test_main_job import write_photos

EXAMPLES = Path(__file__).parent.parent / "examples"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.filterwarnings("ignore::camwatch.errors.AlarmWarning")
@pytest.mark.parametrize("control", [False, True])
def test_catch_shortcut_alarms_for_the_cheat_only(
    control: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    load("catch_shortcut").main(control, seed=0)
    printed = capsys.readouterr().out
    rows = re.findall(r"^ +(\d) +([\d.]+) +([\d.]+) +([\d.]+) +([\d.]+)", printed, re.MULTILINE)
    assert [int(row[0]) for row in rows] == list(range(6))
    _, validation, counterfactual, _, hidden = map(float, rows[-1])
    run = load_archive(tmp_path)
    assert len(run.snapshots) == 7
    if control:
        assert "0 alarm(s)" in printed and not run.alarms
        assert validation == counterfactual and hidden <= 0.35
    else:
        assert run.alarms and run.alarms[0].message in printed
        assert max(float(row[1]) for row in rows) >= 0.99, "no validation accuracy gives it away"
        assert counterfactual <= validation - 0.1 and hidden >= 0.9


@pytest.mark.filterwarnings("ignore::camwatch.errors.CamwatchWarning")  # ten photos are few for an alarm
@pytest.mark.parametrize("boxes", [False, True])
def test_finetune_torchvision_takes_masks_or_boxes(
    boxes: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_photos(tmp_path, each=6)
    if boxes:
        lines = ["file,x1,y1,x2,y2"]
        for mask in sorted((tmp_path / "masks").rglob("*.png")):
            rows, columns = np.array(Image.open(mask)).nonzero()
            name = f"{mask.parent.name}/{mask.stem}.jpg"
            lines.append(f"{name},{columns.min()},{rows.min()},{columns.max() + 1},{rows.max() + 1}")
            mask.unlink()
        (tmp_path / "boxes.csv").write_text("\n".join(lines))
    load("finetune_torchvision").main(tmp_path, pets=False, epochs=1, size=64, batch_size=4, workers=0, weights=None)
    assert "archive: " in capsys.readouterr().out
    run = load_archive(tmp_path)
    assert len(run.snapshots) == 2 and run.panel["class_names"] == ["cats", "dogs"]
    annotated = run.panel["regions"]["annotated"]
    assert annotated.all() and len(annotated) == 12


def test_pets_carry_their_trimaps_as_regions(tmp_path: Path) -> None:
    """On files of the layout that torchvision unpacks."""
    folder = tmp_path / "oxford-iiit-pet"
    for part in ("images", "annotations/trimaps"):
        (folder / part).mkdir(parents=True)
    trimap = np.full((40, 60), 2, dtype=np.uint8)
    trimap[10:30, 10:30] = 3
    trimap[12:28, 12:28] = 1
    Image.fromarray(np.full((40, 60, 3), 99, dtype=np.uint8)).save(folder / "images" / "Bengal_1.jpg")
    Image.fromarray(trimap).save(folder / "annotations" / "trimaps" / "Bengal_1.png")
    (folder / "annotations" / "test.txt").write_text("Bengal_1 1 1 1\n")

    example = load("finetune_torchvision")
    monkey: Any = example.PetsWithRegions
    image, label, mask = monkey(tmp_path, "val", example.transforms(40, augment=False))[0]
    assert image.shape == (3, 40, 40) and label == 0
    assert mask.sum() == 20 * 20 and mask[10:30, :20].all()  # the centre crop takes 10 columns off each side


def test_engine_explains_a_photograph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sklearn.datasets import load_sample_image

    monkeypatch.chdir(tmp_path)
    Image.fromarray(load_sample_image("china.jpg")).save("china.jpg")
    load("engine").main("china.jpg", "resnet18", pretrained=False)
    width, height = Image.open("explanation.png").size
    assert width > 3 * height


@pytest.mark.filterwarnings("ignore::camwatch.errors.CamwatchWarning")  # random weights leave maps blank
def test_engine_manual_gives_what_the_engine_gives(capsys: pytest.CaptureFixture[str]) -> None:
    load("engine_manual").main()
    assert "the same as explain() gives" in capsys.readouterr().out
