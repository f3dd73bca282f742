"""The watcher: snapshots of a panel, their history, and what is made of them. Knows no trainer."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor, nn

from camwatch.cam.methods.method import MapFunction
from camwatch.cam.model.execution import Forward
from camwatch.descriptions import changes
from camwatch.detectors import report
from camwatch.detectors.judging import with_cue
from camwatch.errors import CamwatchWarning, check_at_least
from camwatch.measures import before_measuring, tags
from camwatch.panel.panel import Panel
from camwatch.parallel import Batches, Share
from camwatch.probes.cue import Cue, find_cue
from camwatch.records import Finding, Snapshot
from camwatch.run import BATCH, PanelTarget, RunConfig, shared_predict
from camwatch.watch.film_strip import FilmStrip
from camwatch.watch.history import History
from camwatch.watch.judging import Judging
from camwatch.watch.output import Output, Resumed
from camwatch.watch.publish import ShownImages, warn_if_stretched
from camwatch.watch.schedule import Schedule
from camwatch.watch.snapshot import Moment, failed, measure

if TYPE_CHECKING:
    from camwatch.watch.writers.base import Writer


class Watcher:
    """Watches where a model looks, snapshot by snapshot, in any training loop.

    Everything is checked when the watcher is made. After that it never raises for what goes wrong in a
    snapshot: it warns once, records the failure and goes on.

    Call ``snapshot`` where training stands, and ``finish`` at its end. What is logged, and under which tags, is listed
    at ``CAMMonitor``.

    Args:
        model: The model that is trained; its state is never changed.
        panel: What is watched: a Panel or (images, labels[, regions]).
        layer: A layer's name, a sequence of names, or None: found by a dry pass.
        method: One of ``camwatch.methods()``, or a function (activations, gradients) -> maps.
        target: "label", "predicted", a class index, or a callable on the model's output.
        detectors: "default", a sequence of detectors or callables, or [] for none (then no probe runs).
        on_alarm: "warn", a callable(finding), or a sequence of these; called for findings of severity "alarm".
        forward: Callable (model, images) -> output, where ``model(images)`` is not the way.
        directory: Where the archive is kept; None: nowhere. Where another run's archive lies there, a free folder
            beside it is taken.
        writers: Where pictures, scalars and texts go; None: TensorBoard files in ``directory``.
        show: How many images are drawn.
        store_images: Whether the archive keeps the panel's images.
        probe_every: The behavioural tests run at every n-th snapshot.
        planned: Number of snapshots that will be taken, where it is known.
        name: Prefix of all tags.
        share: This process's part of the work, where several share it.
        on_finding: The same as ``on_alarm``, for every finding; None: nothing is done.

    Raises:
        InputError: Something does not fit; the message says what arrived and what is valid.

    Example:
        >>> import torch
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
        method: str | MapFunction = "gradcam",
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
        on_finding: Any = None,
    ) -> None:
        check_at_least(0, show=show)
        self._schedule = Schedule(probe_every=probe_every)
        self.model, self.panel, self.name, self.planned = model, Panel.coerce(panel), name, planned
        self._share = share or Share()
        first = self._share.rank == 0  # the one that writes and warns
        self._judging = Judging(detectors, on_alarm, on_finding, self._warn_once)
        self.detectors = self._judging.detectors
        asked = RunConfig.of(model, layer, method=method, target=target, forward=forward)
        self._config = asked.resolved(model, self.panel.images, self.panel.labels)
        self._batches = Batches(self._share, len(self.panel), BATCH)
        self.history = History()
        self._reference: dict[str, Tensor] = {}
        self._film = FilmStrip()
        self._last: Snapshot | None = None
        self._warned: set[str] = set()
        # What can be monitored is there from the start, with what an uninformative map would have.
        known = before_measuring(self.panel.regions, self.panel.labels, self.layers, bool(self.detectors))
        self.published = {"alarm": 0.0} | known
        if first and show:
            warn_if_stretched(self.panel, stacklevel=4)
        self._shown = ShownImages.of(self.panel, self.layers, self._config.target, show)
        self._output = Output(directory if first else None, writers if first else (), self._shown, name)
        self._store_images = store_images

    @property
    def layers(self) -> tuple[str, ...]:
        """The names of the layers that are explained; the first one's measures are the run's."""
        return self._config.layers

    @property
    def findings(self) -> list[Finding]:
        """Every finding so far, oldest first; those of the end of training last."""
        return self._judging.findings

    @property
    def alarms(self) -> list[Finding]:
        """The findings of severity "alarm"."""
        return [finding for finding in self.findings if finding.severity == "alarm"]

    @property
    def archive(self) -> Path | None:
        """The folder of the archive, settled at the first snapshot; None where none is kept (or on another process)."""
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
        self._begin()
        moment = Moment(epoch, step, len(self.history), self.planned, averaged)
        try:
            snapshot = self._batches.work(
                lambda: measure(
                    self.model,
                    self._config,
                    self.panel,
                    moment,
                    reference=self._reference,
                    probes=bool(self.detectors) and self._schedule.probes(moment.look),
                    share=self._share,
                    batch_size=self._batches.size,
                )
            )
        except Exception as error:  # a monitor never ends somebody's training
            snapshot = failed(self.panel, moment, error)
            self._warn_once(
                "snapshot",
                f"the snapshot at epoch {epoch}, step {step} failed and is recorded as such; training goes on, "
                f"and later failures are recorded silently. {snapshot.error}",
            )
        return self._record(snapshot)

    def _begin(self, resumed: Resumed | None = None) -> None:
        self._output.begin(self._description, self.panel, self._store_images, resumed)

    def _record(self, snapshot: Snapshot) -> Snapshot:
        if snapshot.error is None:
            self._reference = self._reference or dict(snapshot.maps)
            self._add_to_film(snapshot)
        # A detector of the user's own may judge otherwise on another process; what follows must not.
        findings = self._share.broadcast(self._judging.judge(snapshot))
        snapshot, findings = self._with_cue(snapshot, findings)
        kept = dataclasses.replace(snapshot, maps={}, predicted_maps={}, pastes=None)
        self._last = snapshot
        self.history.append(kept)
        self._judging.add(findings)
        scalars = {key: value for key, value in snapshot.scalars.items() if math.isfinite(value)}
        scalars["alarm"] = float(bool(self.alarms))
        # A value that is undefined now is carried forward: whoever monitors the key finds it, and never NaN.
        self.published |= scalars
        try:
            self._output.scalars(self.tags(scalars), snapshot.global_step)
        except Exception as error:
            self._warn_once("log", f"a logger refused the scalars; training goes on. {type(error).__name__}: {error}")
        self._output.snapshot(snapshot, findings, self._film.frames)
        self._judging.act(findings)
        return kept

    def _add_to_film(self, snapshot: Snapshot) -> None:
        rows = self._shown.rows
        right = (snapshot.predicted == snapshot.labels)[rows] if self.panel.labels is not None else None
        if len(rows):
            self._film.add(snapshot.epoch, snapshot.global_step, snapshot.maps[self.layers[0]][rows], right)

    def name_cue(self, grid: tuple[int, int] = (8, 8)) -> Cue:
        """Tries where on the image the patch lies that turns the model's answers; needs no regions.

        Runs (rows - 1) x (columns - 1) forward passes of the panel and a few more.

        Args:
            grid: (rows, columns) of cells, of which 2 x 2 are tried together.

        Raises:
            InputError: The panel has no labels, or the grid does not fit the images.
        """
        return find_cue(shared_predict(self.model, self._config, self._share, self._batches.size), self.panel, grid)

    def _with_cue(self, snapshot: Snapshot, findings: list[Finding]) -> tuple[Snapshot, list[Finding]]:
        """Looks for the cue where there is an alarm: its place goes into the record and to the writers."""
        if not any(finding.severity == "alarm" for finding in findings) or self.panel.labels is None:
            return snapshot, findings
        try:
            cue = self._batches.work(self.name_cue)
        except Exception as error:
            self._warn_once("cue", f"the cue could not be named; training goes on. {type(error).__name__}: {error}")
            return snapshot, findings
        self._output.cue(self.panel, cue, snapshot.global_step)
        return dataclasses.replace(snapshot, cue=cue.evidence), [with_cue(one, cue.evidence) for one in findings]

    def finish(self) -> None:
        """Says that training has ended: judges the end, writes the summary, waits until all is written, closes."""
        if self._last is not None:
            # Kept apart: of a run that is continued after all they are no part.
            findings = self._judging.end(self._share.broadcast(self._judging.judge_end(self._last)))
            self.published["alarm"] = float(bool(self.alarms))
            self._output.end(findings, self.summary(), self._last.global_step)
            self._judging.act(findings)
        self.close()

    def _warn_once(self, kind: str, message: str) -> None:
        if self._share.rank == 0 and kind not in self._warned:
            self._warned.add(kind)
            warnings.warn(message, CamwatchWarning, stacklevel=5)

    def tags(self, values: Mapping[str, float]) -> dict[str, float]:
        """Returns scalars under their logged tags: the first layer's both with and without its name."""
        return tags(values, self.layers, self.name)

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
    def _description(self) -> dict[str, Any]:
        """What is asked of the model and of which panel, by which another run is recognized."""
        return self._config.describe() | self.panel.describe()

    def state_dict(self) -> dict[str, Any]:
        """Returns history, findings, detectors and film strip as plain types and tensors."""
        return {
            "run": self._description,
            "history": [dict(vars(snapshot)) for snapshot in self.history],
            **self._judging.state_dict(),
            "reference": dict(self._reference),
            "film": self._film.state_dict(),
            "published": dict(self.published),
            "archive": None if self.archive is None else str(self.archive.absolute()),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on where ``state_dict`` was taken: nothing is recorded twice, nothing is missing."""
        changed = changes(state["run"], self._description)
        if changed:
            self._warn_once(
                "state", f"the checkpoint's history is of another run ({'; '.join(changed)}): a new history is begun"
            )
            return
        self.history = History(Snapshot(**one) for one in state["history"])
        self._judging.load_state_dict(state)
        self._reference = dict(state["reference"])
        self._film.load_state_dict(state["film"])
        self.published |= state["published"]
        self._begin(Resumed(state["archive"], list(self.history), list(self._judging.raised)))
