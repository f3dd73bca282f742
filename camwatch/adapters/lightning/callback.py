"""CAMMonitor: the callback for PyTorch Lightning, a thin adapter over the watcher."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Container, Sequence
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.trainer.states import TrainerFn

from camwatch.adapters.lightning import checks
from camwatch.adapters.lightning.handover import StateFile
from camwatch.adapters.lightning.panels import archived_panel, copied, draw_panel, is_iterable, length
from camwatch.adapters.lightning.trainers import in_precision, planned_snapshots, share_of
from camwatch.cam.model.execution import call_plainly
from camwatch.detectors import report
from camwatch.detectors.coercion import coerce
from camwatch.detectors.judging import make_detectors
from camwatch.errors import check_at_least
from camwatch.panel.drawing import gather
from camwatch.panel.panel import Panel
from camwatch.records import Finding, Snapshot
from camwatch.run import RunConfig
from camwatch.watch.actions import trainer_actions
from camwatch.watch.schedule import Schedule
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

    Read ``findings`` (all that the detectors found), ``alarms`` (those of severity "alarm"), ``history`` (the
    snapshots, oldest first), ``archive`` (its folder) and ``summary()``.

    Logged, under ``name`` ("camwatch/" by default):

    - ``panel``: the panel with the regions' outlines, at step 0, where a wrong annotation is seen at once;
    - ``<layer>/overlays``: one sheet a snapshot, with label, predicted class and probability; for a wrong answer the
      predicted class's map too;
    - ``<layer>/film_strip``: a row per image, a column per snapshot, and the difference from the first;
    - ``relevance_mass_accuracy``: the share of the map's mass inside the regions; with ``/right`` and ``/wrong`` behind
      it, that of the images answered rightly and wrongly, as for ``pointing_game`` and ``map_entropy``; further
      ``relevance_rank_accuracy``, ``region_auroc``, ``region_area`` and ``region_ceiling``; ``forbidden_mass`` and
      ``forbidden_area`` with a forbidden zone;
    - ``map_mass``, ``map_entropy``, ``map_similarity`` (to the first snapshot), ``blank_maps``: without regions too;
    - ``correct``, ``label_probability``: of the answers;
    - ``hide``: how often the label is still given with its region hidden; ``hide_elsewhere``: with a box of the same
      area hidden elsewhere; ``swap_context``, ``swap_region``: how often the answer follows the rest of the image, or
      the region, when regions are swapped; ``swap_confusion``, ``swaps``: how often that class is answered where it is
      on neither side, and how many swaps were asked;
    - ``alarm``: 0 or 1, and each alarm's text; ``summary``: a text at the end of the run;
    - ``cue``: on an alarm, the place whose patch carries the answer with it when it is moved between images.

    Measures of a map also stand under ``<layer>/<measure>``; those without a layer are the first one's. TensorBoard
    gets all of it; Weights & Biases, MLflow and CSV loggers what they can hold; other loggers the scalars.
    ``ModelCheckpoint``, ``EarlyStopping`` and schedulers can monitor every scalar: it exists from the first step, holds
    the epoch's own value in epochs with a snapshot and the last one otherwise, and is never NaN.

    A snapshot costs about its forward passes. With regions, most of a snapshot is the probes (11 passes of the panel):
    ``probe_every=`` spaces them, ``detectors=[]`` leaves them out. Between snapshots the model has no hook.

    Under DDP each process explains its share of the panel, rank zero writes, and all see the same values; after
    ``ddp_spawn`` and ``ddp_fork`` history, findings and summary are in the parent. Under ``ModelParallelStrategy``
    (FSDP2) every process runs the same forward passes: tested with two processes on the CPU, never on several GPUs.
    FSDP1 and DeepSpeed are refused. A resumed run goes on with its history, findings and detectors, which are in the
    checkpoint.

    Args:
        panel: A ``Panel``, (images, labels[, regions]), or a number of validation samples to draw.
        layer: A layer's name, a sequence of names, or None: found by a dry pass.
        method: One of ``camwatch.methods()``, or a function (activations, gradients) -> maps.
        target: "label", "predicted", a class index, or a callable on the model's output.
        every_n_epochs: A snapshot in every n-th epoch; the first is taken before the first training step.
        every_n_train_steps: A snapshot after every n-th optimizer step instead.
        epochs: Any container of epoch numbers, instead.
        detectors: "default", a sequence of detectors or callables, or [] for none (then no probe runs either).
        on_alarm: "warn", "stop", a callable(finding, trainer), or a sequence of these, for alarms alone.
        unpack: Callable(batch) -> (images, labels[, regions]) for batches of another shape.
        forward: Callable(pl_module, images) -> output, where ``pl_module(images)`` is not the way.
        show: How many images are drawn.
        store_images: Whether the archive keeps the panel's images.
        probe_every: The behavioural tests run at every n-th snapshot.
        name: Prefix of all tags; two monitors in one trainer need two names.
        denormalize: (mean, std) of a drawn panel's images, for their true colours; found in the data set's
            transforms by default.
        on_finding: As ``on_alarm``, for findings of every severity.

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
        on_finding: str | Callable[..., Any] | Sequence[Any] | None = None,
    ) -> None:
        super().__init__()
        self.schedule = Schedule(every_n_epochs, every_n_train_steps, epochs, probe_every)
        check_at_least(0, show=show)
        if isinstance(panel, int):
            check_at_least(1, panel=panel)
        RunConfig(method=method, target=target)
        for argument, given in (("on_alarm", on_alarm), ("on_finding", on_finding)):
            trainer_actions(argument, given, None, lambda: None)
        coerce(detectors)
        self.panel: Panel | int = panel if isinstance(panel, int) else Panel.coerce(panel)
        self.on_alarm, self.on_finding, self.unpack, self.forward = on_alarm, on_finding, unpack, forward
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
        self._state_file = StateFile()
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
    def findings(self) -> list[Finding]:
        """Every finding so far, oldest first; those of the end of training last."""
        watcher, state = self._watcher, self._received()
        kept = [*state.get("findings", ()), *state.get("findings_at_end", ())]
        return watcher.findings if watcher is not None else [Finding(**one) for one in kept]

    @property
    def alarms(self) -> list[Finding]:
        """The findings of severity "alarm"."""
        return [finding for finding in self.findings if finding.severity == "alarm"]

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
        if self.schedule.epochs is None and self.schedule.every_n_steps is None:
            checks.check_patience(trainer, self.name, self.schedule.every_n_epochs)
        self._averaged = checks.sees_averages(trainer, self, self.schedule.every_n_steps is not None)

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
        if started or self.schedule.is_due(trainer.current_epoch):
            self._snapshot(trainer, trainer.current_epoch, self._averaged)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.schedule.is_due_between(self._moment[1], trainer.global_step):
            self._snapshot(trainer, trainer.current_epoch)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        if not self._validated and self.schedule.is_due(trainer.current_epoch):
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
        handed = self._state_file.receive()
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
                self._state_file.send(self._watcher.state_dict())

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
        panel = share_of(trainer, pl_module).raise_together(find)
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
        barebones = bool(getattr(trainer, "barebones", False))
        # A broadcast: called on every process. Without a logger it would be the current directory.
        folder = trainer.log_dir if trainer.loggers and not barebones else None
        writers = [] if barebones else [for_logger(logger) for logger in trainer.loggers]
        known = self._state.get("run", {}).get("layers", ())
        options = dict(self._options)
        if options["layer"] is None and {*known} <= {name for name, _ in pl_module.named_modules()}:
            options["layer"] = known or None  # found in other weights, a default layer could be another

        def stop() -> None:
            trainer.should_stop = True

        self._watcher = watcher = Watcher(
            pl_module,
            panel,
            on_alarm=trainer_actions("on_alarm", self.on_alarm, trainer, stop, trainer.is_global_zero),
            on_finding=trainer_actions("on_finding", self.on_finding, trainer, stop, trainer.is_global_zero),
            forward=in_precision(trainer.precision_plugin, self.forward or call_plainly),
            directory=None if folder is None else Path(folder) / self.name,
            writers=[writer for writer in writers if writer is not None],
            planned=planned_snapshots(trainer, self.schedule, start),
            share=share_of(trainer, pl_module),
            **options,
        )
        if self._state:
            watcher.load_state_dict(self._state)
            self._state = {}
        self._publish(trainer)
        return watcher

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
