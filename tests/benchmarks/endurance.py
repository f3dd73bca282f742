"""Thousands of snapshots of a small net: what grows, and what is left behind.

Memory is the resident set after a collection, read every so many snapshots. It swings by some megabytes whatever
happens, so the growth is the slope of a line through the readings after the first 50, with its interval.

    python tests/benchmarks/endurance.py                  # 2,000 snapshots
    python tests/benchmarks/endurance.py --regions        # with regions, probes and detectors
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import os
import tempfile
import threading
import time
import warnings
from pathlib import Path

import torch
from scipy.stats import linregress, t
from torch import nn

from camwatch import Panel
from camwatch.watch.watcher import Watcher


def small_net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)
    )


def resident() -> int:
    """Bytes of the process in memory, after everything free is given back to the system."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def hooks(model: nn.Module) -> int:
    """How many hooks there are on all modules."""
    names = [name for name in vars(nn.Module()) if name.endswith("_hooks")]
    return sum(len(getattr(module, name)) for module in model.modules() for name in names)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--snapshots", type=int, default=2000)
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--every", type=int, default=100, help="snapshots between two readings")
    parser.add_argument("--regions", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    model, n = small_net(), options.images
    boxes = [torch.tensor([[2, 2, 12, 12]])] * n if options.regions else None
    panel = Panel(torch.rand(n, 3, 32, 32), torch.arange(n) % 3, boxes)
    threads = threading.active_count()
    with tempfile.TemporaryDirectory() as folder:
        watcher = Watcher(model, panel, on_alarm=lambda alarm: None, directory=folder)
        readings: dict[int, int] = {}
        start = time.process_time()
        for look in range(options.snapshots):
            watcher.snapshot(look, look)
            if look + 1 == 50 or (look + 1) % options.every == 0:
                watcher.flush()
                readings[look + 1] = resident()
                print(f"{look + 1:6d} snapshots: {readings[look + 1] / 2**20:8.2f} MB", flush=True)
        spent = time.process_time() - start
        watcher.finish()
        watcher.close()
        failed = sum(snapshot.error is not None for snapshot in watcher.history)
        files = len(list(Path(folder).glob("snapshots/*.safetensors")))
        line = linregress(list(readings), list(readings.values()))
        half = float(t.ppf(0.975, len(readings) - 2)) * line.stderr
        print(f"{spent / options.snapshots * 1e3:.1f} ms of CPU time a snapshot, writing included")
        print(
            f"growth after the first 50: {line.slope:.0f} bytes a snapshot ({line.slope - half:.0f} to "
            f"{line.slope + half:.0f}, 95 % interval)"
        )
        print(f"{failed} failed, {len(watcher.alarms)} alarms, {files} files in the archive, {hooks(model)} hooks")
    del watcher
    gc.collect()
    left = [thread.name for thread in threading.enumerate()][threads:]
    print(f"threads left behind: {left or 'none'}")


if __name__ == "__main__":
    main()
