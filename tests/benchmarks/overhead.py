"""What the default monitor adds to a whole run, in CPU time.

Two processes train the same, one of them with ``CAMMonitor``, and take turns epoch by epoch, so that both see
the same machine. What is compared is the CPU time of the whole process from the start of ``fit`` to its end,
the writer thread included, and that of the training thread alone. On a busy machine the difference of the two
is uncertain by a percent or two; what was spent in the monitor's own hooks and on other threads is counted
apart, in the watched process alone.

    python tests/benchmarks/overhead.py                            # ResNet-18, 2,000 images of 112 px, 3 epochs
    python tests/benchmarks/overhead.py --images 200 --repeats 3   # a tenth of it
    python tests/benchmarks/overhead.py --example                  # examples/catch_shortcut.py, with its regions
"""

from __future__ import annotations

import argparse
import importlib.util
import logging
import multiprocessing
import tempfile
import time
import warnings
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import TensorBoardLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from camwatch import CAMMonitor

EXAMPLE = Path(__file__).parents[2] / "examples" / "catch_shortcut.py"


class Classifier(pl.LightningModule):
    """ResNet-18 from scratch."""

    def __init__(self) -> None:
        super().__init__()
        import torchvision

        self.net = torchvision.models.resnet18(weights=None, num_classes=10)

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
        self.log("loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", nn.functional.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01, momentum=0.9)


class Turns(pl.Callback):
    """Waits for its turn before every epoch, and counts the time of its own turns only."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.first = True

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.connection.recv()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not self.first:
            self.connection.send(None)
            self.connection.recv()
        self.first = False


def count_hooks(monitor: CAMMonitor) -> list[float]:
    """Returns a list to which every call of the monitor's hooks adds its CPU time."""
    spent: list[float] = []

    def counted(hook: Any) -> Any:
        def run(*args: Any, **kwargs: Any) -> Any:
            start = time.thread_time()
            try:
                return hook(*args, **kwargs)
            finally:
                spent.append(time.thread_time() - start)

        return run

    for name in vars(CAMMonitor):
        if name.startswith("on_") or name in ("setup", "teardown"):
            setattr(monitor, name, counted(getattr(monitor, name)))
    return spent


def train(connection: Connection, monitored: bool, options: argparse.Namespace) -> None:
    """One process's run; sends the CPU time of the process, of the thread and of the monitor's hooks."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    pl.seed_everything(0)
    model, loaders, epochs = example() if options.example else resnet18(options)
    callbacks: list[pl.Callback] = [Turns(connection)]
    monitor = CAMMonitor(panel=64) if options.example else CAMMonitor()
    hooks = count_hooks(monitor)
    if monitored:
        callbacks.append(monitor)
    with tempfile.TemporaryDirectory() as folder:
        trainer = pl.Trainer(
            max_epochs=epochs,
            callbacks=callbacks,
            logger=TensorBoardLogger(folder),
            accelerator="cpu",
            enable_progress_bar=False,
            enable_model_summary=False,
            log_every_n_steps=5,
        )
        connection.send(None)
        process, thread = time.process_time(), time.thread_time()
        trainer.fit(model, *loaders)
        spent = time.process_time() - process, time.thread_time() - thread, sum(hooks)
        assert not monitored or len([one for one in monitor.history if one.error is None]) == epochs + 1
    connection.send(spent)


def resnet18(options: argparse.Namespace) -> tuple[pl.LightningModule, list[Any], int]:
    def noise(n: int) -> TensorDataset:
        """Smooth as photographs are."""
        coarse = torch.randn(n, 3, 14, 14, generator=torch.Generator().manual_seed(n))
        images = nn.functional.interpolate(coarse, size=options.size, mode="bicubic")
        return TensorDataset(images, torch.arange(n) % 10)

    batches = {"batch_size": 32}
    validation = DataLoader(noise(max(64, options.images // 5)), **batches)
    return Classifier(), [DataLoader(noise(options.images), shuffle=True, **batches), validation], options.epochs


def example() -> tuple[pl.LightningModule, list[Any], int]:
    spec = importlib.util.spec_from_file_location("catch_shortcut", EXAMPLE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    data = [module.tagged_digits(split="train", informative=True)]
    data += [module.tagged_digits(split="validation", informative=flag) for flag in (True, False)]
    loaders = [module.loader(data[0], shuffle=True), [module.loader(one) for one in data[1:]]]
    return module.Classifier(module.pretrained_backbone()), loaders, 6


def compare(options: argparse.Namespace) -> dict[bool, tuple[float, float, float]]:
    """Runs both, turn by turn; returns monitored -> (process, thread, hooks) CPU seconds."""
    context = multiprocessing.get_context("spawn")
    ends: dict[bool, Connection] = {}
    processes = []
    for monitored in (False, True):
        ends[monitored], theirs = context.Pipe()
        processes.append(context.Process(target=train, args=(theirs, monitored, options)))
        processes[-1].start()
        ends[monitored].recv()  # ready
    spent: dict[bool, tuple[float, float, float]] = {}
    turn = 0
    while len(spent) < 2:
        for monitored in (False, True) if turn % 2 else (True, False):
            ends[monitored].send(None)
            reply = ends[monitored].recv()
            if reply is not None:
                spent[monitored] = reply
        turn += 1
    for process in processes:
        process.join()
    return spent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--size", type=int, default=112)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--example", action="store_true")
    options = parser.parse_args()
    what = f"ResNet-18, {options.images} images of {options.size} px"
    what = "examples/catch_shortcut.py" if options.example else what
    for _ in range(options.repeats):
        spent = compare(options)
        for i, whose in enumerate(("whole process", "training thread")):
            without, with_it = spent[False][i], spent[True][i]
            print(
                f"{what}: {whose}: {without:.2f} s without, {with_it:.2f} s with the monitor, "
                f"+{with_it - without:.2f} s, {with_it / without - 1:+.2%}",
                flush=True,
            )
        process, thread, hooks = spent[True]
        own = thread - hooks
        print(
            f"{what}: in the hooks {hooks:.2f} s, {hooks / own:.2%} of the rest of the thread; "
            f"on other threads {process - thread:.2f} s, {(process - thread) / own:.2%}",
            flush=True,
        )


if __name__ == "__main__":
    main()
