"""CAMMonitorCallback: the callback for ``transformers.Trainer``, a thin adapter over the watcher."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from camwatch.adapters.states import read_state, write_state
from camwatch.cam.model.modules import unwrap
from camwatch.errors import CamwatchWarning, PanelError, UnsupportedError, check_at_least
from camwatch.isolation import isolate_generators, isolate_rng
from camwatch.panel.drawing import draw
from camwatch.panel.panel import Panel
from camwatch.parallel import Share
from camwatch.records import Finding, Snapshot
from camwatch.watch.actions import trainer_actions
from camwatch.watch.schedule import Schedule
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
        on_alarm: "warn", "stop", a callable(finding, trainer), or a sequence of these, for alarms alone.
        on_finding: The same, for findings of every severity; None: nothing is done.
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
        on_finding: str | Callable[..., Any] | Sequence[Any] | None = None,
        **options: Any,
    ) -> None:
        self.schedule = Schedule(every_n_epochs)
        if isinstance(panel, int):
            check_at_least(1, panel=panel)
        if getattr(trainer, "is_fsdp_enabled", False) or getattr(trainer, "is_deepspeed_enabled", False):
            raise UnsupportedError(
                "FSDP and DeepSpeed shard parameters outside of the model's own forward, where no layer can be "
                "explained; train with DDP or on one device, or remove CAMMonitorCallback"
            )
        self.trainer = trainer
        self.panel: Panel | int = panel if isinstance(panel, int) else Panel.coerce(panel)
        self.unpack, self.name = unpack, name
        self._actions: dict[str, Any] = {
            argument: trainer_actions(argument, given, trainer, self._ask_to_stop)
            for argument, given in (("on_alarm", on_alarm), ("on_finding", on_finding))
        }
        self._options = options
        self._training = self._stop = False
        self.watcher: Watcher | None = None

    @property
    def history(self) -> Sequence[Snapshot]:
        """Every snapshot so far, oldest first."""
        return [] if self.watcher is None else self.watcher.history

    @property
    def findings(self) -> list[Finding]:
        """Every finding so far, oldest first."""
        return [] if self.watcher is None else self.watcher.findings

    @property
    def alarms(self) -> list[Finding]:
        """The findings of severity "alarm"."""
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
            **self._actions,
            directory=self._folder(args),
            planned=self._planned(args, state),
            name=self.name,
            share=_share(args),
            **self._options,
        )
        kept = self._checkpoint(args, state)
        if state.global_step and kept.exists():
            self._resume(self.watcher, kept)
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
            self._keep(self.watcher, checkpoint)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._training = False
        if self.watcher is not None:
            self.watcher.finish()

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
        return self.schedule.planned(int(state.num_train_epochs)) + 1 if by_epochs else None

    def _ask_to_stop(self) -> None:
        self._stop = True

    @staticmethod
    def _keep(watcher: Watcher, path: Path) -> None:
        """Writes the state whole or not at all; a full disk ends nobody's training."""
        try:
            write_state(path, watcher.state_dict())
        except Exception as error:
            warnings.warn(
                f"{path} could not be written, so that a run resumed from this checkpoint begins a new history; "
                f"training goes on. {type(error).__name__}: {error}",
                CamwatchWarning,
                stacklevel=2,
            )

    @staticmethod
    def _resume(watcher: Watcher, path: Path) -> None:
        try:
            watcher.load_state_dict(read_state(path))
        except Exception as error:  # whatever a damaged file raises
            warnings.warn(
                f"{path} cannot be read, so a new history is begun; training goes on. {type(error).__name__}: {error}",
                CamwatchWarning,
                stacklevel=2,
            )

    def _snapshot(self, epoch: int, state: Any, control: Any) -> None:
        watcher = self.watcher
        if watcher is None or not (epoch < 0 or self.schedule.is_due(epoch)):
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
