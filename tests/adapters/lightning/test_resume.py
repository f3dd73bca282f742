"""A run that is interrupted and resumed is the run that was not; a kill loses at most the unfinished snapshot."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger
from torch import Tensor

from camwatch import CAMMonitor, Finding, load_archive
from camwatch.detectors.level import Level
from camwatch.errors import CamwatchWarning
from tests.support.nets import SmallNet, data, loader, trainer

pytestmark = pytest.mark.filterwarnings("ignore::camwatch.errors.CamwatchWarning")


def third(snapshot: Any) -> Finding | None:
    """An alarm at every third look, so that there are some before and after the interruption."""
    return (
        Finding("third", snapshot.epoch, snapshot.global_step, "look", {"look": snapshot.look})
        if snapshot.look % 3 == 2
        else None
    )


def watched(**options: Any) -> CAMMonitor:
    return CAMMonitor(**({"panel": 12, "detectors": ["drop", "level", "probe", "dead_maps", third]} | options))


def fit(folder: Path, monitor: CAMMonitor, epochs: int, checkpoint: Any = None, **options: Any) -> pl.Trainer:
    pl.seed_everything(3, verbose=False)
    run = trainer(
        [monitor, *options.pop("callbacks", [])],
        max_epochs=epochs,
        logger=CSVLogger(folder),
        log_every_n_steps=1,
        **options,
    )
    run.fit(SmallNet(), loader(data()), loader(data()), ckpt_path=checkpoint)
    return run


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and a.dtype == b.dtype and torch.equal(a.nan_to_num(-7), b.nan_to_num(-7))
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b or (a != a and b != b)  # NaN


def assert_same(a: CAMMonitor, b: CAMMonitor) -> None:
    """History, alarms, detectors, film strip and what is published; the number of planned snapshots may differ."""
    first, second = a.state_dict(), b.state_dict()
    for key in first:
        if key != "archive":
            assert same(first[key], second[key]), key


def assert_complete(monitor: CAMMonitor, maps: bool = True) -> None:
    """The archive has every snapshot of the history once, with its maps, and every alarm."""
    assert monitor.archive is not None
    run = load_archive(monitor.archive)
    assert [s.look for s in run.snapshots] == list(range(len(monitor.history)))
    for kept, known in zip(run.snapshots, monitor.history, strict=True):
        alone = {
            "maps": {},
            "intervals": {},
            "predicted_maps": {},
            "pastes": None,
        }  # what the archive has, and no history
        assert same({**vars(kept), **alone}, vars(known))
        assert bool(kept.maps) or not maps
    assert same([vars(a) for a in run.alarms], [vars(a) for a in monitor.alarms])


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    monitor = watched()
    fit(tmp_path_factory.mktemp("straight"), monitor, 6)
    assert [s.epoch for s in monitor.history] == [-1, 0, 1, 2, 3, 4, 5]
    assert [a.detector for a in monitor.alarms].count("third") == 2
    assert_complete(monitor)
    return monitor


def interrupted(folder: Path, **options: Any) -> tuple[CAMMonitor, Path]:
    """The first three of six epochs: stopped, not ended, so that nothing is planned for three."""

    class Stop(pl.Callback):
        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            trainer.should_stop = trainer.current_epoch == 2

    monitor = watched(**options)
    run = fit(folder, monitor, 6, callbacks=[Stop()])
    run.save_checkpoint(folder / "third.ckpt")
    return monitor, folder / "third.ckpt"


@pytest.mark.parametrize("archive", ["kept", "deleted", "damaged", "without images"])
def test_six_epochs_are_three_a_resume_and_three(archive, straight, tmp_path):
    options = {"store_images": False} if archive == "without images" else {}
    first, checkpoint = interrupted(tmp_path, **options)
    if archive == "deleted":
        shutil.rmtree(first.archive)
    if archive == "damaged":
        (first.archive / "panel.safetensors").write_bytes(b"nothing")
        (first.archive / "snapshots" / "000001.safetensors").write_bytes(b"nothing")
    held = torch.load(checkpoint, weights_only=True)  # plain types and tensors
    assert len(held["callbacks"]["CAMMonitor[camwatch]"]["history"]) == 4
    second = watched(**options)
    fit(tmp_path, second, 6, checkpoint)
    assert second.archive != first.archive
    assert_same(second, straight)
    assert_complete(second, maps=archive in ("kept", "without images"))
    if archive == "damaged":  # one look has lost its maps, and no other
        assert [bool(s.maps) for s in load_archive(second.archive).snapshots] == [True, False, *[True] * 5]


def test_a_run_that_ended_can_be_extended(straight, tmp_path):
    first = watched()
    fit(tmp_path, first, 3).save_checkpoint(tmp_path / "third.ckpt")
    second = watched()
    fit(tmp_path, second, 6, tmp_path / "third.ckpt")
    assert [(s.epoch, s.global_step, s.look) for s in second.history] == [
        (s.epoch, s.global_step, s.look) for s in straight.history
    ]
    for a, b in zip(second.history, straight.history, strict=True):
        assert same(dict(a.per_image), dict(b.per_image))
    assert_complete(second)


def test_records_after_the_checkpoint_are_dropped(straight, tmp_path):
    monitor = watched()
    every = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    fit(tmp_path, monitor, 6, callbacks=[every], enable_checkpointing=True)
    second = watched()
    fit(tmp_path, second, 6, tmp_path / "epoch=1.ckpt")
    assert_same(second, straight)
    assert_complete(second)


def test_the_same_log_directory_goes_on_in_the_same_archive(straight, tmp_path):
    def run(monitor: CAMMonitor, epochs: int, checkpoint: Any = None) -> pl.Trainer:
        pl.seed_everything(3, verbose=False)
        one = trainer(monitor, max_epochs=epochs, logger=CSVLogger(tmp_path, version="same"), log_every_n_steps=1)
        one.fit(SmallNet(), loader(data()), loader(data()), ckpt_path=checkpoint)
        return one

    first, second, other = watched(), watched(), watched()
    run(first, 3).save_checkpoint(tmp_path / "third.ckpt")
    run(second, 6, tmp_path / "third.ckpt")
    assert second.archive == first.archive
    assert_complete(second)
    run(other, 1)  # not a resumed run: what lies there is not its own
    assert other.archive == first.archive.with_name("camwatch_1")
    assert_complete(second)


def test_a_second_fit_goes_on(tmp_path):
    monitor, net, sets = watched(), SmallNet(), (loader(data()), loader(data()))
    trainer(monitor, max_epochs=1, logger=CSVLogger(tmp_path)).fit(net, *sets)
    trainer(monitor, max_epochs=2, logger=CSVLogger(tmp_path)).fit(net, *sets)
    assert [s.epoch for s in monitor.history] == [-1, 0, 0, 1]
    assert_complete(monitor)
    trainer(monitor, max_epochs=1, logger=CSVLogger(tmp_path)).fit(SmallNet(), *sets)  # another model
    assert [s.epoch for s in monitor.history] == [-1, 0]


def test_two_monitors_are_resumed_each_with_its_own_history(tmp_path):
    def both() -> tuple[CAMMonitor, CAMMonitor]:
        return watched(name="eye"), watched(name="ear", every_n_epochs=2)

    first, second = both(), both()
    fit(tmp_path, first[0], 2, callbacks=[first[1]]).save_checkpoint(tmp_path / "second.ckpt")
    fit(tmp_path, second[0], 4, tmp_path / "second.ckpt", callbacks=[second[1]])
    assert [[s.epoch for s in one.history] for one in second] == [[-1, 0, 1, 2, 3], [-1, 1, 3]]
    for one in second:
        assert_complete(one)
    assert second[0].archive.parent == second[1].archive.parent


def test_a_detector_that_was_given_before_carries_nothing_over(tmp_path):
    """One object in two runs of two models: the second begins anew, as with an object of its own."""
    given = Level()
    monitor, own = watched(detectors=[given]), watched(detectors=["level"])
    fit(tmp_path, monitor, 2)
    fit(tmp_path, monitor, 3)  # another model, another history
    fit(tmp_path, own, 3)
    assert_same(monitor, own)
    assert given.state_dict() == Level().state_dict()


def test_another_panel_begins_a_new_history(tmp_path):
    _, checkpoint = interrupted(tmp_path)
    second = watched(panel=(torch.rand(4, 3, 16, 16), [0, 1, 2, 0]))
    with pytest.warns(CamwatchWarning, match="of another run .other images"):
        fit(tmp_path, second, 4, checkpoint)
    assert [s.epoch for s in second.history] == [-1, 3]


def test_resuming_with_other_detectors_keeps_what_fits(tmp_path):
    _, checkpoint = interrupted(tmp_path)
    second, third_of = watched(detectors=["level", "drop"]), watched(detectors=["drop"])
    fit(tmp_path, second, 4, checkpoint)
    fit(tmp_path, third_of, 4, checkpoint)
    assert len(second.history) == 5
    assert same(second.state_dict()["detectors"]["drop"], third_of.state_dict()["detectors"]["drop"])


def test_a_kill_loses_nothing_but_the_unfinished_snapshot(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    import kill

    outcomes = [kill.kill_once(tmp_path, after) for after in (2.0, 1.5, 2.5)]  # the second and third are resumed
    assert [one.problem for one in outcomes] == [""] * 3, outcomes
    assert any(one.snapshots for one in outcomes), outcomes
