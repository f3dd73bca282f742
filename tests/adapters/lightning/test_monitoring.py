"""ModelCheckpoint, EarlyStopping and schedulers with their default arguments see what the monitor measured."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import torch
from pytorch_lightning.callbacks import Callback, EarlyStopping, ModelCheckpoint
from torch.utils.data import IterableDataset

from camwatch import CAMMonitor, measures
from camwatch.errors import CamwatchWarning, InputError
from camwatch.metrics.table import measure_maps
from tests.support.nets import SmallNet, data, loader, trainer

KEY = "camwatch/relevance_mass_accuracy"
pytestmark = pytest.mark.filterwarnings("ignore::camwatch.errors.CamwatchWarning")
SCHEDULES: dict[str, dict[str, Any]] = {
    "normal": {},
    "no validation": {"limit_val_batches": 0},
    "every second epoch": {"check_val_every_n_epoch": 2},
    "half an epoch": {"val_check_interval": 0.5},
}


class Asking(ModelCheckpoint):
    """Writes down what it is told, at each of its moments."""

    def __init__(self, folder: Any) -> None:
        super().__init__(folder, monitor=KEY, mode="max")
        self.told: list[tuple[int, int, float]] = []

    def check_monitor_top_k(self, trainer: Any, current: Any = None) -> bool:
        self.told.append((trainer.current_epoch, trainer.global_step, float(current)))
        return super().check_monitor_top_k(trainer, current)


class EarlyAsking(EarlyStopping):
    """The same."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**({"monitor": KEY, "mode": "max", "patience": 100} | options))
        self.told: list[tuple[int, int, float]] = []

    def _run_early_stopping_check(self, trainer: Any) -> None:
        self.told.append((trainer.current_epoch, trainer.global_step, float(trainer.callback_metrics[KEY])))
        super()._run_early_stopping_check(trainer)


class EveryBatch(Callback):
    """Reads the key at every step."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_train_batch_start(self, trainer: Any, *args: Any) -> None:
        self.seen.append(float(trainer.callback_metrics[KEY]))


def expected(monitor: CAMMonitor, epoch: int, step: int) -> float:
    """The value of the last snapshot taken by then, looked up in the history."""
    known = [s for s in monitor.history if s.global_step <= step and s.epoch <= epoch and KEY[9:] in s.scalars]
    return known[-1].scalars[KEY[9:]]


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_checkpoint_and_early_stopping_see_the_epochs_value(schedule, every, tmp_path):
    checkpoint, stopping, batches = Asking(tmp_path), EarlyAsking(), EveryBatch()
    monitor = CAMMonitor(12, every_n_epochs=every)
    run = trainer(
        [stopping, checkpoint, batches, monitor], max_epochs=4, enable_checkpointing=True, **SCHEDULES[schedule]
    )
    run.fit(SmallNet(), loader(data()), loader(data()))
    # A callback listed before the monitor asks at the end of the same hook or later, so the order is no matter.
    assert len(checkpoint.told) >= 2 and len(stopping.told) >= 2
    for epoch, step, value in checkpoint.told + stopping.told:
        assert value == pytest.approx(expected(monitor, epoch, step), abs=1e-6), (epoch, step)
    assert all(math.isfinite(value) for value in batches.seen) and len(batches.seen) == 16
    last = [s for s in monitor.history if s.epoch >= 0]
    assert len({s.scalars[KEY[9:]] for s in last}) > 1 or every == 3
    assert checkpoint.best_model_path
    assert float(checkpoint.best_model_score) == pytest.approx(max(value for *_, value in checkpoint.told))


def test_key_survives_failed_snapshots_and_is_never_nan(monkeypatch, tmp_path):
    checkpoint, batches = Asking(tmp_path), EveryBatch()
    monitor = CAMMonitor(12)
    measure = measure_maps

    def blank(maps: torch.Tensor, *args: Any) -> Any:
        look = len(monitor.history)
        if look == 2:
            raise RuntimeError("no snapshot today")
        return measure(maps * (look != 3), *args)  # at the fourth look all maps are blank: NaN

    monkeypatch.setattr(measures, "measure_maps", blank)
    run = trainer(
        [monitor, checkpoint, batches, EarlyAsking(check_finite=True)], max_epochs=5, enable_checkpointing=True
    )
    run.fit(SmallNet(), loader(data()), loader(data()))
    assert run.current_epoch == 5
    assert [s.error is None for s in monitor.history] == [True, True, False, True, True, True]
    assert KEY[9:] not in monitor.history[3].scalars
    held = monitor.history[1].scalars[KEY[9:]]
    assert [value for *_, value in checkpoint.told][:3] == pytest.approx([held] * 3)
    assert all(math.isfinite(value) for value in batches.seen)


def test_key_is_there_from_the_first_step_when_the_first_snapshot_fails(monkeypatch):
    def fail(*args: Any) -> Any:
        raise RuntimeError("no snapshot today")

    batches = EveryBatch()
    monkeypatch.setattr(measures, "measure_maps", fail)
    dataset = data()
    trainer([CAMMonitor(12), batches, EarlyAsking(patience=5)]).fit(SmallNet(), loader(dataset), loader(dataset))
    assert all(0 < value < 1 for value in batches.seen)  # what a uniform map would have


def test_key_exists_on_resume_at_an_unscheduled_epoch(tmp_path):
    net, sets = SmallNet(), (loader(data()), loader(data()))
    first = trainer(CAMMonitor(12, every_n_epochs=5), max_epochs=1)
    first.fit(net, *sets)
    first.save_checkpoint(tmp_path / "a.ckpt")
    monitor, checkpoint = CAMMonitor(12, every_n_epochs=5), Asking(tmp_path)
    second = trainer([monitor, checkpoint, EarlyAsking()], max_epochs=2, enable_checkpointing=True)
    second.fit(SmallNet(), *sets, ckpt_path=tmp_path / "a.ckpt")
    assert [s.epoch for s in monitor.history] == [-1]
    assert checkpoint.told == [(1, 8, pytest.approx(monitor.history[0].scalars[KEY[9:]]))]


def test_every_published_key_can_be_monitored_from_the_first_step():
    seen: list[set[str]] = []

    class Keys(Callback):
        def on_train_batch_start(self, trainer: Any, *args: Any) -> None:
            seen.append({key for key in trainer.callback_metrics if key.startswith("camwatch/")})

    monitor = CAMMonitor(12, layer=["features.0", "features.2"])
    trainer([monitor, Keys()], max_epochs=3).fit(SmallNet(), loader(data()), loader(data()))
    measured = {key for s in monitor.history for key in s.scalars}
    assert {f"camwatch/{key}" for key in measured} <= seen[0]
    assert seen[0] == seen[-1]


@pytest.mark.parametrize("key", ["camwatch/relevance_mass", "camwatch/layer9/pointing_game", "camwatch/forbidden_mass"])
def test_missing_key_is_an_error_that_names_the_available_ones(key):
    run = trainer([CAMMonitor(12), EarlyStopping(key)])
    with pytest.raises(InputError, match=r"EarlyStopping: unknown key to monitor .*camwatch/pointing_game"):
        run.fit(SmallNet(), loader(data()), loader(data()))


def test_scheduler_can_follow_the_monitor():
    class Scheduled(SmallNet):
        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
            plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, mode="max", patience=0, threshold=10)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": plateau, "monitor": self.key}}

        key = KEY

    net = Scheduled()
    run = trainer(CAMMonitor(12), max_epochs=3)
    run.fit(net, loader(data()), loader(data()))
    assert run.optimizers[0].param_groups[0]["lr"] < 0.1
    net.key = "camwatch/none"
    with pytest.raises(InputError, match="ReduceLROnPlateau: unknown key"):
        trainer(CAMMonitor(12)).fit(net, loader(data()), loader(data()))


def test_early_stopping_shorter_than_the_schedule_is_warned_about():
    run = trainer([CAMMonitor(12, every_n_epochs=3), EarlyStopping(KEY, patience=2, mode="max")], max_epochs=1)
    with pytest.warns(CamwatchWarning, match="patience of 2 is shorter than a snapshot every 3 epochs"):
        run.fit(SmallNet(), loader(data()), loader(data()))


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter([data()[i] for i in range(12)])


def test_key_of_an_iterable_data_set_is_there_before_its_first_validation():
    batches = EveryBatch()
    monitor = CAMMonitor(12)
    run = trainer([monitor, batches, EarlyAsking()], num_sanity_val_steps=0)
    run.fit(SmallNet(), loader(data()), loader(Stream()))
    assert [s.epoch for s in monitor.history] == [0, 1]
    assert batches.seen[0] == 0 and batches.seen[-1] == pytest.approx(monitor.history[0].scalars[KEY[9:]])


def test_wrong_key_found_late_does_not_end_training():
    run = trainer([CAMMonitor(12), EarlyStopping("camwatch/nothing", patience=9)], num_sanity_val_steps=0)
    with pytest.warns(CamwatchWarning, match="unknown key to monitor 'camwatch/nothing'"):
        run.fit(SmallNet(), loader(data()), loader(Stream()))
    assert run.current_epoch == 2


def test_monitor_may_stop_training():
    def alarmed(snapshot: Any) -> Any:
        from camwatch import Finding

        return Finding("mine", snapshot.epoch, snapshot.global_step, "stop") if snapshot.epoch == 1 else None

    heard: list[Any] = []
    monitor = CAMMonitor(12, detectors=[alarmed], on_alarm=["stop", lambda alarm, trainer: heard.append(alarm)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run = trainer(monitor, max_epochs=6)
        run.fit(SmallNet(), loader(data()), loader(data()))
    assert run.current_epoch == 2
    assert [a.detector for a in monitor.alarms] == ["mine"] and heard == monitor.alarms
