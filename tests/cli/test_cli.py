"""Every command, as a person types it: what it prints, what it writes, its exit code."""

from __future__ import annotations

import csv
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image

from camwatch.cli.entry import main
from camwatch.cli.models import load_model, load_object
from camwatch.cli.options import parse
from camwatch.errors import CamwatchError, InputError
from tests.support.nets import SmallNet, data, loader

Run = Callable[[str], tuple[int, str, str]]


class Net(SmallNet):
    """A Lightning module that stores its arguments."""

    def __init__(self, classes: int = 2) -> None:
        super().__init__(classes)
        self.save_hyperparameters()


class Other(SmallNet):
    def __init__(self, channels: int = 4) -> None:
        super().__init__(3, channels)


class Noise(pl.LightningDataModule):
    def __init__(self, n: int) -> None:
        super().__init__()
        self.n = n

    def val_dataloader(self) -> Any:
        return loader(data(self.n, classes=2))


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a command line in an empty folder and returns exit code, output and errors."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def typed(line: str) -> tuple[int, str, str]:
        try:
            code = main(shlex.split(line))
        except SystemExit as exit:
            code = int(exit.code or 0)
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return code, out, err

    return typed


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """DATA/val/<class>/*.jpg of 40 x 60 px with DATA/masks/<class>/*.png, six of each class."""
    rng = np.random.default_rng(0)
    for name, left in (("cats", 4), ("dogs", 30)):
        for folder in ("val", "masks"):
            (tmp_path / "DATA" / folder / name).mkdir(parents=True)
        for i in range(6):
            mask = np.zeros((40, 60), dtype=bool)
            mask[8:32, left + i : left + i + 24] = True
            photo = rng.integers(0, 90, (40, 60, 3), dtype=np.uint8)
            photo[mask] += 120
            Image.fromarray(photo).save(tmp_path / f"DATA/val/{name}/{i}.jpg")
            Image.fromarray(mask.astype(np.uint8) * 255).save(tmp_path / f"DATA/masks/{name}/{i}.png")
    return tmp_path / "DATA"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A Lightning checkpoint of ``Net`` with random weights."""
    torch.manual_seed(0)
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
    trainer.strategy.connect(Net())
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    return tmp_path / "last.ckpt"


AUDIT = "audit last.ckpt --module tests.cli.test_cli.Net --data DATA --size 32 --accelerator cpu --quiet"


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
        "audit last.ckpt --module tests.cli.test_cli:Net --datamodule tests.cli.test_cli.Noise --data-args '{\"n\": 11}' "
        "--accelerator cpu --quiet --output audit.parquet --layer features.2 --method hirescam --target predicted"
    )
    assert code == 0 and "audit of 11 images, hirescam at features.2" in out
    assert Path("audit.parquet").exists()


def test_audit_of_a_state_dict(run: Run, photos: Path) -> None:
    line = "audit net.pth --model tests.cli.test_cli.Net --data DATA --size 32 --accelerator cpu --quiet"
    torch.manual_seed(0)
    state = Net().state_dict()
    torch.save(state, "net.pth")
    assert "is missing: a LightningModule takes a checkpoint of Lightning" in run(line)[2]
    torch.save({"state_dict": {f"net.{key}": value for key, value in state.items()}}, "net.pth")
    code, _, err = run(f"{line.replace('tests.cli.test_cli.Net', 'tests.cli.test_cli.plain')}")
    assert (code, err) == (0, "")


def blind() -> torch.nn.Module:
    """A function that makes a model whose evidence is all negative."""
    model = SmallNet(2)
    model.head.weight.data = -model.head.weight.data.abs()
    return model


def plain() -> torch.nn.Module:
    """A function that makes a model."""
    return SmallNet(2)


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
        (AUDIT.replace("tests.cli.test_cli.Net", "tests.cli.test_cli.Nett"), "did you mean 'Net'"),
        (AUDIT.replace("tests.cli.test_cli.Net", "nowhere.Net"), "there is no module 'nowhere' here"),
        (AUDIT.replace("tests.cli.test_cli.Net", "resnet8"), "unknown model 'resnet8'; did you mean 'resnet18'"),
        (AUDIT.replace("tests.cli.test_cli.Net", "tests.cli.test_cli.Other"), "does not fit Other: .*size mismatch.*--model-args"),
        (AUDIT.replace("tests.cli.test_cli.Net", "resnet18"), r"last.ckpt does not fit ResNet: .*Missing key\(s\)"),
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
        (AUDIT + " --datamodule tests.cli.test_cli.Noise", "give either --data FOLDER or --datamodule"),
        (AUDIT.replace("--data DATA", "--data DATA/val/cats"), "no folders with photos in them"),
        (AUDIT.replace("--data DATA", "--data nowhere"), "nowhere has no folders with photos"),
        (AUDIT.replace("--data DATA", "--datamodule tests.cli.test_cli.Noise"), "cannot be built with the arguments {}.*'n'"),
        (AUDIT.replace("--data DATA", "--datamodule tests.cli.test_cli.Noise --data-args '{\"n\": 0}'"), "loader is empty"),
        (AUDIT + " --batch-size 0", "expected a whole number of 1 or more, got '0'"),
        (AUDIT.replace("--module tests.cli.test_cli.Net", ""), "the following arguments are required: --module"),
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


def test_explain_that_cannot_write_exits_with_1(run: Run, photos: Path) -> None:
    line = "explain DATA/val/cats/0.jpg --model tests.cli.test_cli.plain --weights none --size 32"
    code, out, err = run(f"{line} --output DATA/val/cats/0.jpg/a.png")
    assert (code, out) == (1, "") and re.search("Not a directory|File exists", err)


def test_audit_that_breaks_exits_with_1(
    run: Run, photos: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("camwatch.auditing.unfinished.Parts.append", full)
    code, _, err = run(AUDIT)
    assert code == 1 and "No space left on device" in err


def test_layers_lists_the_grid_and_marks_the_default(run: Run) -> None:
    code, out, _ = run("layers resnet18 --size 64")
    assert code == 0 and "(resnet18, images of 64 x 64)" in out
    assert re.search(r"^layer4 +2 x 2 +512 +<- default$", out, re.M)
    code, out, _ = run("layers tests.support.nets.SmallNet --model-args '{\"channels\": 1}' --channels 1 --size 16")
    assert code == 0 and re.search(r"^features +4 x 4 +16 +<- default$", out, re.M)
    code, _, err = run("layers resnet")
    assert (code == 2 and "did you mean 'resnet50'" in err) or "did you mean" in err
    assert run("layers tests.support.nets.SmallNet")[0] == 0
    assert "no such file; valid are a file, 'default' and 'none'" in run("layers resnet18 --weights best.pth")[2]
    assert "has no weights of its own" in run("layers tests.support.nets.SmallNet --weights default")[2]


def test_explain_writes_the_overlay_and_prints_the_classes(run: Run, photos: Path, checkpoint: Path) -> None:
    code, out, _ = run(
        "explain DATA/val/cats/0.jpg --model tests.cli.test_cli.Net --weights last.ckpt --size 48 --output out/a.png"
    )
    assert code == 0 and out.startswith("out/a.png: gradcam at features, maps of 12 x 12\n")
    assert Image.open("out/a.png").size == (48, 48)
    assert sorted(float(share) for share in re.findall(r"([\d.]+)%", out))[1] >= 50
    code, out, _ = run("explain DATA/val/cats/0.jpg --model resnet18 --weights none --target 3 --layer layer3")
    assert code == 0 and "at layer3, maps of 14 x 14" in out
    assert Image.open("explanation.png").size == (224, 224)


def test_explain_warns_of_a_map_that_shows_nothing(run: Run, photos: Path) -> None:
    code, _, err = run("explain DATA/val/cats/0.jpg --model tests.cli.test_cli.blind --weights none --size 32")
    assert code == 0 and err.startswith("warning: 1 of 1 maps of gradcam at") and err.count("\n") == 1


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("explain lost.jpg", "image 'lost.jpg' cannot be read: .*No such file"),
        ("explain last.ckpt", "image 'last.ckpt' cannot be read"),
        ("explain DATA/val/cats/0.jpg --output a.jpg", "must end in .png"),
        ("explain DATA/val/cats/0.jpg --target label", "--target takes predicted or a class's number"),
        ("explain DATA/val/cats/0.jpg --target 9", "target 9 is out of range"),
        ("explain DATA/val/cats/0.jpg --colormap jett", "did you mean 'jet'"),
    ],
)
def test_explain_of_bad_input_says_why_and_exits_with_2(
    run: Run, photos: Path, checkpoint: Path, line: str, said: str
) -> None:
    code, _, err = run(f"{line} --model tests.cli.test_cli.Net --weights last.ckpt --size 32")
    assert code == 2 and re.search(said, err), err


def test_weights_that_cannot_be_downloaded_exit_with_1(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from urllib.error import URLError

    def offline(*_: Any, **__: Any) -> None:
        raise URLError("no network")

    monkeypatch.setattr("torchvision.models._api.WeightsEnum.get_state_dict", offline)
    with pytest.raises(CamwatchError, match=r"cannot be downloaded.*no network.*'none' for random weights"):
        load_model("resnet18")
    assert run("layers resnet18 --weights default")[0] == 1


def test_checkpoint_with_python_objects_needs_trust(run: Run, photos: Path, checkpoint: Path) -> None:
    content = torch.load(checkpoint, weights_only=True)
    torch.save({**content, "callbacks": {"mine": Path("x")}}, checkpoint)
    code, _, err = run(AUDIT)
    assert code == 2 and "--trust" in err
    assert run(f"{AUDIT} --trust")[0] == 0


def test_timm_models_go_by_their_prefix() -> None:
    pytest.importorskip("timm")
    assert type(load_model("timm/resnet18", "none")[0]).__module__.startswith("timm.")
    with pytest.raises(InputError, match="unknown timm model 'resnet1'"):
        load_model("timm/resnet1", "none")


def test_import_error_inside_the_users_module_is_not_swallowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_project.py").write_text("import there_is_no_such_thing")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ModuleNotFoundError, match="there_is_no_such_thing"):
        load_object("broken_project.Net", "model")
    with pytest.raises(InputError, match="expected an import path"):
        load_object(".Net", "model")


@pytest.mark.parametrize("command", ["audit", "layers", "explain"])
def test_help_teaches_by_examples_that_parse(run: Run, command: str) -> None:
    code, out, _ = run(f"{command} --help")
    assert code == 0
    epilog = out.split("examples:")[1].replace("\\\n", " ")
    examples = [line.strip() for line in epilog.splitlines() if line.strip().startswith("camwatch ")]
    assert len(examples) >= 3
    for example in examples:
        assert parse(shlex.split(example)[1:]).command == command
    assert "exit codes: 0 done; 1 " in out


def test_help_shows_each_command_with_an_example(run: Run) -> None:
    code, out, _ = run("--help")
    assert code == 0 and "exit codes:" in out and "camwatch COMMAND --help" in out
    for example in re.findall(r"^  camwatch (.*?)(?:   .*)?$", out, re.M):
        assert parse(shlex.split(example)).command == example.split()[0]
    assert run("--version")[1].startswith("camwatch ")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("audti last.ckpt", "camwatch: error: unknown command 'audti'; did you mean 'audit'? Valid: audit, layers"),
        ("layers resnet18 --sise 64", "camwatch layers: error: unknown option '--sise'; did you mean '--size'"),
        ("explain a.jpg --model resnet18 --colourmap=jet", "unknown option '--colourmap'; did you mean '--colormap'"),
        ("layers resnet18 resnet34", "camwatch layers: error: unrecognized arguments: resnet34"),
        ("layers resnet18 --size 6.5", "argument --size: expected a whole number of 1 or more, got '6.5'"),
        ("layers", "the following arguments are required: MODEL"),
    ],
)
def test_mistyped_command_or_option_exits_with_2_and_offers_near_names(run: Run, line: str, said: str) -> None:
    code, out, err = run(line)
    assert (code, out) == (2, "") and said in err


def test_console_script_runs() -> None:
    run = subprocess.run([sys.executable, "-m", "camwatch.cli", "--help"], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0 and all(name in run.stdout for name in ("audit", "layers", "explain"))
    run = subprocess.run([sys.executable, "-m", "camwatch.cli"], capture_output=True, text=True, timeout=120)
    assert run.returncode == 2 and "required: COMMAND" in run.stderr
