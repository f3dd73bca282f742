"""What an audit costs: CPU time beside plain inference over the same loader, and memory.

python tests/benchmarks/audit.py speed     # ResNet-18, 224 px, metrics on; interleaved, median of the ratios
python tests/benchmarks/audit.py memory    # peak memory of a fresh process with 500 and with 5,000 images
"""

from __future__ import annotations

import argparse
import logging
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.models import resnet18

import camwatch


class Photos(Dataset[Any]):
    """Images, labels and masks made when they are asked for, as if decoded."""

    def __init__(self, n: int, size: int, classes: int) -> None:
        self.n, self.size, self.classes = n, size, classes

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> tuple[Tensor, int, Tensor]:
        image = torch.rand(3, self.size, self.size, generator=torch.Generator().manual_seed(index))
        mask = torch.zeros(self.size, self.size, dtype=torch.bool)
        mask[self.size // 4 : self.size // 2, self.size // 4 :] = True
        return image, index % self.classes, mask


def quiet() -> pl.Trainer:
    return pl.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def speed(images: int, batch: int, rounds: int) -> None:
    torch.manual_seed(0)
    model = resnet18().eval()
    loader = DataLoader(Photos(images, 224, 1000), batch)

    def plain() -> float:
        start = time.process_time()
        with torch.inference_mode():
            for images, *_ in loader:
                model(images).softmax(1).max(1)
        return time.process_time() - start

    def audited(worst: int) -> float:
        with tempfile.TemporaryDirectory() as folder:
            start = time.process_time()
            camwatch.audit(model, loader, output=f"{folder}/audit.csv", trainer=quiet(), worst=worst)
            return time.process_time() - start

    plain()
    audited(24)  # warm-up: imports, fonts
    ratios, ends = [], []
    for number in range(rounds):
        before, mine, after = plain(), audited(0), plain()
        ends.append(audited(24) - mine)
        ratios.append((before + after) / 2 / mine)
        print(f"round {number}: plain {before:.2f} s and {after:.2f} s, audit {mine:.2f} s, ratio {ratios[-1]:.3f}")
    threads, median = torch.get_num_threads(), statistics.median
    print(f"\nResNet-18, {images} images of 224 px in batches of {batch}, {threads} thread(s), CPU time:")
    print(f"throughput {median(ratios):.3f}x of plain inference (median of {rounds}; least {min(ratios):.3f})")
    print(f"the sheet of the 24 worst adds {median(ends):.2f} s once")


def memory() -> None:
    peaks = {}
    for n in (500, 5000):
        run = subprocess.run([sys.executable, __file__, "one", str(n)], capture_output=True, text=True, check=True)
        peaks[n] = float(run.stdout.split()[-1])
        print(f"{n} images: peak {peaks[n]:.1f} MB")
    print(f"difference {peaks[5000] - peaks[500]:+.1f} MB")


def one(n: int) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3, 2), nn.ReLU(), nn.Conv2d(16, 32, 3, 2), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10),
    ).eval()  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        found = camwatch.audit(net, DataLoader(Photos(n, 32, 10), 32), output=f"{folder}/audit.csv", trainer=quiet())
        assert found.total.images == n
        assert len(Path(found.table).read_text().splitlines()) == n + 1
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["speed", "memory", "one"])
    parser.add_argument("n", nargs="?", type=int, default=0, help="images, for a single run of the memory part")
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    torch.set_num_threads(options.threads)
    if options.what == "speed":
        speed(options.images, options.batch_size, options.rounds)
    elif options.what == "memory":
        memory()
    else:
        one(options.n)
