"""The contract: with the monitor, a run is bit for bit what it is without."""

from __future__ import annotations

import warnings
from typing import Any

import lightning.pytorch as unified
import pytest
import pytorch_lightning as standalone
import torch
from pytorch_lightning.callbacks import EMAWeightAveraging, WeightAveraging
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from torch import Tensor, nn

from camwatch import CAMMonitor
from camwatch.errors import CamwatchWarning
from camwatch.isolation import isolate_rng
from tests.support.identity import Body, Noisy, Run, Stream, Unfreezing, loader, random_states, state_of


def frozen_backbone(model: Any) -> Any:
    model.body.stem.requires_grad_(False)
    model.body.stem.eval()
    return model


def compiled_body(model: Any) -> Any:
    model.body = torch.compile(model.body, backend="eager")
    return model


def compiled_module(model: Any) -> Any:
    return torch.compile(model, backend="eager")


def validate_and_test(trainer: Any, model: Any, val: Any) -> Any:
    return [trainer.validate(model, val, verbose=False), trainer.test(model, val, verbose=False)]


def ema() -> list[Any]:
    return [EMAWeightAveraging(decay=0.5)]


PANEL = {"panel": 6}


RUNS = {
    "fp32": Run(),
    "workers for both": Run(workers=(1, 1)),
    "no workers": Run(workers=(0, 0)),
    "bf16-mixed": Run({"precision": "bf16-mixed"}),
    "bf16-true": Run({"precision": "bf16-true"}),
    "16-true": Run({"precision": "16-true"}, monitor={"detectors": []}),
    "64-true": Run({"precision": "64-true"}),
    "accumulation": Run({"accumulate_grad_batches": 3}),
    "accumulation, by steps": Run({"accumulate_grad_batches": 3}, monitor={"every_n_train_steps": 1}, snapshots=5),
    "by steps": Run(monitor={"every_n_train_steps": 2}, snapshots=5),
    "manual optimization": Run(model={"manual": True}),
    "several optimizers": Run(model={"manual": True, "optimizers": 2}),
    "several optimizers, by steps": Run(
        model={"manual": True, "optimizers": 2}, monitor={"every_n_train_steps": 3}, snapshots=6
    ),
    "averaging behind": Run(behind=ema),
    "averaging before": Run(before=ema, warns=True),
    "averaging at all steps, workers": Run(behind=lambda: [WeightAveraging()], workers=(1, 1)),
    "compiled body": Run(prepare=compiled_body, compiled=True),
    "compiled module, by steps": Run(
        prepare=compiled_module, compiled=True, monitor={"every_n_train_steps": 1}, snapshots=9
    ),
    "finetuning": Run(before=lambda: [Unfreezing()]),
    "frozen backbone": Run(prepare=frozen_backbone),
    "gradient clipping": Run({"gradient_clip_val": 0.1}),
    "every second epoch": Run({"check_val_every_n_epoch": 2}),
    "every second epoch, no sanity check": Run(
        {"check_val_every_n_epoch": 2, "num_sanity_val_steps": 0}, model={"own_loaders": True}
    ),
    "half an epoch": Run({"val_check_interval": 0.5}, snapshots=5),
    "by batches across epochs": Run({"val_check_interval": 3, "check_val_every_n_epoch": None}),
    "no validation batch": Run({"limit_val_batches": 0}),
    "no validation loop": Run(validation=False, monitor={"panel": (torch.rand(5, 3, 16, 16), [0, 1, 2, 0, 1])}),
    "loaders of the module": Run({"reload_dataloaders_every_n_epochs": 1}, model={"own_loaders": True}),
    "fast_dev_run": Run({"fast_dev_run": 2}, snapshots=2),
    "barebones": Run({"barebones": True, "logger": False, "enable_checkpointing": None, "log_every_n_steps": None}),
    "overfit_batches": Run({"overfit_batches": 2}),
    "no sanity check": Run({"num_sanity_val_steps": 0}),
    "whole sanity check": Run({"num_sanity_val_steps": -1}),
    "validate and test": Run(after=validate_and_test),
    "inference mode off": Run({"inference_mode": False}, after=validate_and_test),
    "no logger": Run({"logger": False}),
    "one logger": Run(loggers=lambda folder: [CSVLogger(folder)]),
    "several loggers": Run(loggers=lambda folder: [TensorBoardLogger(folder), CSVLogger(folder)]),
    "iterable": Run(data=Stream),
    "iterable, no sanity check": Run({"num_sanity_val_steps": 0}, data=Stream, snapshots=2),
    "deterministic": Run({"deterministic": True}),
    "anomaly detection": Run({"detect_anomaly": True}),
    "two layers, predicted": Run(monitor={"layer": ["body.stem", "body.stage"], "target": "predicted"}),
    "lightning, list": Run(lightning=unified),
    "lightning, alone": Run(lightning=unified, alone=True),
    "pytorch_lightning, alone": Run(alone=True),
}


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.filterwarnings("ignore")
def test_run_with_monitor_is_bit_for_bit_the_run_without(name, tmp_path):
    run = RUNS[name]
    without = run(tmp_path / "without", None)
    monitor = CAMMonitor(**(PANEL | run.monitor))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with_monitor = run(tmp_path / "with", monitor)
    said = [str(w.message) for w in caught if issubclass(w.category, CamwatchWarning)]
    said = [text for text in said if "averaged" in text or "failed" in text or "could not" in text]
    assert bool(said) == run.warns, said
    assert [s.error for s in monitor.history] == [None] * run.snapshots
    if monitor.panel == 6:
        assert all("hide" in s.scalars for s in monitor.history) or monitor._options["detectors"] == []
    for key, value in without.items():
        assert with_monitor[key] == value, key
    assert run.compiled == (without["compilations"] > 0)


def draw_numbers(trainer: Any, model: Any) -> None:
    torch.rand(())


def read_validation_data(trainer: Any, model: Any) -> None:
    with isolate_rng():  # the generator that the data set holds itself is forgotten
        trainer.val_dataloaders.dataset[0]


def leave_gradients(trainer: Any, model: Any) -> None:
    model.body.head[-1].weight.grad += 1e-4


def thaw(trainer: Any, model: Any) -> None:
    model.train()


def leave_a_hook(trainer: Any, model: Any) -> None:
    model.body.register_forward_hook(lambda module, inputs, output: None)


def count_a_batch(trainer: Any, model: Any) -> None:
    model.body.stem[1].num_batches_tracked += 1


def log_a_value(trainer: Any, model: Any) -> None:
    trainer.loggers[-1].log_metrics({"extra": 0.0}, step=trainer.global_step)


DISTURBANCES = [draw_numbers, read_validation_data, leave_gradients, thaw, leave_a_hook, count_a_batch, log_a_value]


@pytest.mark.parametrize("disturb", DISTURBANCES)
@pytest.mark.filterwarnings("ignore")
def test_a_callback_that_disturbs_is_found_out(disturb, tmp_path):
    """The comparison above can fail: for each thing that a careless monitor leaves behind."""

    class Careless(standalone.Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            if trainer.current_epoch == batch_idx == 0:  # amid an accumulation
                disturb(trainer, pl_module)

    run = RUNS["accumulation"]
    without = run(tmp_path / "without", None)
    assert run(tmp_path / "again", None) == without
    assert run(tmp_path / "with", Careless()) != without


@pytest.mark.parametrize("name", ["averaging behind", "averaging before", "by steps, averaged", "fp32"])
@pytest.mark.filterwarnings("ignore")
def test_history_records_which_weights_were_used(name, tmp_path):
    steps = Run(behind=ema, monitor={"every_n_train_steps": 2}, warns=True)
    run = RUNS.get(name, steps)
    monitor = CAMMonitor(**(PANEL | run.monitor))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run(tmp_path, monitor)
    said = [
        str(w.message)
        for w in caught
        if "show the raw weights, but checkpoints hold the ones averaged" in str(w.message)
    ]
    assert len(said) == run.warns
    averaged = [snapshot.averaged for snapshot in monitor.history]
    assert averaged == ([False, True, True] if name == "averaging behind" else [False] * len(averaged))


@pytest.mark.filterwarnings("ignore")
def test_averaged_snapshots_show_the_weights_that_checkpoints_hold(tmp_path):
    """The last snapshot's answers are those of the averaged weights, to which training ends."""
    from camwatch.cam.prediction import predict

    run, monitor, models = RUNS["averaging behind"], CAMMonitor(**PANEL), []
    Run(behind=run.behind, prepare=lambda model: models.append(model) or model)(tmp_path, monitor)
    scores = predict(models[0], monitor._watcher.panel.images)
    chances = scores.softmax(1).gather(1, monitor.history[-1].predicted[:, None])[:, 0]
    assert torch.allclose(chances, monitor.history[-1].probability, atol=1e-6)


CLI = """
seed_everything: 7
model:
  class_path: tests.adapters.lightning.test_identity.Configured
trainer:
  accelerator: cpu
  max_epochs: 2
  enable_progress_bar: false
  enable_model_summary: false
  log_every_n_steps: 1
  logger:
    class_path: pytorch_lightning.loggers.CSVLogger
    init_args: {{save_dir: "{folder}"}}
  callbacks:
    - class_path: pytorch_lightning.callbacks.ModelCheckpoint
      init_args: {{monitor: {key}, mode: max, dirpath: "{folder}"}}
{monitor}
"""


MONITOR = """
    - class_path: camwatch.CAMMonitor
      init_args: {panel: 6, layer: [body.stage, body.stem], detectors: [drop, dead_maps], epochs: [0, 1]}
"""


class Configured(standalone.LightningModule):
    """What a configuration file names, with its own loaders."""

    def __init__(self) -> None:
        super().__init__()
        self.body = Body()

    def forward(self, images: Tensor) -> Tensor:
        return self.body(images)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", nn.functional.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.05)

    def train_dataloader(self) -> Any:
        return loader(Noisy(24), shuffle=True)

    def val_dataloader(self) -> Any:
        return loader(Noisy(12))


@pytest.mark.filterwarnings("ignore")
def test_command_line_with_monitor_is_bit_for_bit_the_one_without(tmp_path):
    from pytorch_lightning.cli import LightningCLI

    ends = []
    for name, key, text in (("without", "val_loss", ""), ("with", "camwatch/relevance_mass_accuracy", MONITOR)):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "run.yaml").write_text(CLI.format(folder=folder, key=key, monitor=text))
        arguments = ["fit", "--config", str(folder / "run.yaml")]
        cli = LightningCLI(args=arguments, save_config_callback=None)
        ends.append((state_of(cli.trainer, cli.model), random_states()))
    assert ends[0] == ends[1]
    [monitor] = [callback for callback in cli.trainer.callbacks if isinstance(callback, CAMMonitor)]
    assert [s.epoch for s in monitor.history] == [-1, 0, 1] and list(monitor._watcher.layers) == [
        "body.stage",
        "body.stem",
    ]
