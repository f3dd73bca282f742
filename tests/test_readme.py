"""What the documentation shows runs: the README's Python, its shell lines, and the examples in the commands' help."""

from __future__ import annotations

import functools
import re
import shlex
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader

from camwatch.cli import entry
from camwatch.cli.options import commands
from tests.support.nets import data, loader

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
RESULTS = ROOT / "tests" / "benchmarks" / "RESULTS.md"
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.M | re.S)
SHELL = [
    line.strip()
    for kind, block in BLOCKS
    if kind in ("bash", "sh", "console")
    for line in block.replace("\\\n", " ").splitlines()
    if line.strip() and not line.strip().startswith("#")
]
# In running text a command may be abbreviated, as in `camwatch audit CHECKPOINT …`; in a block it is whole.
PROSE = re.sub(r"^```.*?^```$", "", README, flags=re.M | re.S)

pytestmark = [
    pytest.mark.filterwarnings("ignore::camwatch.errors.CamwatchWarning"),  # what small panels are warned of
    pytest.mark.filterwarnings("ignore::camwatch.errors.AlarmWarning"),
]


class Classifier(pl.LightningModule):
    """A small net whose stages are called as a ResNet's."""

    def __init__(self, classes: int = 37) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.layer2 = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU())
        self.layer4 = nn.Sequential(nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU())
        self.fc = nn.Linear(8, classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.layer4(self.layer2(images)).mean((2, 3)))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", nn.functional.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


class Photos(pl.LightningDataModule):
    """Takes the arguments that the help names."""

    def __init__(self, root: str, batch_size: int) -> None:
        super().__init__()
        assert Path(root).is_dir()
        self.batch_size = batch_size

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(data(8), self.batch_size)


def reader(folder: Path) -> dict[str, Any]:
    """The names that a reader of the README has defined already."""
    torch.manual_seed(0)
    images, labels, masks = data(32).tensors
    quiet = {"accelerator": "cpu", "devices": 1, "max_epochs": 1, "default_root_dir": folder}
    quick = functools.partial(pl.Trainer, **quiet, enable_progress_bar=False, enable_model_summary=False)
    model = Classifier(3)
    return {
        "pl": types.SimpleNamespace(Trainer=quick, LightningModule=pl.LightningModule),
        "ModelCheckpoint": pl.callbacks.ModelCheckpoint,
        "torch": torch,
        "model": model,
        "self": model,
        "images": images,
        "labels": labels,
        "masks": masks,
        "names": ["a", "b", "c"],
        "mean": (0.5, 0.5, 0.5),
        "std": (0.25, 0.25, 0.25),
        "train": loader(data(16)),
        "validation": loader(data(32)),
        "dataloader": loader(data(16)),
        "top5": torch.tensor([[0, 1, 2]]).expand(len(images), 3),
        "epochs": 1,
        "step": 1,
    }


def test_readme_python_runs_from_top_to_bottom(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names = reader(tmp_path)
    blocks = [block for kind, block in BLOCKS if kind == "python"]
    assert len(blocks) >= 6
    for block in blocks:
        try:
            exec(compile(block, "README.md", "exec"), names)
        except Exception as error:
            pytest.fail(f"{type(error).__name__}: {error}, in the README's\n\n{block}")
    assert (tmp_path / "audit.csv").exists() and "audit of 16 images" in capsys.readouterr().out
    assert names["monitor"].history and names["run"].snapshots


def test_readme_is_a_front_door() -> None:
    assert len((ROOT / "README.md").read_bytes()) <= 10_240
    assert "![" in README[:1500], "a picture in the first screen"


# What the README promises, by the bold beginning of the sentence, and the tests that would fail if it were not so.
CONTRACT = {
    "Training is unchanged.": {"test_run_with_monitor_is_bit_for_bit_the_run_without"},
    "It never ends your run.": {
        "test_failing_snapshots_are_recorded_warned_of_once_and_tried_again",
        "test_a_logger_that_raises_keeps_nothing_from_the_others",
        "test_a_full_disk_is_warned_of_once_and_later_snapshots_are_written",
    },
    "It can be resumed.": {
        "test_six_epochs_are_three_a_resume_and_three",
        "test_archive_survives_kills_with_at_most_the_last_snapshot_missing",
    },
    "Its values can be monitored": {
        "test_every_published_key_can_be_monitored_from_the_first_step",
        "test_key_survives_failed_snapshots_and_is_never_nan",
    },
    "Several processes": {
        "test_two_processes_have_the_history_of_one",
        "test_strategies_that_hide_parameters_are_refused",
    },
}


def test_every_sentence_of_the_contract_names_tests_that_exist() -> None:
    [contract] = re.findall(r"^## The contract\n(.*?)^## ", README, re.M | re.S)
    assert re.findall(r"^- \*\*(.+?)\*\*", contract, re.M) == list(CONTRACT)
    defined = {
        name
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^def (test_\w+)", path.read_text(encoding="utf-8"), re.M)
    }
    assert set().union(*CONTRACT.values()) <= defined


def test_architecture_names_every_room_and_no_other() -> None:
    [tree] = re.findall(r"^camwatch/\n(.*?)^```", README, re.M | re.S)
    named = re.findall(r"^  (\S+)  ", tree, re.M)
    package = ROOT / "camwatch"
    rooms = {f"{path.name}/" for path in package.iterdir() if (path / "__init__.py").is_file()}
    rooms |= {path.stem for path in package.glob("*.py") if not path.name.startswith("_")}
    assert len(named) == len(set(named)) and set(named) == rooms


def test_results_name_scripts_and_options_that_exist() -> None:
    text = RESULTS.read_text(encoding="utf-8")
    commands = re.findall(r"^    python (tests/benchmarks/\S+)([^#\n]*)", text, re.M)
    assert len(commands) >= 10
    for script, options_typed in commands:
        path = ROOT / script
        source = (path / "__main__.py" if path.is_dir() else path).read_text(encoding="utf-8")
        for option in re.findall(r"--[\w-]+", options_typed):
            assert f'"{option}"' in source, (script, option)
    measured = {path.name for path in RESULTS.parent.glob("*.py")}
    assert set(re.findall(r"`(\w+\.py)", text)) <= measured
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (RESULTS.parent / target).exists(), target


def test_readme_names_files_and_extras_that_exist() -> None:
    tomllib = pytest.importorskip("tomllib")
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = re.findall(r"pip install [^`\n]*?(?:\.|camwatch)\[([\w,]+)\]", README)
    assert named and {extra for names in named for extra in names.split(",")} <= set(extras)
    for line in [*SHELL, *re.findall(r"`(python [^`]+)`", PROSE)]:
        for script in re.findall(r"python (\S+\.py)", line):
            assert (ROOT / script).is_file(), line
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with everything that the examples name: photos of 37 classes, checkpoints, a package."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name, kind in (("models", Classifier), ("data", Photos)):
        module = types.ModuleType(f"my_project.{name}")
        for known in (kind.__name__, "Net"):
            setattr(module, known, kind)
        monkeypatch.setitem(sys.modules, f"my_project.{name}", module)
    monkeypatch.setitem(sys.modules, "my_project", types.ModuleType("my_project"))
    for folder in ("DATA/val", "photos"):
        for k in range(37):
            (tmp_path / folder / f"class_{k:02}").mkdir(parents=True)
    for k in range(2):
        mask = Image.new("L", (60, 40))
        mask.paste(255, (10 + 20 * k, 10, 40, 30))
        (tmp_path / f"DATA/masks/class_{k:02}").mkdir(parents=True)
        mask.save(tmp_path / f"DATA/masks/class_{k:02}/a.png")
        for folder in ("DATA/val", "photos"):
            Image.effect_noise((60, 40), 80).convert("RGB").save(tmp_path / folder / f"class_{k:02}" / "a.jpg")
    (tmp_path / "boxes.csv").write_text("file,x1,y1,x2,y2\nclass_00/a.jpg,10,10,40,30\n")
    Image.effect_noise((300, 200), 80).convert("RGB").save(tmp_path / "cat.jpg")
    torch.manual_seed(0)
    quiet = pl.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
    quiet.strategy.connect(Classifier())
    quiet.save_checkpoint(tmp_path / "last.ckpt")

    from torchvision import models

    torch.save(models.resnet18(num_classes=37).state_dict(), tmp_path / "best.pth")

    def random_weights(entry: Any, **_: Any) -> Any:
        """Stands in for a download."""
        return models.get_model(type(entry).__name__.removesuffix("_Weights").lower()).state_dict()

    monkeypatch.setattr("torchvision.models._api.WeightsEnum.get_state_dict", random_weights)
    return tmp_path


Typed = Callable[[str], tuple[int, str]]


@pytest.fixture
def typed(project: Path, capsys: pytest.CaptureFixture[str]) -> Typed:
    """Runs a line that begins with camwatch and returns its exit code, and what was printed."""

    def run(line: str) -> tuple[int, str]:
        words = shlex.split(line, comments=True)[1:]
        if words[0] == "audit":  # in this process, and without a progress bar
            if "--devices" in words:
                words[words.index("--devices") + 1] = "1"
            words += ["--accelerator", "cpu", "--quiet"]
        code = entry.main(words)
        printed = capsys.readouterr()
        return code, printed.out + printed.err

    return run


HELP = {name: parser.epilog.replace("\\\n", " ") for name, parser in commands().items()}
EXAMPLES = [line.strip() for text in HELP.values() for line in text.splitlines() if line.startswith(("  ", "    "))]
LINES = [line for line in [*EXAMPLES, *SHELL] if line.startswith("camwatch ")]


@pytest.mark.parametrize("line", LINES)
def test_documented_command_does_what_it_says(typed: Typed, line: str) -> None:
    code, printed = typed(line)
    if "--fail-above" in line:  # of random weights nothing is known
        assert code in (0, 1) and Path("audit.csv").exists(), printed
        return
    assert code == 0, printed
    made = {"audit": "audit of", "layers": "<- default", "explain": ".png: "}
    assert made[shlex.split(line)[1]] in printed


def test_commands_in_running_text_exist() -> None:
    found = re.findall(r"`camwatch (\w+)([^`]*)`", PROSE)
    for command, rest in found:
        assert command in commands(), command
        known = {name for action in commands()[command]._actions for name in action.option_strings}
        assert {word.partition("=")[0] for word in rest.split() if word.startswith("--")} <= known, rest
    typed = {line.split()[1] for line in SHELL if line.startswith("camwatch ")}
    assert typed | {command for command, _ in found} == set(commands()), "the README names every command"
