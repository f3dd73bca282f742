"""CAMMonitor: the callback for PyTorch Lightning, a thin adapter over the watcher."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Container, Sequence
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor

from camwatch.adapters.lightning import checks
from camwatch.adapters.lightning.handover import Handover
from camwatch.adapters.lightning.panels import archived_panel, copied, draw_panel, is_iterable, length
from camwatch.cam.methods.registry import check_method
from camwatch.detectors import report
from camwatch.detectors.coercion import coerce
from camwatch.detectors.judging import make_detectors
from camwatch.errors import InputError, unknown
from camwatch.panel.drawing import gather
from camwatch.panel.panel import Panel
from camwatch.records import Alarm, Snapshot
from camwatch.watch.actions import alarm_actions, warn_of
from camwatch.watch.watcher import Watcher
from camwatch.watch.writers.base import for_logger

# A callback given alone is recognized by its class: it has to belong to both of Lightning's namespaces.
_BASES: list[Any] = [Callback]


if importlib.util.find_spec("lightning") is not None:
    _BASES.append(importlib.import_module("lightning.pytorch.callbacks").Callback)


class CAMMonitor(*_BASES):  # type: ignore[misc]
    """Watches where the model looks while it trains, and raises an alarm when attention leaves the regions.

    At every validation of a scheduled epoch the panel is explained; overlays, a film strip and scalars go to
    the trainer's loggers, everything to an archive in the log directory. Training itself is bit for bit what
    it would be without the callback; after the first step the monitor never raises.

    Args:
        panel: A ``Panel``, (images, labels[, regions]), or a number of validation samples to draw.
        layer: A layer's name, a sequence of names, or None: found by a dry pass.
        method: One of ``camwatch.methods()``, or a function (activations, gradients) -> maps.
        target: "label", "predicted", a class index, or a callable on the model's output.
        every_n_epochs: A snapshot in every n-th epoch; the first is taken before the first training step.
        every_n_train_steps: A snapshot after every n-th optimizer step instead.
        epochs: Any container of epoch numbers, instead.
        detectors: "default", a sequence of detectors or callables, or [] for none (then no probe runs either).
        on_alarm: "warn", "stop", a callable(alarm, trainer), or a sequence of these.
        unpack: Callable(batch) -> (images, labels[, regions]) for batches of another shape.
        forward: Callable(pl_module, images) -> output, where ``pl_module(images)`` is not the way.
        show: How many images are drawn.
        store_images: Whether the archive keeps the panel's images.
        probe_every: The behavioural tests run at every n-th snapshot.
        name: Prefix of all tags; two monitors in one trainer need two names.
        denormalize: (mean, std) of a drawn panel's images, for their true colours; found in the data set's
            transforms by default.

    Raises:
        InputError: An argument is unusable; more is checked in ``setup`` and before the first training step.

    Example:
        >>> CAMMonitor(64, every_n_epochs=2).history
        []
    """

    def __init__(
        self,
        panel: Panel | tuple[Any, ...] | int = 64,
        layer: str | Sequence[str] | None = None,
        method: str | Callable[..., Any] = "gradcam",
        target: str | int | Callable[..., Any] = "label",
        every_n_epochs: int = 1,
        every_n_train_steps: int | None = None,
        epochs: Container[int] | None = None,
        detectors: str | Sequence[Any] = "default",
        on_alarm: str | Callable[..., Any] | Sequence[Any] = "warn",
        unpack: Callable[..., Any] | None = None,
        forward: Callable[..., Any] | None = None,
        show: int = 16,
        store_images: bool = True,
        probe_every: int = 1,
        name: str = "camwatch",
        denormalize: tuple[Sequence[float], Sequence[float]] | None = None,
    ) -> None:
        super().__init__()
        for key, value, least in (
            ("every_n_epochs", every_n_epochs, 1),
            ("every_n_train_steps", every_n_train_steps, 1),
            ("panel", panel if isinstance(panel, int) else None, 1),
            ("show", show, 0),
            ("probe_every", probe_every, 1),
        ):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
                raise InputError(f"{key} must be an integer of {least} or more, got {value!r}")
        if isinstance(target, str) and target not in ("label", "predicted"):
            raise InputError(
                f"{unknown('target', target, ['label', 'predicted'])}, a class index, or a callable on the output"
            )
        check_method(method)
        alarm_actions([one for one in _listed(on_alarm) if one != "stop"])
        coerce(detectors)
        self.panel: Panel | int = panel if isinstance(panel, int) else Panel.coerce(panel)
        self.every_n_epochs, self.every_n_train_steps, self.epochs = every_n_epochs, every_n_train_steps, epochs
        self.on_alarm, self.unpack, self.forward = on_alarm, unpack, forward
        self.name, self.denormalize = name, denormalize
        self._options: dict[str, Any] = {
            "layer": layer,
            "method": method,
            "target": target,
            "detectors": detectors,
            "show": show,
            "store_images": store_images,
            "probe_every": probe_every,
            "name": name,
        }
        self._watcher: Watcher | None = None
        self._state: dict[str, Any] = {}
        self._handover = Handover()
        self._drawn: Panel | None = None
        self._batches: list[Any] = []
        self._waiting = self._validated = self._averaged = False
        self._moment = (-1, 0)

    @property
    def history(self) -> Sequence[Snapshot]:
        """Every snapshot so far, oldest first."""
        watcher, state = self._watcher, self._received()
        return watcher.history if watcher is not None else [Snapshot(**one) for one in state.get("history", ())]

    @property
    def alarms(self) -> list[Alarm]:
        """Every alarm so far, oldest first."""
        watcher, state = self._watcher, self._received()
        kept = [*state.get("alarms", ()), *state.get("alarms_at_end", ())]
        return watcher.alarms if watcher is not None else [Alarm(**one) for one in kept]

    @property
    def archive(self) -> Path | None:
        """The folder of the archive; None where there is none."""
        watcher, path = self._watcher, self._received().get("archive")
        return watcher.archive if watcher is not None else None if path is None else Path(path)

    def summary(self) -> str:
        """Returns what was measured over the run, and what cannot be concluded from it."""
        if not self.history:
            return "no snapshot was taken"
        if self._watcher is not None:
            return self._watcher.summary()
        detectors = make_detectors(self._options["detectors"], self._state.get("detectors"))
        return report.summary(self.history, self.alarms, detectors)

    @property
    def state_key(self) -> str:
        """Distinguishes several monitors in one checkpoint."""
        return f"CAMMonitor[{self.name}]"

    # Hooks: they only delegate.

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        if stage != "fit":
            return
        checks.check_strategy(trainer)
        if self.forward is None:
            checks.check_forward(pl_module)
        if self.epochs is None and self.every_n_train_steps is None:
            checks.check_patience(trainer, self.name, self.every_n_epochs)
        self._averaged = checks.sees_averages(trainer, self, self.every_n_train_steps is not None)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self._keep_state(pl_module)
        self._moment = (-1, 0)
        panel = self._find_panel(trainer, pl_module)
        self._waiting = panel is None
        if panel is None:
            self._promise(trainer)
            return
        watcher = self._begin(trainer, pl_module, panel, start=True)
        checks.check_monitors(trainer, self.name, watcher.tags(watcher.published))
        if not watcher.history:
            self._snapshot(trainer, -1)
        elif watcher.history[-1].global_step <= trainer.global_step:  # else another fit counts from the start again
            self._moment = (watcher.history[-1].epoch, watcher.history[-1].global_step)

    def on_validation_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        waiting = (trainer.sanity_checking or self._waiting) and dataloader_idx == 0
        drawn = waiting and isinstance(self.panel, int) and is_iterable(trainer)
        if drawn and sum(map(length, self._batches)) < self.panel:  # type: ignore[operator]
            self._batches.append(copied(batch))

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        if trainer.sanity_checking or trainer.state.fn != TrainerFn.FITTING:
            return
        self._validated = True
        started = self._waiting and self._start_late(trainer, pl_module)
        if started or self._is_scheduled(trainer.current_epoch):
            self._snapshot(trainer, trainer.current_epoch, self._averaged)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        every = self.every_n_train_steps
        if every and trainer.global_step // every > self._moment[1] // every:
            self._snapshot(trainer, trainer.current_epoch)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        if not self._validated and self._is_scheduled(trainer.current_epoch):
            self._snapshot(trainer, trainer.current_epoch)
        self._validated = False

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        if self._watcher is not None:
            self._watcher.finish()
            self._publish(trainer)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        self._close(trainer)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        self._close(trainer)

    def state_dict(self) -> dict[str, Any]:
        return self._received() if self._watcher is None else self._watcher.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._watcher, self._state = None, state_dict

    def __getstate__(self) -> dict[str, Any]:
        # What travels to spawned processes: no model, no trainer; Lightning binds the module's log to callbacks.
        fresh: dict[str, Any] = {"_watcher": None, "_state": self.state_dict(), "_batches": []}
        return {key: value for key, value in vars(self).items() if key not in ("log", "log_dict")} | fresh

    # What the hooks do.

    def _received(self) -> dict[str, Any]:
        """Returns the state that this monitor was given: by a checkpoint, or by the process that trained."""
        handed = self._handover.receive()
        if handed is not None:
            self._watcher, self._state = None, handed
        return self._state

    def _keep_state(self, pl_module: Any) -> None:
        """Goes on with the history of an earlier fit of the same module."""
        if self._watcher is not None:
            same = self._watcher.model is pl_module
            self._state, self._drawn = (self._watcher.state_dict(), self._watcher.panel) if same else ({}, None)
        self._watcher = None

    def _close(self, trainer: Any) -> None:
        if self._watcher is not None:
            self._watcher.close()
            if trainer.is_global_zero:
                self._handover.send(self._watcher.state_dict())

    def _is_scheduled(self, epoch: int) -> bool:
        if self.every_n_train_steps is not None:
            return False
        return epoch in self.epochs if self.epochs is not None else (epoch + 1) % self.every_n_epochs == 0

    def _planned(self, trainer: Any, start: bool) -> int | None:
        """The number of snapshots of the whole run, the first included; None where it has no known end."""
        if self.every_n_train_steps is not None:
            steps = trainer.estimated_stepping_batches
            return int(steps) // self.every_n_train_steps + start if steps not in (-1, float("inf")) else None
        if trainer.max_epochs in (None, -1):
            return None
        scheduled = [epoch for epoch in range(trainer.max_epochs) if self._is_scheduled(epoch)]
        batches, interval = trainer.num_training_batches, trainer.val_check_batch
        every, inside = trainer.check_val_every_n_epoch, 1
        if trainer.enable_validation and every is not None and isinstance(batches, int) and isinstance(interval, int):
            inside = max(1, batches // max(1, interval))
        return start + sum(inside if (epoch + 1) % (every or 1) == 0 else 1 for epoch in scheduled)

    def _find_panel(self, trainer: Any, pl_module: Any) -> Panel | None:
        """Returns the panel, the same on every process; None where it has to wait for validation batches."""

        def find() -> Panel | None:
            if isinstance(self.panel, Panel):
                return self.panel
            archive = self._state.get("archive")
            panel = self._drawn or (None if archive is None else archived_panel(archive))
            if panel is None and (self._batches or is_iterable(trainer)):
                enough = self._waiting or sum(map(length, self._batches)) >= self.panel
                panel = gather(self._batches, self.panel, self.unpack) if enough else None
            elif panel is None:
                panel = draw_panel(trainer, pl_module, self.panel, self.unpack)
            if panel is not None and self.denormalize is not None:
                panel = Panel.from_state({**panel.state_dict(), "denormalize": self.denormalize})
            return panel

        # On every process: what asks the user's data module may wait for the others.
        panel = checks.share_of(trainer, pl_module).together(find)
        return trainer.strategy.broadcast(panel) if trainer.world_size > 1 else panel

    def _promise(self, trainer: Any) -> None:
        """Gives who monitors a key of ours something to find until it is measured."""
        for _, key in checks.monitored(trainer, self.name):
            trainer.callback_metrics.setdefault(key, torch.tensor(0.0))

    def _start_late(self, trainer: Any, pl_module: Any) -> bool:
        """Begins with the validation batches seen so far; training runs already, so nothing is raised."""
        try:
            panel = self._find_panel(trainer, pl_module)
            self._waiting = False
            if panel is not None:
                watcher = self._begin(trainer, pl_module, panel, start=False)
                checks.check_monitors(trainer, self.name, watcher.tags(watcher.published))
        except Exception as error:
            self._waiting = False
            checks.warn(f"the monitor could not begin; training goes on. {type(error).__name__}: {error}")
        return self._watcher is not None

    def _begin(self, trainer: Any, pl_module: Any, panel: Panel, start: bool) -> Watcher:
        self._batches = []
        precision, own = trainer.precision_plugin, self.forward

        def forward(module: Any, images: Tensor) -> Any:
            with precision.forward_context():
                images = precision.convert_input(images)
                return own(module, images) if own is not None else module(images)

        barebones = bool(getattr(trainer, "barebones", False))
        # A broadcast: called on every process. Without a logger it would be the current directory.
        folder = trainer.log_dir if trainer.loggers and not barebones else None
        writers = [] if barebones else [for_logger(logger) for logger in trainer.loggers]
        known = self._state.get("layers", ())
        options = dict(self._options)
        if options["layer"] is None and {*known} <= {name for name, _ in pl_module.named_modules()}:
            options["layer"] = known or None  # found in other weights, a default layer could be another
        self._watcher = watcher = Watcher(
            pl_module,
            panel,
            on_alarm=[self._action(one, trainer) for one in _listed(self.on_alarm)],
            forward=forward,
            directory=None if folder is None else _free(Path(folder) / self.name, self._state.get("archive")),
            writers=[writer for writer in writers if writer is not None],
            planned=self._planned(trainer, start),
            share=checks.share_of(trainer, pl_module),
            **options,
        )
        if self._state:
            watcher.load_state_dict(self._state)
            self._state = {}
        self._publish(trainer)
        return watcher

    @staticmethod
    def _action(given: Any, trainer: Any) -> Callable[[Alarm], Any]:
        def stop(alarm: Alarm) -> None:
            trainer.should_stop = True

        def warn(alarm: Alarm) -> None:
            if trainer.is_global_zero:
                warn_of(alarm)

        if isinstance(given, str):
            return {"stop": stop, "warn": warn}[given]
        return lambda alarm: given(alarm, trainer)

    def _snapshot(self, trainer: Any, epoch: int, averaged: bool = False) -> None:
        watcher = self._watcher
        if watcher is None:
            return
        moment = (epoch, trainer.global_step)
        if watcher.history and moment == self._moment:
            return
        self._moment = moment
        watcher.snapshot(epoch, trainer.global_step, averaged=averaged)
        self._publish(trainer)

    def _publish(self, trainer: Any) -> None:
        assert self._watcher is not None
        for tag, value in self._watcher.tags(self._watcher.published).items():
            trainer.callback_metrics[tag] = torch.tensor(value, dtype=torch.float32)


def _free(folder: Path, own: str | None) -> Path:
    """Returns the folder, or one beside it where another run's archive lies there already."""
    candidates = (folder if i == 0 else folder.with_name(f"{folder.name}_{i}") for i in range(10_000))
    return next(f for f in candidates if str(f.absolute()) == own or not (f / "snapshots").exists())


def _listed(given: Any) -> list[Any]:
    return list(given) if isinstance(given, (list, tuple)) else [given]
