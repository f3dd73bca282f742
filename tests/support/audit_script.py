"""Audits in processes of their own: ``audit_script.py kill|ddp FOLDER``."""

from __future__ import annotations

import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

import camwatch
from tests.support.nets import SmallNet, data, trainer

SIZES = (13, 3)  # four batches of which the last is short; fewer batches than processes


class Slow(Dataset[Any]):
    """Takes its time for each sample, and remembers which were read."""

    def __init__(self, seconds: float) -> None:
        self.samples, self.seconds, self.read = data(40), seconds, set[int]()

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Any:
        time.sleep(self.seconds)
        self.read.add(index)
        return self.samples[index]


def network() -> SmallNet:
    torch.manual_seed(0)
    return SmallNet().eval()


def main(what: str, folder: Path) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    if what == "kill":
        camwatch.audit(network(), DataLoader(Slow(0.05), 4), output=folder / "audit.csv", trainer=trainer())
        return
    for n in SIZES:
        two = trainer(devices=2, strategy="ddp")
        found = camwatch.audit(network(), DataLoader(data(n), 4), output=folder / f"two{n}.csv", trainer=two)
        (folder / f"rank{two.global_rank}_{n}.txt").write_text(str(found))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
