"""Kills a training run at random instants (SIGKILL), resumes it, kills it again, and reads what is left each time.

    python tests/benchmarks/kill.py --times 100

After each kill: the archive can be read without a damaged file, its snapshots follow each other without a gap, and
at most the last one that the run had taken is missing. Every second kill hits a run that was resumed from the newest
checkpoint of the one before; of its snapshots at most one, the unfinished one of before, has no maps.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import multiprocessing
import random
import sys
import tempfile
import time
import warnings
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))


@dataclass
class Outcome:
    """What one kill left.

    Attributes:
        after: Seconds from the beginning of the set-up to the kill.
        reported: Snapshots that the run had counted by then; 0 where it was killed before the first.
        snapshots: How many are in the archive.
        resumed: Whether the run went on from a checkpoint.
        without_maps: How many of the snapshots had to be taken from that checkpoint.
        problem: What is wrong; empty if nothing.
    """

    after: float
    reported: int = 0
    snapshots: int = 0
    resumed: bool = False
    without_maps: int = 0
    problem: str = ""


def train(folder: Path, checkpoint: str | None, told: Connection) -> None:
    """A run without an end, in a process of its own; tells of every snapshot that it has taken."""
    import pytorch_lightning as pl
    import torch
    from pytorch_lightning.callbacks import ModelCheckpoint
    from pytorch_lightning.loggers import CSVLogger

    from camwatch import CAMMonitor
    from tests.support.nets import SmallNet, data, loader, trainer

    class Report(pl.Callback):
        def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
            told.send((0, ""))

        def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            self.on_train_epoch_end(trainer, pl_module)

        def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            told.send((len(monitor.history), str(monitor.archive)))

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    monitor = CAMMonitor(12)
    saving = ModelCheckpoint(folder / "checkpoints", save_last=True, every_n_epochs=1)
    run = trainer([monitor, Report(), saving], max_epochs=10_000, logger=CSVLogger(folder), enable_checkpointing=True)
    run.fit(SmallNet(), loader(data(16)), loader(data(16)), ckpt_path=checkpoint)


def kill_once(folder: Path, after: float) -> Outcome:
    """Trains in a process, from the folder's checkpoint where there is one, kills it, and reads the archive."""
    context = multiprocessing.get_context("forkserver")  # which has imported what takes long
    context.set_forkserver_preload(
        ["tests.support.nets", "camwatch.adapters.lightning.callback", "matplotlib", "torchvision"]
    )
    last = folder / "checkpoints" / "last.ckpt"
    here, there = context.Pipe(duplex=False)
    resumed = last.exists()
    process = context.Process(target=train, args=(folder, str(last) if resumed else None, there))
    process.start()
    there.close()
    reports: list[tuple[int, str]] = [here.recv()]  # it has begun
    time.sleep(after)
    process.kill()
    process.join()
    with contextlib.suppress(EOFError):
        while True:
            reports.append(here.recv())
    reported, path = reports[-1]
    outcome = Outcome(after, reported, resumed=resumed)
    return examine(Path(path), outcome) if reported else outcome


def examine(path: Path, outcome: Outcome) -> Outcome:
    """Reads an archive after a kill."""
    from camwatch import load_archive

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # a damaged file is a warning
            run = load_archive(path)
    except Exception as error:
        return replace(outcome, problem=f"{type(error).__name__}: {error}")
    looks = [snapshot.look for snapshot in run.snapshots]
    without_maps = sum(not snapshot.maps for snapshot in run.snapshots)
    problem = ""
    if looks != list(range(len(looks))):
        problem = f"looks {looks}"
    elif len(looks) < outcome.reported - 1:
        problem = f"{len(looks)} snapshots of {outcome.reported}"
    elif without_maps > outcome.resumed:
        problem = f"{without_maps} snapshots have no maps"
    return replace(outcome, snapshots=len(looks), without_maps=without_maps, problem=problem)


def kill_repeatedly(folder: Path, times: int, seed: int) -> list[Outcome]:
    """Kills runs, every second one resumed from what the one before left."""
    rng = random.Random(seed)
    return [kill_once(folder / str(i // 2), rng.uniform(0, 2.5)) for i in range(times)]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        outcomes = kill_repeatedly(Path(name), given.times, given.seed)
    bad = [one for one in outcomes if one.problem]
    begun = [one for one in outcomes if one.reported]
    missing = [one.reported - one.snapshots for one in begun]
    resumed = [one for one in begun if one.resumed]
    print(f"{len(outcomes)} kills, {len(outcomes) - len(bad)} archives sound, {len(bad)} not")
    print(f"{len(outcomes) - len(begun)} before the first snapshot, {len(resumed)} of the others in a resumed run")
    print(f"snapshots taken: {sum(one.reported for one in begun)}, at most {max(o.reported for o in begun)} in a run")
    print(f"the last snapshot was missing after {sum(n > 0 for n in missing)} kills, never more than {max(missing)}")
    print(f"resumed with one snapshot from the checkpoint, without maps: {sum(o.without_maps for o in resumed)}")
    for one in bad:
        print(one)
