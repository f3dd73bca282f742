"""What importing camwatch loads."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = (
    "lightning",
    "pytorch_lightning",
    "torchvision",
    "torchmetrics",
    "scipy",
    "matplotlib",
    "tensorboard",
    "torch.utils.tensorboard",
    "transformers",
    "PIL",
)


def loaded_after(code: str) -> set[str]:
    """Which of the heavy packages a fresh interpreter has loaded after running some code."""
    program = f"{code}\nimport sys\nprint(*[name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_importing_camwatch_adds_only_itself_to_torch() -> None:
    program = (
        "import sys, numpy, torch\nbefore = set(sys.modules)\nimport camwatch\n"
        "print(*[name for name in set(sys.modules) - before if not name.startswith('camwatch')])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


@pytest.mark.parametrize(
    "code",
    [
        "import camwatch",
        "from camwatch import Finding, Explanation, Panel, Regions, Snapshot, Watcher, explain, layers, methods",
        "from camwatch import Watcher\n"
        "import torch\n"
        "net = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.Flatten(), torch.nn.Linear(72, 2))\n"
        "data = torch.rand(4, 1, 8, 8), [0, 1, 0, 1]\n"
        "assert Watcher(net, data, detectors=[]).snapshot(0, 0).error is None",
    ],
    ids=["import", "names", "snapshot"],
)
def test_import_loads_nothing_heavy_before_it_is_used(code: str) -> None:
    assert loaded_after(code) == set()


def test_import_of_the_monitor_loads_lightning_but_no_logger_or_plotting() -> None:
    loaded = loaded_after("from camwatch import CAMMonitor")
    assert "pytorch_lightning" in loaded
    baseline = loaded_after("import pytorch_lightning, pytorch_lightning.callbacks, lightning.pytorch.callbacks")
    assert loaded <= baseline | {"lightning", "pytorch_lightning"}
