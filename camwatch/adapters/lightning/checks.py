"""What is checked before training, and what the trainer says about it."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterator
from typing import Any

from pytorch_lightning.utilities.model_helpers import is_overridden

from camwatch.errors import CamwatchWarning, InputError, UnsupportedError, unknown


def check_strategy(trainer: Any) -> None:
    """Refuses strategies under which no layer can be explained.

    Raises:
        UnsupportedError: FSDP1 or DeepSpeed.
    """
    name = type(trainer.strategy).__name__
    if name in ("FSDPStrategy", "DeepSpeedStrategy"):
        raise UnsupportedError(
            f"{name} shards parameters outside of the module's own forward, where no layer can be explained; "
            f"use DDPStrategy or ModelParallelStrategy (FSDP2), or remove CAMMonitor"
        )


def check_forward(pl_module: Any) -> None:
    """Finds a module that cannot be called.

    Raises:
        InputError: It has no ``forward``.
    """
    base = next(one for one in type(pl_module).__mro__ if one.__name__ == "LightningModule")  # of either namespace
    if not is_overridden("forward", pl_module, base):
        raise InputError(
            f"{type(pl_module).__name__} has no forward(); define one, or pass "
            f"forward=callable(pl_module, images) -> output"
        )


def monitored(trainer: Any, name: str) -> Iterator[tuple[str, str]]:
    """Yields who monitors which of our keys: checkpoints, early stopping, learning rate schedulers."""
    askers = [(type(callback).__name__, getattr(callback, "monitor", None)) for callback in trainer.callbacks]
    askers += [(type(config.scheduler).__name__, config.monitor) for config in trainer.lr_scheduler_configs]
    for who, key in askers:
        if isinstance(key, str) and key.startswith(f"{name}/"):
            yield who, key


def check_monitors(trainer: Any, name: str, tags: Collection[str]) -> None:
    """Finds a monitored key of ours that will never exist.

    Raises:
        InputError: There is one; the message names the keys that will.
    """
    for who, key in monitored(trainer, name):
        if key not in tags:
            raise InputError(f"{who}: {unknown('key to monitor', key, sorted(tags), limit=40)}")


def check_patience(trainer: Any, name: str, every_n_epochs: int) -> None:
    """Warns of an early stopping that gives up before the next value."""
    for callback in trainer.callbacks:
        patience = getattr(callback, "patience", None)
        ours = str(getattr(callback, "monitor", "")).startswith(f"{name}/")
        if ours and patience is not None and patience < every_n_epochs:
            warn(
                f"{type(callback).__name__} counts epochs without a new value: its patience of {patience} is "
                f"shorter than a snapshot every {every_n_epochs} epochs"
            )


def sees_averages(trainer: Any, monitor: Any, by_steps: bool) -> bool:
    """Whether the weights at the end of a validation are averaged ones.

    Weight averaging takes them out again in the hook in which snapshots are taken, so whoever is behind it in the
    list of callbacks comes too late. Checkpoints hold them, so a warning is due where snapshots do not see them.
    """
    found = (i for i, callback in enumerate(trainer.callbacks) if isinstance_by_name(callback, "WeightAveraging"))
    averaging = next(found, None)
    if averaging is None:
        return False
    behind = averaging > trainer.callbacks.index(monitor)
    if behind and trainer.enable_validation and not by_steps:
        return True
    cure = "they are in the model during validations only" if behind else "put CAMMonitor in front of it in the list"
    warn(
        f"snapshots will show the raw weights, but checkpoints hold the ones averaged by "
        f"{type(trainer.callbacks[averaging]).__name__}: {cure}"
    )
    return False


def isinstance_by_name(given: object, name: str) -> bool:
    """Whether something is of a class of Lightning's, in either of its namespaces."""
    return any(base.__name__ == name for base in type(given).__mro__)


def warn(message: str) -> None:
    """Warns the user."""
    warnings.warn(message, CamwatchWarning, stacklevel=3)
