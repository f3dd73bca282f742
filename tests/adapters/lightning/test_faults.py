"""Whatever fails in a snapshot or behind it: one warning, a record, and training goes on."""

from __future__ import annotations

import errno
import os
import signal
import threading
import warnings
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.loggers.logger import Logger
from torch import Tensor, nn
from torch.utils.data import Dataset

from camwatch import CAMMonitor, Finding, files, load_archive
from camwatch import run as run_room
from camwatch.cam.engine import explain
from camwatch.errors import CamwatchWarning, PanelError
from camwatch.watch import output as output_room
from camwatch.watch import publish
from tests.support.nets import SmallNet, data, loader, trainer


def fit(monitor: CAMMonitor, net: Any = None, epochs: int = 3, **options: Any) -> tuple[pl.Trainer, list[str]]:
    """Trains, and returns what camwatch warned of; remarks on the small panel and its colours are left out."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        val = options.pop("val", None) or loader(data())
        run = trainer([monitor, *options.pop("callbacks", [])], max_epochs=epochs, log_every_n_steps=1, **options)
        run.fit(net or SmallNet(), loader(data()), val)
    texts = [str(one.message) for one in caught if issubclass(one.category, CamwatchWarning)]
    usual = ("images of the panel can be judged", "normalization", "are blank")
    return run, [text for text in texts if not any(part in text for part in usual)]


def errors(monitor: CAMMonitor) -> list[str | None]:
    return [snapshot.error for snapshot in monitor.history]


class AtLook:
    """Stands in for a function and raises at some looks."""

    def __init__(self, monitor: CAMMonitor, function: Any, error: BaseException, looks: tuple[int, ...]) -> None:
        self.monitor, self.function, self.error, self.looks = monitor, function, error, looks

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if len(self.monitor.history) in self.looks:
            raise self.error
        return self.function(*args, **kwargs)


def test_failing_snapshots_are_recorded_warned_of_once_and_tried_again(monkeypatch, tmp_path):
    monitor = CAMMonitor(12)
    broken = AtLook(monitor, explain, RuntimeError("broken kernel"), (1, 2))
    monkeypatch.setattr(run_room, "explain", broken)
    run, said = fit(monitor, logger=CSVLogger(tmp_path))
    assert run.current_epoch == 3
    assert errors(monitor) == [None, "RuntimeError: broken kernel", "RuntimeError: broken kernel", None]
    assert len(said) == 1 and "epoch 0, step 4 failed" in said[0] and "broken kernel" in said[0]
    assert [s.error for s in load_archive(monitor.archive).snapshots] == errors(monitor)


def test_weights_of_nan_are_survived():
    class Diverging(SmallNet):
        def on_train_epoch_start(self) -> None:
            if self.current_epoch == 1:
                nn.init.constant_(self.head.weight, torch.nan)

    monitor = CAMMonitor(12)
    run, said = fit(monitor, Diverging())
    assert run.current_epoch == 3
    assert len(monitor.history) == 4
    assert all(torch.isfinite(value) for key, value in run.callback_metrics.items() if key.startswith("camwatch/"))
    assert errors(monitor) == [None] * 4 and said == []
    assert [snapshot.scalars["blank_maps"] == 1 for snapshot in monitor.history] == [False, False, True, True]
    assert all(snapshot.probability.isnan().all() for snapshot in monitor.history[2:])


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_lack_of_memory_is_answered_with_smaller_batches(error):
    sizes: list[int] = []

    class Short(SmallNet):
        def forward(self, images: Tensor) -> Tensor:
            if not self.training and torch.is_grad_enabled():
                sizes.append(len(images))
                if len(images) > 3 and self.trainer.current_epoch > 0:
                    raise error
            return super().forward(images)

    monitor = CAMMonitor(12, detectors=[])
    _, said = fit(monitor, Short())
    assert errors(monitor) == [None] * 4 and said == []
    assert sizes[-10:] == [12, 6, *[3] * 8]  # and not tried again at every snapshot


def test_lack_of_memory_for_one_image_is_a_failed_snapshot():
    class Short(SmallNet):
        def forward(self, images: Tensor) -> Tensor:
            if not self.training and torch.is_grad_enabled() and self.trainer.current_epoch == 1:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().forward(images)

    monitor = CAMMonitor(12)
    _, said = fit(monitor, Short())
    assert [bool(error) for error in errors(monitor)] == [False, False, True, False]
    assert len(said) == 1 and "OutOfMemoryError" in said[0]


class Refusing(Logger):
    """A logger that takes the trainer's own metrics only."""

    name, version = "refusing", 0

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        pass

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        if any(key.startswith("camwatch/") for key in metrics):
            raise ConnectionError("no route to host")


def test_a_logger_that_raises_keeps_nothing_from_the_others(tmp_path):
    monitor = CAMMonitor(12)
    _, said = fit(monitor, logger=[Refusing(), CSVLogger(tmp_path)])
    assert errors(monitor) == [None] * 4
    assert len(said) == 1 and "a logger refused the scalars" in said[0] and "no route" in said[0]
    assert "camwatch/pointing_game" in next(tmp_path.rglob("metrics.csv")).read_text()


def test_a_full_disk_is_warned_of_once_and_later_snapshots_are_written(monkeypatch, tmp_path):
    monitor = CAMMonitor(12)
    full = OSError(errno.ENOSPC, "No space left on device")
    replace, calls = os.replace, []

    def replacing(source: Any, target: Any) -> None:
        calls.append(Path(target).name)
        # Records and pictures of the second and third snapshot, on two threads.
        if Path(target).name in ("000001.safetensors", "000002.safetensors", "step_00000004.png", "step_00000008.png"):
            raise full
        replace(source, target)

    monkeypatch.setattr(files.os, "replace", replacing)
    run, said = fit(monitor, logger=CSVLogger(tmp_path))
    assert run.current_epoch == 3 and errors(monitor) == [None] * 4
    assert len(said) == 1 and "No space left" in said[0]
    assert [s.look for s in load_archive(monitor.archive).snapshots] == [0, 3]
    assert {"000002.safetensors", "step_00000008.png"} <= set(calls)  # it was tried again
    strips = sorted(path.name for path in tmp_path.rglob("film_strip/*.png"))
    assert strips == ["step_00000000.png", "step_00000012.png"]


def test_a_directory_that_cannot_be_written_is_warned_of():
    class Elsewhere(Logger):
        name, version, save_dir = "elsewhere", 0, "/proc/nowhere"  # not even root can write there

        def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
            pass

        def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
            pass

    monitor = CAMMonitor(12)
    run, said = fit(monitor, logger=Elsewhere())
    assert run.current_epoch == 3 and errors(monitor) == [None] * 4
    assert len(said) == 1 and "training goes on" in said[0]


class Unreadable(Dataset[Any]):
    """Some files cannot be decoded."""

    def __init__(self, broken: tuple[int, ...], targets: bool) -> None:
        self.broken = broken
        if targets:  # else samples are read to learn their labels
            self.targets = data().tensors[1][:12].tolist()

    def __len__(self) -> int:
        return 12

    def __getitem__(self, i: int) -> Any:
        if i in self.broken:
            raise OSError(f"cannot identify image file '{i}.jpg'")
        return data()[i]


@pytest.mark.parametrize("n", [12, 10])
@pytest.mark.parametrize("targets", [True, False])
def test_an_image_that_cannot_be_decoded_is_left_out_and_named(targets, n):
    monitor = CAMMonitor(n)
    run, said = fit(monitor, val=loader(Unreadable((5, 8), targets)), limit_val_batches=0)
    assert run.current_epoch == 3 and errors(monitor) == [None] * 4
    panel = monitor._watcher.panel
    kept = [int(i) for i in panel.ids]
    assert len(set(kept)) == len(kept) >= 8 and not {5, 8} & set(kept)
    assert torch.equal(panel.images, data().tensors[0][kept]) and torch.equal(panel.labels, data().tensors[1][kept])
    chosen_blindly = targets or n == 12  # otherwise their labels could not be read, and they were not chosen
    assert len(said) == chosen_blindly
    assert not said or ("cannot be read and are left out of the panel" in said[0] and ".jpg'" in said[0])


def test_a_data_set_of_which_no_image_can_be_decoded_is_an_error_before_training():
    class Untrained(SmallNet):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            raise AssertionError("a training step was taken")

    run = trainer(CAMMonitor(12))
    with pytest.raises(PanelError, match=r"none of 12 samples .* can be read; .*OSError: cannot identify image file"):
        run.fit(Untrained(), loader(data()), loader(Unreadable(tuple(range(12)), True)))


def test_a_detector_that_raises_is_passed_over():
    def broken(snapshot: Any) -> Any:
        raise KeyError("oh")

    def sound(snapshot: Any) -> Finding | None:
        return Finding("sound", snapshot.epoch, snapshot.global_step, "heard") if snapshot.epoch == 1 else None

    monitor = CAMMonitor(12, detectors=[broken, sound], on_alarm=lambda alarm, trainer: None)
    _, said = fit(monitor)
    assert [alarm.detector for alarm in monitor.alarms] == ["sound"] and errors(monitor) == [None] * 4
    assert len(said) == 1 and "the detector 'broken' failed" in said[0]


def test_an_action_that_raises_keeps_nothing_from_the_others():
    def always(snapshot: Any) -> Finding:
        return Finding("always", snapshot.epoch, snapshot.global_step, "again")

    def broken(alarm: Finding, trainer: Any) -> None:
        raise ConnectionError("no mail today")

    heard: list[Finding] = []
    actions = [broken, lambda alarm, trainer: heard.append(alarm)]
    monitor = CAMMonitor(12, detectors=[always], on_alarm=actions)
    run, said = fit(monitor)
    assert run.current_epoch == 3 and heard == monitor.alarms and len(heard) == 4
    assert len(said) == 1 and "no mail today" in said[0]


class Ending(pl.Callback):
    """Ends training in the middle of its second epoch."""

    def __init__(self, how: Any) -> None:
        self.how = how

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.current_epoch == 1 and batch_idx == 1:
            self.how()


def interrupt() -> None:
    raise KeyboardInterrupt


def fail() -> None:
    raise ZeroDivisionError


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("how", [interrupt, fail, terminate])
@pytest.mark.filterwarnings("ignore")
def test_what_is_pending_is_written_when_training_ends_early(how, tmp_path, monkeypatch):
    write, pending = publish.publish, []

    def slowly(*args: Any) -> None:
        ended.wait(10)
        pending.append(len(monitor._watcher._output._pictures._jobs))
        write(*args)

    ended = threading.Event()
    monkeypatch.setattr(output_room, "publish", slowly)
    closing = CAMMonitor._close
    monkeypatch.setattr(CAMMonitor, "_close", lambda self, trainer: (ended.set(), closing(self, trainer)))
    monitor = CAMMonitor(12, detectors=[])  # an alarm about random weights would add its picture
    run = trainer([monitor, Ending(how)], max_epochs=3, logger=CSVLogger(tmp_path), log_every_n_steps=1)
    with pytest.raises(BaseException) as caught:
        run.fit(SmallNet(), loader(data()), loader(data()))
        raise SystemExit  # where the trainer swallows the interruption
    assert isinstance(caught.value, (SystemExit, ZeroDivisionError)) or "SIGTERM" in type(caught.value).__name__
    assert [s.epoch for s in monitor.history] == [-1, 0]
    assert [s.look for s in load_archive(monitor.archive).snapshots] == [0, 1]
    assert pending == [2, 1]  # both waited for the end
    assert len(list(tmp_path.rglob("film_strip/*.png"))) == 2
    assert not [thread for thread in threading.enumerate() if thread.name == "camwatch-writer"]
