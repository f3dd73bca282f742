"""A method, measure, probe, detector, reader, writer or command is a line of one table, and everywhere from then on."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import camwatch

SNAPSHOT = """
import torch
from torch import nn
from camwatch import Panel, Watcher, explain
torch.manual_seed(0)
net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
images, labels = torch.rand(16, 1, 12, 12), torch.arange(16) % 2
watcher = Watcher(net, Panel(images, labels, regions=[[(2, 2, 8, 8)]] * 16), {options})
snapshot = watcher.snapshot(0, 0)
assert snapshot.error is None, snapshot.error
"""


def extended(folder: Path, file: str, lines: dict[str, str], new: dict[str, str] | None = None) -> Path:
    """Copies the package, puts lines into one file, each behind a text that stands there once, and adds files."""
    shutil.copytree(Path(camwatch.__file__).parent, folder / "camwatch", ignore=shutil.ignore_patterns("__pycache__"))
    table = folder / "camwatch" / file
    for behind, line in lines.items():
        text = table.read_text()
        assert text.count(behind) == 1, f"{file} has {text.count(behind)} times {behind!r}"
        table.write_text(text.replace(behind, f"{behind}\n{line}"))
    for name, content in (new or {}).items():
        (folder / "camwatch" / name).write_text(content)
    return folder


def run(folder: Path, code: str) -> list[str]:
    """Runs code over a copy in a fresh process, and returns the words that it prints."""
    environment = os.environ | {"PYTHONPATH": str(folder), "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.split()


def test_a_method_is_a_function_and_its_line(tmp_path: Path) -> None:
    line = '        Method("brightest", from_gradients(lambda activations, gradients: activations.amax(1))),'
    folder = extended(tmp_path, "cam/methods/registry.py", {"    for method in (": line})
    code = SNAPSHOT.format(options='method="brightest", detectors=[]') + (
        "from camwatch import methods\n"
        "found = explain(net, images, method='brightest', layer='1')\n"
        "print('brightest' in methods(), torch.equal(found.maps, net[1](net[0](images)).amax(1)))\n"
    )
    assert run(folder, code) == ["True", "True"]


def test_a_measure_is_a_function_and_its_line(tmp_path: Path) -> None:
    line = (
        '(_layer(name="peak", title="largest cell", unit="amount", low=0.0, high=None, better=None, '
        "uninformative=0.0, split=True), lambda p: p.maps.amax((1, 2))),"
    )
    behind = "LINES: tuple[tuple[Measure, Callable[[PooledMaps], Tensor]], ...] = ("
    folder = extended(tmp_path, "metrics/table.py", {behind: line})
    code = SNAPSHOT.format(options='layer=["1", "0"], detectors=[]') + (
        "from camwatch.auditing.verdicts import COLUMNS\n"
        "tags = watcher.tags(snapshot.scalars)\n"
        "print('peak' in COLUMNS, 'peak' in watcher.published, 'peak/right' in watcher.published)\n"
        "print(*[f'camwatch/{key}' in tags for key in ('peak', '1/peak', '0/peak')])\n"
        "maps = explain(net, images, target=labels, layer='0').maps\n"
        "print(torch.equal(snapshot.per_image['0/peak'], maps.amax((1, 2))))\n"
    )
    assert run(folder, code) == ["True"] * 7


def test_a_probe_is_a_function_and_its_line(tmp_path: Path) -> None:
    line = (
        'ProbeLine((_rate(name="asked_again", title="answers given again", better="high"),), '
        'lambda asked: {"asked_again": (asked.predict(asked.panel.images).argmax(1) == asked.labels).float()}),'
    )
    folder = extended(tmp_path, "probes/table.py", {"PROBES: tuple[ProbeLine, ...] = (": line})
    code = SNAPSHOT.format(options='detectors=["probe"]') + (
        "print('asked_again' in watcher.published, snapshot.scalars['asked_again'] == snapshot.scalars['correct'])\n"
    )
    assert run(folder, code) == ["True", "True"]


DETECTOR = """
from dataclasses import dataclass
from camwatch.detectors.state import Remembering
from camwatch.records import Finding

@dataclass(eq=False)
class Present(Remembering):
    name: str = "present"

    def update(self, snapshot):
        return Finding(self.name, snapshot.epoch, snapshot.global_step, "It is there.", severity="note")

    def finish(self, last):
        return None
"""


def test_a_detector_is_a_class_and_its_line(tmp_path: Path) -> None:
    lines = {
        "from camwatch.detectors.probe import Probe": "from camwatch.detectors.present import Present",
        '    "dead_maps": DeadMaps,': '    "present": Present,',
    }
    folder = extended(tmp_path, "detectors/coercion.py", lines, {"detectors/present.py": DETECTOR})
    code = SNAPSHOT.format(options="on_alarm=[]") + (
        "notes = [finding.detector for finding in watcher.findings if finding.severity == 'note']\n"
        "print(*notes, len(watcher.alarms))\n"
    )
    assert run(folder, code) == ["present", "0"]


WRITER = """
class NotebookWriter:
    def __init__(self, logger):
        self.logger = logger

    def image(self, tag, picture, step):
        self.logger.kept.append(tag)

    def scalars(self, values, step):
        self.logger.kept.extend(values)

    def text(self, tag, text, step): ...
"""


def test_a_writer_is_a_module_and_its_line(tmp_path: Path) -> None:
    lines = {"_WRITERS = {": '    "NotebookLogger": ("notebook", "NotebookWriter"),'}
    folder = extended(tmp_path, "watch/writers/base.py", lines, {"watch/writers/notebook.py": WRITER})
    code = (
        "from camwatch.watch.writers.base import for_logger\n"
        "class NotebookLogger: kept = []\n"
        + SNAPSHOT.format(options="detectors=[], writers=[for_logger(NotebookLogger())]")
        + "watcher.close()\n"
        "print('camwatch/1/overlays' in NotebookLogger.kept, 'camwatch/correct' in NotebookLogger.kept)\n"
    )
    assert run(folder, code) == ["True", "True"]


READER = """
from functools import partial
import torch
from camwatch.regions.readers.base import FileRegions, Shape

def read(path):
    lines = [line.split() for line in path.read_text().splitlines()]
    return FileRegions({name: partial(list, [Shape((), torch.tensor([*map(float, box)]))]) for name, *box in lines})
"""


def test_a_reader_is_a_module_and_its_line(tmp_path: Path) -> None:
    lines = {
        "FORMATS = (": '    Format("lines of .txt", ".txt", False, lines.read),',
        "from camwatch.errors import RegionError": "from camwatch.regions.readers import lines",
    }
    folder = extended(tmp_path, "regions/readers/formats.py", lines, {"regions/readers/lines.py": READER})
    (folder / "boxes.txt").write_text("0 2 2 8 8\n")
    code = (
        "from camwatch import Panel, Watcher, load_archive\n"
        + SNAPSHOT.format(options="detectors=[], directory='run'")
        + "watcher.close()\n"
        "panel = Panel.from_archive('run', regions='boxes.txt')\n"
        "print(int(panel.regions.annotated.sum()), *panel.regions.boxes()[0].tolist())\n"
        "from pathlib import Path\n"
        "from camwatch.cli.photos import read_regions\n"
        "print(*read_regions(Path('boxes.txt')))\n"
    )
    assert run(folder, code) == ["1", "2", "2", "8", "8", "0"]


COMMAND = """
BRIEF = ABOUT = EXAMPLES = "greet somebody"

def add_options(parser):
    parser.add_argument("name")

def run(options):
    print("hello", options.name)
    return 0
"""


def test_a_command_is_a_module_and_its_line(tmp_path: Path) -> None:
    lines = {'COMMANDS = ("audit", "layers", "explain")': 'COMMANDS += ("greet",)'}
    folder = extended(tmp_path, "cli/entry.py", lines, {"cli/greet.py": COMMAND})
    assert run(folder, "from camwatch.cli.entry import main; main(['greet', 'you'])") == ["hello", "you"]
    listed = "from camwatch.cli.entry import commands; print(*commands())"
    assert run(folder, listed) == ["audit", "layers", "explain", "greet"]
