"""CAMMonitorCallback: the callback for ``transformers.Trainer``, a thin adapter over the watcher."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from camwatch.cam.model.modules import unwrap
from camwatch.errors import InputError, PanelError, UnsupportedError
from camwatch.isolation import isolate_generators, isolate_rng
from camwatch.panel.drawing import draw
from camwatch.panel.panel import Panel
from camwatch.parallel import Share
from camwatch.records import Alarm, Snapshot
from camwatch.watch.actions import alarm_actions, warn_of
from camwatch.watch.watcher import Watcher


class CAMMonitorCallback(TrainerCallback):
    """Watches where the model looks while it trains, and raises an alarm when attention leaves the regions.

    A snapshot is taken before the first step and at every evaluation; at the end of every epoch where the
    trainer does not evaluate. Overlays, the film strip and the archive lie in the folder ``name`` below
    TensorBoard's logging directory (the output directory without one). Scalars go to the trainer's log, and
    with ``eval_`` before them to the metrics of the evaluation, where ``metric_for_best_model`` and
    ``EarlyStoppingCallback`` find them; add this callback before that one. A checkpoint holds the history,
    with which a resumed run goes on. Training itself is bit for bit what it would be without the callback.

    Args:
        trainer: The trainer that this callback is added to.
        panel: A ``Panel``, (images, labels[, regions]), or a number of samples to draw from ``eval_dataset``,
            through the trainer's collator.
        every_n_epochs: Snapshots in every n-th epoch only.
        on_alarm: "warn", "stop", a callable(alarm, trainer), or a sequence of these.
        unpack: Callable(batch) -> (images, labels[, regions]) for batches of another shape.
        name: Prefix of all tags; two monitors in one trainer need two names.
        options: Further arguments of ``Watcher``: layer, method, target, detectors, forward, show,
            store_images, probe_every.

    Raises:
        InputError: An argument is unusable; more is checked before the first training step.
        UnsupportedError: The trainer shards parameters, with FSDP or DeepSpeed.

    Example:
        >>> trainer.add_callback(CAMMonitorCallback(trainer, panel=64))  # doctest: +SKIP
        >>> trainer.train()  # doctest: +SKIP
    """

    def __init__(
        self,
        trainer: Any,
        panel: Panel | tuple[Any, ...] | int = 64,
        *,
        every_n_epochs: int = 1,
        on_alarm: str | Callable[..., Any] | Sequence[Any] = "warn",
        unpack: Callable[..., Any] | None = None,
        name: str = "camwatch",
        **options: Any,
    ) -> None:
        if every_n_epochs < 1 or (isinstance(panel, int) and panel < 1):
            raise InputError(f"every_n_epochs and panel must be 1 or more, got {every_n_epochs} and {panel!r}")
        if getattr(trainer, "is_fsdp_enabled", False) or getattr(trainer, "is_deepspeed_enabled", False):
            raise UnsupportedError(
                "FSDP and DeepSpeed shard parameters outside of the model's own forward, where no layer can be "
                "explained; train with DDP or on one device, or remove CAMMonitorCallback"
            )
        self.trainer = trainer
        self.panel: Panel | int = panel if isinstance(panel, int) else Panel.coerce(panel)
        self.every_n_epochs, self.unpack, self.name = every_n_epochs, unpack, name
        self._on_alarm = list(on_alarm) if isinstance(on_alarm, (list, tuple)) else [on_alarm]
        alarm_actions([one for one in self._on_alarm if one != "stop"])
        self._options = options
        self._training = self._stop = False
        self.watcher: Watcher | None = None

    @property
    def history(self) -> Sequence[Snapshot]:
        """Every snapshot so far, oldest first."""
        return [] if self.watcher is None else self.watcher.history

    @property
    def alarms(self) -> list[Alarm]:
        """Every alarm so far, oldest first."""
        return [] if self.watcher is None else self.watcher.alarms

    @property
    def archive(self) -> Path | None:
        """The folder of the archive; None before training."""
        return None if self.watcher is None else self.watcher.archive

    def summary(self) -> str:
        """Returns what was measured over the run, and what cannot be concluded from it."""
        return "no snapshot was taken" if self.watcher is None else self.watcher.summary()

    # Hooks: they only delegate.

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._training = True
        self.watcher = Watcher(
            unwrap(kwargs["model"]),
            self._draw(self.panel) if isinstance(self.panel, int) else self.panel,
            on_alarm=[self._action(one) for one in self._on_alarm],
            directory=self._folder(args),
            planned=self._planned(args, state),
            name=self.name,
            share=_share(args),
            **self._options,
        )
        kept = self._checkpoint(args, state)
        if state.global_step and kept.exists():
            self.watcher.load_state_dict(torch.load(kept, map_location="cpu", weights_only=True))
        if not self.watcher.history:
            self._snapshot(-1, state, control)

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
        if not self._training or self.watcher is None:
            return
        self._snapshot(_epoch(state), state, control)
        if metrics is not None:
            published = self.watcher.tags(self.watcher.published)
            metrics.update({f"eval_{tag}": value for tag, value in published.items()})

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if _strategy(args) == "no":
            self._snapshot(_epoch(state), state, control)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        checkpoint = self._checkpoint(args, state)
        if self.watcher is not None and state.is_world_process_zero and checkpoint.parent.is_dir():
            torch.save(self.watcher.state_dict(), checkpoint)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._training = False
        if self.watcher is not None:
            self.watcher.finish()
            self.watcher.close()

    # What the hooks do.

    def _draw(self, n: int) -> Panel:
        given = self.trainer.eval_dataset
        if given is None:
            raise PanelError(
                "no eval_dataset to draw the panel from: give it to the trainer, or give CAMMonitorCallback a panel "
                "of your own, CAMMonitorCallback(trainer, Panel(images, labels, regions=...))"
            )
        first = next(iter(given)) if isinstance(given, dict) else None
        with isolate_rng(), isolate_generators(given, self.trainer.data_collator):
            return draw(self.trainer.get_eval_dataloader(first), n, self.unpack)

    def _folder(self, args: Any) -> Path:
        boards = [getattr(one, "tb_writer", None) for one in self.trainer.callback_handler.callbacks]
        logged = [board.log_dir for board in boards if board is not None]
        return Path((logged or [getattr(args, "logging_dir", None) or args.output_dir])[0]) / self.name

    def _checkpoint(self, args: Any, state: Any) -> Path:
        return Path(args.output_dir) / f"checkpoint-{state.global_step}" / f"{self.name}.pt"

    def _planned(self, args: Any, state: Any) -> int | None:
        """The number of snapshots of the whole run, the first included; None where it is not by epochs."""
        by_epochs = _strategy(args) != "steps" and args.max_steps <= 0
        return int(state.num_train_epochs) // self.every_n_epochs + 1 if by_epochs else None

    def _action(self, given: Any) -> Callable[[Alarm], Any]:
        def stop(alarm: Alarm) -> None:
            self._stop = True

        if isinstance(given, str):
            return {"stop": stop, "warn": warn_of}[given]
        return lambda alarm: given(alarm, self.trainer)

    def _snapshot(self, epoch: int, state: Any, control: Any) -> None:
        watcher = self.watcher
        if watcher is None or (epoch + 1) % self.every_n_epochs:
            return
        last = watcher.history[-1] if watcher.history else None
        if last is not None and (last.epoch, last.global_step) == (epoch, state.global_step):
            return
        snapshot = watcher.snapshot(epoch, state.global_step)
        if snapshot.error is None:
            due = control.should_log  # which log() takes as done
            self.trainer.log(watcher.tags({**snapshot.scalars, "alarm": watcher.published["alarm"]}))
            control.should_log = due
        if self._stop:
            control.should_training_stop = True


def _epoch(state: Any) -> int:
    """Returns the epoch, from 0, that a moment at its end or inside it belongs to."""
    return max(0, math.ceil(round(float(state.epoch), 6)) - 1)


def _strategy(args: Any) -> str:
    """Returns when the trainer evaluates: "no", "steps" or "epoch"."""
    return str(getattr(args.eval_strategy, "value", args.eval_strategy))


def _share(args: Any) -> Share:
    if args.world_size == 1:
        return Share()
    on_gpu = torch.distributed.get_backend() == "nccl"
    return Share(args.process_index, args.world_size, str(args.device) if on_gpu else "cpu")
