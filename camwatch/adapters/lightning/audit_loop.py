"""The audit as a predict loop of Lightning's ``Trainer``: its devices, precisions, processes, progress bar."""

from __future__ import annotations

import dataclasses
import importlib
from typing import Any

import torch
from torch import nn

from camwatch.auditing.examine import AuditConfig, Examined, examine
from camwatch.auditing.source import LoadedBatch, Shard, Source
from camwatch.auditing.unfinished import Parts
from camwatch.errors import InputError, UnsupportedError
from camwatch.panel.batch import split_sample

_PACKAGES = {"Runner": "pytorch_lightning", "LightningRunner": "lightning.pytorch"}


def __getattr__(name: str) -> Any:
    # A trainer takes modules of its own namespace only. Made when asked for, and found by name when unpickled.
    if name not in _PACKAGES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    base = importlib.import_module(_PACKAGES[name]).LightningModule
    globals()[name] = type(name, (Work, base), {"__module__": __name__})
    return globals()[name]


def runner_class(package: str) -> Any:
    """Returns the runner for a trainer of ``pytorch_lightning`` or ``lightning.pytorch``."""
    name = {package: name for name, package in _PACKAGES.items()}[package]
    return globals().get(name) or __getattr__(name)


class Work:
    """What the runner does; a ``LightningModule`` is mixed in.

    Args:
        model: What is audited.
        source: Where the images come from.
        config: What is done to them.
        parts: Where the rows go.
        hooks: A data module, or None; its batch-transfer hooks go before the model's.
    """

    def __init__(self, model: nn.Module, source: Source, config: AuditConfig, parts: Parts, hooks: Any = None) -> None:
        super().__init__()
        self.model, self.source, self.config, self.parts = model, source, config, parts
        self._hook_owners = [owner for owner in (hooks, model) if owner is not None]
        self.allow_zero_length_dataloader_with_multiple_devices = True  # fewer batches left than processes
        self.finished = False

    def predict_dataloader(self) -> Shard:
        """Returns this process's share of what is not done yet."""
        trainer: Any = self.trainer  # type: ignore[attr-defined]
        if trainer.world_size > 1 and self.source.total is None:
            raise UnsupportedError(
                f"a data loader without indices cannot be shared between {trainer.world_size} processes: audit it "
                "with devices=1, or make its data set one with __getitem__ and __len__"
            )
        done, layers = trainer.strategy.broadcast((self.parts.done(), self._layers(trainer)))
        self.config = dataclasses.replace(self.config, asked=dataclasses.replace(self.config.asked, layers=layers))
        if trainer.is_global_zero:
            self.parts.layer = layers[0]
        return self.source.shard(done, trainer.global_rank, trainer.world_size)

    def _layers(self, trainer: Any) -> tuple[str, ...]:
        """Finds the layer on the data set's first sample, so that every process and every resumed audit finds one."""
        asked = self.config.asked
        if asked.layers or self.parts.layer is not None:
            return asked.layers or (str(self.parts.layer),)
        first = self.move(trainer.precision_plugin.convert_input(self.source.first()))
        if first.fault is not None:
            raise InputError(first.fault)
        with trainer.precision_plugin.forward_context():
            return asked.with_layer(self.model, split_sample(first.batch, asked.unpack)[0]).layers

    def predict_step(self, loaded: LoadedBatch, batch_idx: int) -> int:
        self.parts.append(loaded.number, self.examine(loaded).rows)
        return loaded.number

    def on_predict_end(self) -> None:
        self.finished = True

    def examine(self, loaded: LoadedBatch) -> Examined:
        """Explains and measures a batch that is on the model's device."""
        return examine(self.model, loaded, self.config, self.source.id)

    def move(self, loaded: LoadedBatch) -> LoadedBatch:
        """Brings a batch to the model's device, through the user's hooks, without a trainer's help."""
        device = next((p.device for p in self.model.parameters()), torch.device("cpu"))
        loaded = self.on_before_batch_transfer(loaded, 0)
        return self.on_after_batch_transfer(self.transfer_batch_to_device(loaded, device, 0), 0)

    def on_before_batch_transfer(self, batch: LoadedBatch, dataloader_idx: int) -> LoadedBatch:
        return self._hooked("on_before_batch_transfer", batch, dataloader_idx)

    def transfer_batch_to_device(self, batch: LoadedBatch, device: torch.device, dataloader_idx: int) -> LoadedBatch:
        return self._hooked("transfer_batch_to_device", batch, device, dataloader_idx)

    def on_after_batch_transfer(self, batch: LoadedBatch, dataloader_idx: int) -> LoadedBatch:
        return self._hooked("on_after_batch_transfer", batch, dataloader_idx)

    def _hooked(self, hook: str, loaded: LoadedBatch, *args: Any) -> LoadedBatch:
        if loaded.batch is None:
            return loaded
        owner = next((one for one in self._hook_owners if overrides(one, hook)), super())
        return loaded._replace(batch=getattr(owner, hook)(loaded.batch, *args))


def overrides(owner: Any, hook: str) -> bool:
    """Whether somebody else than Lightning wrote the hook."""
    for kind in type(owner).__mro__:
        if hook in vars(kind):
            return not kind.__module__.startswith(("pytorch_lightning.", "lightning."))
    return False
