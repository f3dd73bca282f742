"""What a trainer says about the run: its length, its precision, and who shares the work."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from camwatch.adapters.lightning.checks import isinstance_by_name
from camwatch.cam.model.execution import Forward
from camwatch.parallel import Share
from camwatch.watch.schedule import Schedule


def planned_snapshots(trainer: Any, schedule: Schedule, start: bool) -> int | None:
    """Returns the number of snapshots of the whole run; None where it has no known end.

    Args:
        trainer: About to train.
        schedule: When snapshots are due.
        start: Whether one is taken before the first step.
    """
    if schedule.every_n_steps is not None:
        steps = trainer.estimated_stepping_batches
        return int(steps) // schedule.every_n_steps + start if steps not in (-1, float("inf")) else None
    if trainer.max_epochs in (None, -1):
        return None
    batches, interval = trainer.num_training_batches, trainer.val_check_batch
    every, inside = trainer.check_val_every_n_epoch, 1
    if trainer.enable_validation and every is not None and isinstance(batches, int) and isinstance(interval, int):
        inside = max(1, batches // max(1, interval))
    return start + schedule.planned(trainer.max_epochs, lambda epoch: inside if (epoch + 1) % (every or 1) == 0 else 1)


def in_precision(precision: Any, forward: Forward) -> Forward:
    """Returns a function (module, images) that calls another as the trainer's precision plugin has it."""

    @functools.wraps(forward)
    def call(module: Any, images: Tensor) -> Any:
        with precision.forward_context():
            return forward(module, precision.convert_input(images))

    return call


def share_of(trainer: Any, pl_module: Any) -> Share:
    """Returns this process's share: DDP processes divide the panel, under other strategies each runs all of it."""
    if trainer.world_size == 1:
        return Share()
    device = str(pl_module.device) if torch.distributed.get_backend() == "nccl" else "cpu"
    divided = isinstance_by_name(trainer.strategy, "DDPStrategy")
    return Share(trainer.global_rank, trainer.world_size, device, whole=not divided)
