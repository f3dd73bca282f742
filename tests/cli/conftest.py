"""A folder of photos with masks, a checkpoint, and command lines as a person types them."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image

from camwatch.cli.entry import main
from tests.cli.nets import Net

AUDIT = "audit last.ckpt --module tests.cli.nets.Net --data DATA --size 32 --accelerator cpu --quiet"


Run = Callable[[str], tuple[int, str, str]]


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
