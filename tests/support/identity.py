"""Runs of which everything is written down, so that two of them can be compared bit for bit."""

from __future__ import annotations

import hashlib
import pickle
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytorch_lightning as standalone
import torch
from pytorch_lightning.callbacks import BaseFinetuning
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

from camwatch import CAMMonitor


class Noisy(Dataset[Any]):
    """Images of which each reading is another: all three global generators and one of its own take part."""

    def __init__(self, n: int) -> None:
        generator = torch.Generator().manual_seed(n)
        self.images = torch.rand(n, 3, 16, 16, generator=generator)
        self.targets = (torch.arange(n) % 3).tolist()
        self.masks = torch.zeros(n, 16, 16, dtype=torch.bool)
        self.masks[:, 4:12, 4:10] = True
        self.own = np.random.default_rng(n)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> tuple[Tensor, int, Tensor]:
        noise = random.gauss(0, 0.1) + np.random.normal(0, 0.1) + self.own.normal(0, 0.1)
        flip = bool(torch.rand(()) < 0.5)
        image, mask = (self.images[i] + noise).float(), self.masks[i]
        return (image.flip(-1) if flip else image), self.targets[i], (mask.flip(-1) if flip else mask)


class Stream(IterableDataset[Any]):
    """The same without indices."""

    def __init__(self, n: int) -> None:
        self.samples = Noisy(n)

    def __iter__(self) -> Iterator[Any]:
        return (self.samples[i] for i in range(len(self.samples)))


class Body(nn.Module):
    """BatchNorm, dropout, an in-place activation, and a part kept in evaluation mode by its owner."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.BatchNorm2d(6), nn.ReLU(inplace=True))
        self.stage = nn.Sequential(nn.Conv2d(6, 8, 3, 1, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout2d(0.2))
        self.frozen = nn.BatchNorm2d(8).eval()
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.3), nn.Linear(8, 3))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.frozen(self.stage(self.stem(images))))


def module_of(lightning: Any, *, manual: bool = False, optimizers: int = 1, own_loaders: bool = False) -> Any:
    """A LightningModule of one of the two namespaces."""

    class Net(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.body = Body()
            self.automatic_optimization = not manual

        def forward(self, images: Tensor) -> Tensor:
            return self.body(images)

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
            self.log("loss", loss, on_step=True, on_epoch=True)
            if manual:
                several = self.optimizers()
                for optimizer in several if isinstance(several, list) else [several]:
                    optimizer.zero_grad()
                    self.manual_backward(nn.functional.cross_entropy(self(batch[0]), batch[1]))
                    optimizer.step()
            return loss

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val_loss", nn.functional.cross_entropy(self(batch[0]), batch[1]))

        def test_step(self, batch: Any, batch_idx: int) -> None:
            self.log("test_loss", nn.functional.cross_entropy(self(batch[0]), batch[1]))

        def configure_optimizers(self) -> Any:
            head = torch.optim.AdamW(self.body.head.parameters(), lr=0.01)
            if optimizers == 2:
                return [torch.optim.SGD(self.body.stem.parameters(), lr=0.01, momentum=0.9), head]
            everything = torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=0.05, momentum=0.9)
            return [everything], [torch.optim.lr_scheduler.CosineAnnealingLR(everything, 4)]

    if own_loaders:  # asked for by the trainer only when it wants them; each asking draws a split

        class Loading(Net):
            def train_dataloader(self) -> Any:
                return loader(Noisy(24), shuffle=True)

            def val_dataloader(self) -> Any:
                part, _ = torch.utils.data.random_split(Noisy(12), [8, 4])
                return loader(part)

        return Loading()
    return Net()


def loader(dataset: Any, **options: Any) -> DataLoader[Any]:
    return DataLoader(dataset, batch_size=6, **options)


class Unfreezing(BaseFinetuning):
    """Trains the head first, the stage from the second epoch on."""

    def freeze_before_training(self, pl_module: Any) -> None:
        self.freeze([pl_module.body.stem, pl_module.body.stage])

    def finetune_function(self, pl_module: Any, epoch: int, optimizer: Any) -> None:
        if epoch == 1:
            self.unfreeze_and_add_param_group(pl_module.body.stage, optimizer)


def recording(lightning: Any, lines: list[Any]) -> Any:
    """A logger that keeps what is logged, apart from the monitor's own."""

    class Recording(lightning.loggers.logger.Logger):  # type: ignore[misc, name-defined]
        name, version = "recording", 0

        def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
            pass

        def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
            if kept := {key: value for key, value in metrics.items() if not key.startswith("camwatch/")}:
                lines.append((step, kept))

    return Recording()


def digest(*parts: Any) -> str:
    return hashlib.sha256(pickle.dumps(parts)).hexdigest()


def random_states() -> str:
    return digest(random.getstate(), np.random.get_state(), torch.get_rng_state().numpy().tobytes())


def plain(value: Any) -> Any:
    """Tensors by type, shape and bits, so that == compares bit for bit, NaN included."""
    if isinstance(value, Tensor):
        bits = value.detach().cpu().contiguous().flatten().view(torch.uint8) if value.numel() else value
        return (str(value.dtype), tuple(value.shape), bits.numpy().tobytes())
    if isinstance(value, dict):
        return {key: plain(held) for key, held in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(held) for held in value]
    return value


def watching(lightning: Any, seen: list[Any]) -> Any:
    """A callback that writes down, at every step, all that a monitor could disturb."""

    class Watching(lightning.Callback):  # type: ignore[misc, name-defined]
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            modes = [module.training for module in pl_module.modules()]
            seen.append((trainer.global_step, random_states(), plain(batch), modes, torch.is_grad_enabled()))

        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            gradients = {name: plain(p.grad) for name, p in pl_module.named_parameters() if p.grad is not None}
            seen.append((trainer.global_step, plain(outputs), gradients, torch.get_default_dtype()))

        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            seen.append((random_states(), state_of(trainer, pl_module)))

    return Watching()


def state_of(trainer: Any, model: Any) -> dict[str, Any]:
    metrics = {k: v for k, v in trainer.callback_metrics.items() if not k.startswith("camwatch/")}
    return {
        "weights": plain(dict(model.state_dict())),
        "optimizers": [plain(optimizer.state_dict()) for optimizer in trainer.optimizers],
        "schedulers": [plain(config.scheduler.state_dict()) for config in trainer.lr_scheduler_configs],
        "metrics": plain(metrics),
        "gradients": {name: plain(p.grad) for name, p in model.named_parameters()},
        "trained": [p.requires_grad for p in model.parameters()],
        "modes": [module.training for module in model.modules()],
        "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in model.modules()],
        "progress": (trainer.global_step, trainer.current_epoch),
    }


@dataclass
class Run:
    """One configuration of the matrix.

    Attributes:
        trainer: Options of the Trainer.
        model: Options of ``module_of``.
        prepare: Changes the model first.
        before: Callbacks in front of the monitor.
        behind: Callbacks behind it.
        monitor: Options of the monitor.
        data: Makes the data sets.
        workers: Of the two loaders. The panel is drawn from the validation set in this process.
        snapshots: How many the monitor is to take.
        lightning: The namespace.
        alone: Whether the callback is given outside of a list.
        after: What is called when training has ended.
        compiled: Whether torch.compile is in it, so that compilations are counted.
        warns: Whether a CamwatchWarning is in order.
    """

    trainer: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    prepare: Callable[[Any], Any] = lambda model: model
    before: Callable[[], list[Any]] = list
    behind: Callable[[], list[Any]] = list
    monitor: dict[str, Any] = field(default_factory=dict)
    data: Callable[[int], Any] = Noisy
    workers: tuple[int, int] = (1, 0)
    snapshots: int = 3
    lightning: Any = standalone
    alone: bool = False
    validation: bool = True
    loggers: Callable[[Any], Any] = lambda folder: []
    after: Callable[[Any, Any, Any], Any] = lambda trainer, model, loader: None
    compiled: bool = False
    warns: bool = False

    def __call__(self, folder: Any, monitor: CAMMonitor | None) -> Any:
        torch._dynamo.reset() if self.compiled else None
        torch._dynamo.utils.counters.clear() if self.compiled else None
        standalone.seed_everything(7, verbose=False)
        model = self.prepare(module_of(self.lightning, **self.model))
        seen: list[Any] = []
        lines: list[Any] = []
        callbacks: Any = [*self.before(), *([] if monitor is None else [monitor]), *self.behind()]
        if self.alone:  # then nobody can watch step by step
            callbacks = monitor
        else:
            callbacks.append(watching(self.lightning, seen))
        loggers = [*self.loggers(folder), recording(self.lightning, lines)]
        options = {
            "accelerator": "cpu",
            "max_epochs": 2,
            "logger": loggers or False,
            "enable_checkpointing": False,
            "enable_model_summary": False,
            "enable_progress_bar": False,
            "log_every_n_steps": 1,
            "callbacks": callbacks,
            "default_root_dir": folder,
        } | self.trainer
        trainer = self.lightning.Trainer(**options)
        shuffle = self.data is Noisy
        train = loader(self.data(24), shuffle=shuffle, num_workers=self.workers[0])
        val = loader(self.data(12), num_workers=self.workers[1])
        loaders = () if self.model.get("own_loaders") else (train, val) if self.validation else (train,)
        trainer.fit(model, *loaders)
        later = self.after(trainer, model, val)
        unwrapped = getattr(model, "_orig_mod", model)
        compilations = torch._dynamo.utils.counters["stats"]["unique_graphs"] if self.compiled else 0
        return {
            "seen": seen,
            "logged": plain(lines),
            "end": state_of(trainer, unwrapped),
            "random": random_states(),
            "later": plain(later),
            "compilations": compilations,
        }
