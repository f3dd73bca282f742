"""Kills a training run at random instants (SIGKILL), resumes it, and reads what is left each time.

    python tests/benchmarks/kill.py --times 100

After each kill: the archive can be read without a damaged file, its snapshots follow each other without a gap, and
none is missing that the run had reported as written (one may be unfinished). Half of the kills hit a run that was
itself resumed from its newest checkpoint.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))


@dataclass
class Outcome:
    """What one kill left.

    Attributes:
        after: Seconds from the first snapshot to the kill.
        reported: Snapshots that the run had counted by then.
        snapshots: How many are in the archive.
        problem: What is wrong; empty if nothing.
        without_maps: How many of them had to be taken from the checkpoint.
    """

    after: float
    reported: int
    snapshots: int
    problem: str
    without_maps: int = 0


def train(folder: Path, checkpoint: str | None) -> None:
    """A run without an end; prints a line for every snapshot that it has handed to the writer."""
    import pytorch_lightning as pl
    from nets import SmallNet, data, loader, trainer
    from pytorch_lightning.callbacks import ModelCheckpoint
    from pytorch_lightning.loggers import CSVLogger

    from camwatch import CAMMonitor

    class Report(pl.Callback):
        def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            print(monitor.archive, flush=True)
            self.on_train_epoch_end(trainer, pl_module)

        def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            print(len(monitor.history), flush=True)

    warnings.simplefilter("ignore")
    monitor = CAMMonitor(12)
    saving = ModelCheckpoint(folder / "checkpoints", save_last=True, every_n_epochs=1)
    run = trainer([monitor, Report(), saving], max_epochs=10_000, logger=CSVLogger(folder), enable_checkpointing=True)
    run.fit(SmallNet(), loader(data(16)), loader(data(16)), ckpt_path=checkpoint)


def kill_once(folder: Path, rng: random.Random, resume: bool) -> Outcome:
    """Trains in a process, kills it, and reads the archive."""
    last = folder / "checkpoints" / "last.ckpt"
    arguments = [sys.executable, __file__, "--train", str(folder)]
    arguments += ["--checkpoint", str(last)] if resume and last.exists() else []
    process = subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert process.stdout is not None and process.stderr is not None
    path = process.stdout.readline().strip()
    if not path:
        raise RuntimeError(f"the run did not start: {process.stderr.read()[-2000:]}")
    after = rng.uniform(0, 1.5)
    time.sleep(after)
    process.send_signal(signal.SIGKILL)
    counts = [int(line) for line in process.stdout.read().split()]
    process.wait()
    return examine(Path(path), after, counts[-1] if counts else 0)


def examine(path: Path, after: float, reported: int) -> Outcome:
    """Reads an archive after a kill."""
    from camwatch import load_archive

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # a damaged file is a warning
            run = load_archive(path)
    except Exception as error:
        return Outcome(after, reported, 0, f"{type(error).__name__}: {error}")
    looks = [snapshot.look for snapshot in run.snapshots]
    problem = "" if looks == list(range(len(looks))) else f"looks {looks}"
    # One that was killed while it waited for the writer, and comes from the checkpoint, has all but its maps.
    without_maps = sum(not snapshot.maps for snapshot in run.snapshots)
    # Up to eight may wait for the writer; the epochs here take as long as writing does.
    if len(looks) < reported - 8:
        problem = f"{len(looks)} snapshots of {reported}"
    return Outcome(after, reported, len(looks), problem, without_maps)


def kill_repeatedly(folder: Path, times: int, seed: int) -> list[Outcome]:
    """Kills runs, every second one resumed."""
    rng = random.Random(seed)
    return [kill_once(folder, rng, resume=bool(i % 2)) for i in range(times)]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--train", type=Path)
    parser.add_argument("--checkpoint")
    given = parser.parse_args()
    if given.train is not None:
        train(given.train, given.checkpoint)
    else:
        with tempfile.TemporaryDirectory() as name:
            outcomes = kill_repeatedly(Path(name), given.times, given.seed)
        bad = [one for one in outcomes if one.problem]
        missing = [one.reported - one.snapshots for one in outcomes]
        print(f"{len(outcomes)} kills, {len(outcomes) - len(bad)} archives sound, {len(bad)} not")
        print(f"snapshots that were counted but not yet written: at most {max(missing)}, none in {missing.count(0)}")
        print(f"snapshots taken from a checkpoint, without maps: {max(one.without_maps for one in outcomes)}")
        for one in bad:
            print(one)
