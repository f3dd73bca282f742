"""The callback for transformers.Trainer, with a tiny model of random weights."""

from __future__ import annotations

import copy
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from camwatch import Finding, Panel, load_archive
from camwatch.errors import InputError, PanelError

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from camwatch.adapters.transformers import CAMMonitorCallback  # noqa: E402

CLASSES, SIZE = 3, 32
WORKER = {"dataloader_num_workers": 1}


class Pictures(torch.utils.data.Dataset):
    """Noise with a bright square whose place is the class, augmented with noise drawn at random."""

    def __init__(self, n: int, augmented: bool = False, own: bool = False) -> None:
        generator = torch.Generator().manual_seed(n)
        self.images = torch.rand(n, 3, SIZE, SIZE, generator=generator)
        self.labels = torch.arange(n) % CLASSES
        self.augmented = augmented
        self.own = np.random.default_rng(n) if own else None
        for i, label in enumerate(self.labels.tolist()):
            self.images[i, :, 4:12, 10 * label : 10 * label + 8] += 1

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> dict[str, Any]:
        noise = 0.1 * torch.rand(3, SIZE, SIZE) if self.augmented else 0
        shift = 0 if self.own is None else self.own.normal(0, 0.3)
        return {"pixel_values": (self.images[i] + noise + shift).float(), "labels": int(self.labels[i])}


def resnet() -> Any:
    torch.manual_seed(0)
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_labels=CLASSES, layer_type="basic"
    )
    return transformers.ResNetForImageClassification(config)


def vit() -> Any:
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=SIZE,
        patch_size=8,
        num_labels=CLASSES,
        hidden_dropout_prob=0.1,
    )
    return transformers.ViTForImageClassification(config)


def trainer_of(folder: Path, model: Any = None, **options: Any) -> Any:
    arguments = {
        "output_dir": str(folder),
        "num_train_epochs": 2,
        "per_device_train_batch_size": 8,
        "per_device_eval_batch_size": 8,
        "learning_rate": 1e-2,
        "eval_strategy": "epoch",
        "save_strategy": "no",
        "logging_strategy": "epoch",
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "seed": 3,
    }
    arguments = transformers.TrainingArguments(**{**arguments, **options})
    evaluated = Pictures(12)
    return transformers.Trainer(
        model=model or resnet(), args=arguments, train_dataset=Pictures(24, augmented=True), eval_dataset=evaluated
    )


def panel(n: int = 6) -> Panel:
    pictures = Pictures(12)
    boxes = [torch.tensor([[10 * int(label), 4, 10 * int(label) + 8, 12]]) for label in pictures.labels[:n]]
    return Panel(pictures.images[:n], pictures.labels[:n], boxes, denormalize=((0.0,), (2.0,)))


def watch(trainer: Any, *args: Any, **options: Any) -> CAMMonitorCallback:
    monitor = CAMMonitorCallback(trainer, *args, **options)
    trainer.add_callback(monitor)
    return monitor


def state_of(trainer: Any) -> dict[str, Any]:
    """Everything that training leaves behind."""
    optimizer = trainer.optimizer.state_dict()["state"]
    return {
        "model": {key: value.clone() for key, value in trainer.model.state_dict().items()},
        "optimizer": copy.deepcopy(optimizer),
        "random": (torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()),
        "losses": [
            {key: log[key] for key in ("loss", "grad_norm", "eval_loss", "learning_rate", "step") if key in log}
            for log in trainer.state.log_history
            if {"loss", "eval_loss"} & log.keys()
        ],
    }


@pytest.mark.filterwarnings("ignore::camwatch.errors.CamwatchWarning")
@pytest.mark.parametrize(
    ("model", "options"),
    [
        (resnet, {}),
        (vit, {"eval_strategy": "no"}),
        (
            vit,
            {"eval_strategy": "steps", "eval_steps": 2, "gradient_accumulation_steps": 2, "dataloader_num_workers": 1},
        ),
    ],
    ids=["resnet", "no evaluation", "accumulation"],
)
def test_training_is_bit_for_bit_what_it_is_without(tmp_path: Path, model: Any, options: dict[str, Any]) -> None:
    plain = trainer_of(tmp_path / "plain", model(), **options)
    plain.eval_dataset = Pictures(12, augmented=True, own=True)
    plain.train()
    expected = state_of(plain)
    watched = trainer_of(tmp_path / "watched", model(), **options)
    watched.eval_dataset = Pictures(12, augmented=True, own=True)
    monitor = watch(watched, 6)
    watched.train()
    found = state_of(watched)
    assert [snapshot.error for snapshot in monitor.history] == [None] * len(monitor.history)
    assert len(monitor.history) >= 3
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_snapshots_come_before_the_first_step_and_with_every_evaluation(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path)
    monitor = watch(trainer, panel(), detectors=[])
    trainer.train()
    assert [(one.epoch, one.global_step) for one in monitor.history] == [(-1, 0), (0, 3), (1, 6)]
    assert [one.planned for one in monitor.history] == [3, 3, 3]
    trainer.evaluate()
    assert len(monitor.history) == 3
    assert monitor.archive == tmp_path / "camwatch"
    archived = load_archive(tmp_path)
    assert [one.scalars for one in archived.snapshots] == [one.scalars for one in monitor.history]


def test_every_second_epoch_is_watched(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, num_train_epochs=4)
    monitor = watch(trainer, panel(), every_n_epochs=2, detectors=[])
    trainer.train()
    assert [(one.epoch, one.planned) for one in monitor.history] == [(-1, 3), (1, 3), (3, 3)]


def test_scalars_stand_in_the_trainers_log_and_choose_the_best_model(tmp_path: Path) -> None:
    from transformers import EarlyStoppingCallback

    key = "camwatch/relevance_mass_accuracy"
    trainer = trainer_of(
        tmp_path, save_strategy="epoch", load_best_model_at_end=True, metric_for_best_model=key, num_train_epochs=3
    )
    monitor = watch(trainer, panel(), detectors=[])
    trainer.add_callback(EarlyStoppingCallback(early_stopping_patience=5))
    trainer.train()
    values = [one.scalars["relevance_mass_accuracy"] for one in monitor.history]
    assert [log[key] for log in trainer.state.log_history if key in log] == values
    assert trainer.state.best_metric == max(values[1:])
    assert len([log for log in trainer.state.log_history if "loss" in log]) == 3


def test_tensorboard_shows_overlays_and_scalars_below_its_logging_directory(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trainer = trainer_of(tmp_path, report_to="tensorboard")
    monitor = watch(trainer, panel(), detectors=[], layer="resnet.encoder.stages.1")
    trainer.train()
    assert monitor.archive is not None and monitor.archive.name == "camwatch"
    assert any(path.parent == monitor.archive.parent for path in tmp_path.rglob("events.out.tfevents.*"))
    events = EventAccumulator(str(monitor.archive))
    events.Reload()
    tags = events.Tags()
    for kind in ("overlays", "film_strip"):
        assert [one.step for one in events.Images(f"camwatch/resnet.encoder.stages.1/{kind}")] == [0, 3, 6]
    assert "camwatch/relevance_mass_accuracy" in tags["scalars"]


def test_an_alarm_stops_training(tmp_path: Path) -> None:
    def at_the_second(snapshot: Any) -> Finding | None:
        return Finding("second", snapshot.epoch, snapshot.global_step, "Enough.") if snapshot.look == 1 else None

    seen: list[tuple[str, Any]] = []
    trainer = trainer_of(tmp_path, num_train_epochs=4)
    monitor = watch(
        trainer,
        panel(),
        detectors=[at_the_second],
        on_alarm=["stop", lambda alarm, t: seen.append((alarm.detector, t))],
    )
    trainer.train()
    assert trainer.state.global_step == 3
    assert seen == [("second", trainer)]
    assert [alarm.detector for alarm in monitor.alarms] == ["second"]
    assert [log["camwatch/alarm"] for log in trainer.state.log_history if "camwatch/alarm" in log] == [0.0, 1.0]


def test_a_resumed_run_goes_on_with_its_history(tmp_path: Path) -> None:
    whole = trainer_of(tmp_path / "whole", num_train_epochs=4, save_strategy="epoch")
    expected = watch(whole, panel(), detectors=["level"])
    whole.train()
    again = trainer_of(tmp_path / "whole", num_train_epochs=4, save_strategy="epoch")
    monitor = watch(again, panel(), detectors=["level"])
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-6"))
    assert [one.global_step for one in monitor.history] == [0, 3, 6, 9, 12]
    assert [one.scalars for one in monitor.history] == [one.scalars for one in expected.history]


def test_unusable_arguments_say_what_is_valid(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path)
    with pytest.raises(InputError, match="every_n_epochs must be an integer of 1 or more, got 0"):
        CAMMonitorCallback(trainer, every_n_epochs=0)
    with pytest.raises(InputError, match="on_alarm is 'halt'; valid are 'warn', 'stop'"):
        CAMMonitorCallback(trainer, on_alarm="halt")
    watch(trainer, 4)
    trainer.eval_dataset, trainer.args.eval_strategy = None, "no"
    with pytest.raises(PanelError, match="no eval_dataset to draw the panel from"):
        trainer.train()
