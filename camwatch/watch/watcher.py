"""The watcher: snapshots of a panel, their history, and what is made of them. Knows no trainer."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import warnings
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from camwatch.cam.methods.gradients import Method
from camwatch.cam.model.execution import Forward
from camwatch.detectors import judging, report
from camwatch.detectors.judging import Judge, judge_each, make_detectors
from camwatch.errors import CamwatchWarning, DisplayWarning, InputError
from camwatch.measures import expected
from camwatch.panel.panel import Panel
from camwatch.parallel import Share, lacks_memory
from camwatch.probes.cue import Cue, find_cue
from camwatch.records import Alarm, Snapshot
from camwatch.run import PanelTarget, Recipe, shared_predict, write_recipe
from camwatch.watch.actions import alarm_actions
from camwatch.watch.film_strip import FilmStrip
from camwatch.watch.history import History
from camwatch.watch.output import Output
from camwatch.watch.publish import Sheets
from camwatch.watch.snapshot import Measured, measure

if TYPE_CHECKING:
    from camwatch.watch.writers.base import Writer


class Watcher:
    """Watches where a model looks, snapshot by snapshot, in any training loop.

    Everything is checked when the watcher is made. After that it never raises for what goes wrong in a
    snapshot: it warns once, records the failure and goes on.

    Args:
        model: The model that is trained; its state is never changed.
        panel: What is watched: a Panel or (images, labels[, regions]).
        layer: A layer's name, a sequence of names, or None: found by a dry pass.
        method: One of ``camwatch.methods()``, or a function (activations, gradients) -> maps.
        target: "label", "predicted", a class index, or a callable on the model's output.
        detectors: "default", a sequence of detectors or callables, or [] for none (then no probe runs).
        on_alarm: "warn", a callable(alarm), or a sequence of these.
        forward: Callable (model, images) -> output, where ``model(images)`` is not the way.
        directory: Where the archive is kept; None: nowhere.
        writers: Where pictures, scalars and texts go; None: TensorBoard files in ``directory``.
        show: How many images are drawn.
        store_images: Whether the archive keeps the panel's images.
        probe_every: The behavioural tests run at every n-th snapshot.
        planned: Number of snapshots that will be taken, where it is known.
        name: Prefix of all tags.
        share: This process's part of the work, where several share it.

    Raises:
        InputError: Something does not fit; the message says what arrived and what is valid.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
        >>> watcher = Watcher(net, (torch.rand(4, 1, 8, 8), [0, 1, 0, 1]), detectors=[])
        >>> snapshot = watcher.snapshot(epoch=0, step=10)
        >>> snapshot.epoch, len(watcher.history), watcher.layers
        (0, 1, ('1',))
    """

    def __init__(
        self,
        model: nn.Module,
        panel: Any,
        *,
        layer: str | Sequence[str] | None = None,
        method: str | Method = "gradcam",
        target: PanelTarget = "label",
        detectors: Literal["default"] | Sequence[Any] = "default",
        on_alarm: Any = "warn",
        forward: Forward | None = None,
        directory: str | Path | None = None,
        writers: Sequence[Writer] | None = None,
        show: int = 16,
        store_images: bool = True,
        probe_every: int = 1,
        planned: int | None = None,
        name: str = "camwatch",
        share: Share | None = None,
    ) -> None:
        if show < 0 or probe_every < 1:
            raise InputError(f"show must be 0 or more and probe_every 1 or more, got {show} and {probe_every}")
        self.model = model
        self.panel = Panel.coerce(panel)
        self.detectors = make_detectors(detectors)
        self.name = name
        self.planned = planned
        self.history = History()
        self._recipe: Recipe = write_recipe(
            model,
            self.panel,
            layer if layer is None or isinstance(layer, str) else tuple(layer),
            method,
            target,
            forward,
        )
        self._on_alarm = alarm_actions(on_alarm)
        self._probe_every = probe_every
        self._share = share or Share()
        self._reference: dict[str, Tensor] = {}
        self._film = FilmStrip()
        self._sheets = Sheets.of(self.panel, self._recipe, show)
        self._last: Measured | None = None
        self._alarms: list[Alarm] = []
        self._alarms_at_end: list[Alarm] = []
        self._warned: set[str] = set()
        # What can be monitored is there from the start, with what an uninformative map would have.
        self.published: dict[str, float] = {"alarm": 0.0} | expected(self._recipe, probes=bool(self.detectors))
        first = self._share.rank == 0  # the one that writes
        if first and self.panel.stretched and show:
            warnings.warn(
                "no normalization was found in the data set's transforms, so each image is shown stretched to its "
                "own range; pass denormalize=(mean, std) with the panel for true colours",
                DisplayWarning,
                stacklevel=3,
            )
        self._output = Output(directory, writers, self._sheets, name) if first else Output(None, (), self._sheets, name)
        self._output.panel(self.panel, store_images)

    @property
    def layers(self) -> tuple[str, ...]:
        """The names of the layers that are explained; the first one's measures are the run's."""
        return self._recipe.layers

    @property
    def alarms(self) -> list[Alarm]:
        """Every alarm so far, oldest first; those raised by the end of training last."""
        return self._alarms + self._alarms_at_end

    @property
    def archive(self) -> Path | None:
        """The folder of the archive; None where none is kept (or on another process)."""
        return self._output.archive

    def snapshot(self, epoch: int, step: int, *, averaged: bool = False) -> Snapshot:
        """Explains and measures the panel now.

        Args:
            epoch: Epoch of training, from 0; -1 before the first step.
            step: Optimizer steps taken so far.
            averaged: Whether the weights in the model are averaged ones.

        Returns:
            The record, as it stands in ``history``; its ``error`` says what went wrong, if anything did.
        """
        look = len(self.history)
        probes = bool(self.detectors) and look % self._probe_every == 0
        try:
            measured = self._measure(epoch, step, look, probes, averaged)
        except Exception as error:  # a monitor never ends somebody's training
            measured = self._failure(epoch, step, look, averaged, error)
        return self._record(measured)

    def _measure(self, epoch: int, step: int, look: int, probes: bool, averaged: bool) -> Measured:
        def measure_once() -> Measured:
            return measure(
                self.model,
                self._recipe,
                epoch=epoch,
                global_step=step,
                look=look,
                planned=self.planned,
                reference=self._reference,
                probes=probes,
                averaged=averaged,
                share=self._share,
            )

        while True:
            try:
                return self._share.together(measure_once)
            except Exception as error:
                size = min(self._recipe.batch_size, len(self._share.rows(len(self.panel))))
                if not lacks_memory(error) or size == 1:
                    raise
            # Outside of the handler, whose error holds on to the memory; later snapshots keep to it.
            self._recipe = self._recipe.with_batch_size(size // 2)
            if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
                torch.cuda.empty_cache()

    def _failure(self, epoch: int, step: int, look: int, averaged: bool, error: Exception) -> Measured:
        reason = f"{type(error).__name__}: {error}"
        self._warn_once(
            "snapshot",
            f"the snapshot at epoch {epoch}, step {step} failed and is recorded as such; training goes on, "
            f"and later failures are recorded silently. {reason}",
        )
        n = len(self.panel)
        nothing = torch.full((n,), -1, dtype=torch.int64)
        labels = nothing if self.panel.labels is None else self.panel.labels
        record = Snapshot(
            epoch,
            step,
            look,
            self.planned,
            labels,
            nothing,
            torch.full((n,), torch.nan),
            averaged=averaged,
            error=reason,
        )
        return Measured(record, {})

    def _record(self, measured: Measured) -> Snapshot:
        snapshot = measured.snapshot
        self._last = measured
        kept = dataclasses.replace(snapshot, maps={})
        self.history.append(kept)
        if snapshot.error is None:
            if not self._reference:
                self._reference = dict(snapshot.maps)
            shown = self._sheets.rows
            right = (snapshot.predicted == snapshot.labels)[shown] if self.panel.labels is not None else None
            if len(shown):
                self._film.add(snapshot.epoch, snapshot.global_step, snapshot.maps[self.layers[0]][shown], right)
        # A detector of the user's own may judge otherwise on another process; what follows must not.
        alarms = self._with_cue(self._share.first(self._judge(judging.advance, snapshot)))
        self._alarms, self._alarms_at_end = [*self._alarms, *alarms], []
        scalars = {key: value for key, value in snapshot.scalars.items() if math.isfinite(value)}
        scalars["alarm"] = float(bool(self.alarms))
        # A value that is undefined now is carried forward: whoever monitors the key finds it, and never NaN.
        self.published |= scalars
        self._log(scalars, snapshot.global_step)
        self._output.snapshot(measured, tuple(alarms), self._film.frames)
        for alarm in alarms:
            self._act(alarm)
        return kept

    def name_cue(self) -> Cue:
        """Tries where on the image the patch lies that turns the model's answers; needs no regions.

        Runs 64 forward passes of the panel.

        Raises:
            InputError: The panel has no labels.
        """
        return find_cue(shared_predict(self.model, self._recipe, self._share), self.panel)

    def _with_cue(self, alarms: list[Alarm]) -> list[Alarm]:
        """Adds to alarms where the cue lies, and hands its picture to the writers."""
        if not alarms or self.panel.labels is None:
            return alarms
        try:
            cue = self._share.together(self.name_cue)
        except Exception as error:
            self._warn_once("cue", f"the cue could not be named; training goes on. {type(error).__name__}: {error}")
            return alarms
        self._output.cue(self.panel, cue, alarms[0].global_step)
        return [
            dataclasses.replace(
                alarm, message=f"{alarm.message} {cue.sentence}", evidence={**alarm.evidence, "cue": cue.evidence}
            )
            for alarm in alarms
        ]

    def finish(self) -> None:
        """Says that training has ended: judges the end, writes the summary, waits until all is written, closes."""
        if self._last is None:
            return
        snapshot = self._last.snapshot
        # Kept apart: of a run that is continued after all they are no part.
        alarms = self._alarms_at_end = self._share.first(self._judge(judging.finish, snapshot))
        self.published["alarm"] = float(bool(self.alarms))
        moment = (snapshot.epoch, snapshot.global_step)
        if alarms:
            raised = [alarm for alarm in self.alarms if (alarm.epoch, alarm.global_step) == moment]
            self._output.record(snapshot, raised)
        self._output.texts(alarms, self.summary(), moment[1])
        for alarm in alarms:
            self._act(alarm)
        self.close()

    def _judge(self, judge: Judge, snapshot: Snapshot) -> list[Alarm]:
        return judge_each(self.detectors, judge, snapshot, self._warn_once)

    def _act(self, alarm: Alarm) -> None:
        for action in self._on_alarm:
            try:
                action(alarm)
            except CamwatchWarning:
                raise
            except Exception as error:
                self._warn_once("on_alarm", f"on_alarm failed; training goes on. {type(error).__name__}: {error}")

    def _warn_once(self, kind: str, message: str) -> None:
        if self._share.rank == 0 and kind not in self._warned:
            self._warned.add(kind)
            warnings.warn(message, CamwatchWarning, stacklevel=5)

    def _log(self, scalars: Mapping[str, float], step: int) -> None:
        try:
            self._output.scalars(self.tags(scalars), step)
        except Exception as error:
            self._warn_once("log", f"a logger refused the scalars; training goes on. {type(error).__name__}: {error}")

    def tags(self, values: Mapping[str, float]) -> dict[str, float]:
        """Returns scalars under their logged tags: the first layer's both with and without its name."""
        others = tuple(f"{layer}/" for layer in self.layers[1:])
        tagged = {}
        for key, value in values.items():
            tagged[f"{self.name}/{key}"] = value
            if key.startswith(("relevance", "pointing", "region", "map_", "blank", "forbidden")) and not key.startswith(
                others
            ):
                tagged[f"{self.name}/{self.layers[0]}/{key}"] = value
        return tagged

    def flush(self) -> None:
        """Waits until everything so far is written."""
        self._output.flush()

    def close(self) -> None:
        """Writes what is left and ends the writer thread; a later snapshot starts another."""
        self._output.close()

    def summary(self) -> str:
        """Returns what was measured over the run, and what cannot be concluded from it."""
        return report.summary(self.history, self.alarms, self.detectors)

    # State: plain types and tensors, enough to go on without the archive.

    @cached_property
    def _fingerprint(self) -> str:
        """A checksum of the panel's images, by which another panel is recognized; not taken at every checkpoint."""
        images = self.panel.images.float().contiguous()
        return hashlib.sha256(images.numpy().tobytes()).hexdigest()[:16]

    def state_dict(self) -> dict[str, Any]:
        """Returns history, alarms, detectors and film strip as plain types and tensors."""
        return {
            "history": [_plain(vars(snapshot)) for snapshot in self.history],
            "alarms": [_plain(vars(alarm)) for alarm in self._alarms],
            "alarms_at_end": [_plain(vars(alarm)) for alarm in self._alarms_at_end],
            "detectors": {detector.name: detector.state_dict() for detector in self.detectors},
            "reference": dict(self._reference),
            "film": self._film.state_dict(),
            "published": dict(self.published),
            "archive": None if self.archive is None else str(self.archive.absolute()),
            "layers": self.layers,
            "panel": self._fingerprint,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on where ``state_dict`` was taken: nothing is recorded twice, nothing is missing."""
        if tuple(state["layers"]) != self.layers or state["panel"] != self._fingerprint:
            self._warn_once(
                "state",
                f"the checkpoint's history is of another panel or other layers ({', '.join(state['layers'])}; now "
                f"{', '.join(self.layers)}): a new history is begun",
            )
            return
        self.history = History(Snapshot(**one) for one in state["history"])
        self._alarms = [Alarm(**one) for one in state["alarms"]]
        self._alarms_at_end = [Alarm(**one) for one in state["alarms_at_end"]]
        for detector in self.detectors:
            if detector.name in state["detectors"]:
                detector.load_state_dict(state["detectors"][detector.name])
        self._reference = dict(state["reference"])
        self._film.load_state_dict(state["film"])
        self.published |= state["published"]
        self._output.take_over(state["archive"], self.history, self._alarms)


def _plain(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {key: dict(value) if isinstance(value, Mapping) else value for key, value in fields.items()}
