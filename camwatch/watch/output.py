"""Where a run's records and pictures go: the archive and the writers, each on a thread of its own."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import platform
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from camwatch import __version__
from camwatch.archive.writing import free_folder, take_over, write_end, write_run, write_snapshot
from camwatch.measures import measured_lines, panel_intervals
from camwatch.panel.panel import Panel
from camwatch.pictures.encoding import panel_pictures
from camwatch.pictures.film_sheet import Frame
from camwatch.probes.cue import Cue
from camwatch.records import Finding, Snapshot
from camwatch.watch.background import BackgroundWriter, WarningQueue
from camwatch.watch.publish import ShownImages, publish, publish_cue, publish_panel, publish_scalars, publish_texts

if TYPE_CHECKING:
    from camwatch.watch.writers.base import Writer
    from camwatch.watch.writers.tensorboard import PlainTensorBoardWriter

NOTED = ("torch", "torchvision", "pytorch_lightning", "lightning", "transformers", "timm")


class Resumed(NamedTuple):
    """A run that goes on: its archive, all snapshots so far, and all that was found."""

    archive: str | None
    history: Sequence[Snapshot]
    findings: Sequence[Finding]


class Output:
    """Takes what a watcher has to write, and lets it go on.

    A record waits for no picture, and the next record waits until it is on the disk, which takes milliseconds: a
    kill at any instant costs the last snapshot at most. Pictures may lag behind by eight jobs.

    Args:
        directory: Where the archive is kept, or beside it where another run's lies there; None: nowhere.
        writers: Where pictures, scalars and texts go; None: TensorBoard files in the archive's folder.
        shown: What every picture of the run shares.
        name: Prefix of all tags.
    """

    def __init__(
        self, directory: str | Path | None, writers: Sequence[Writer] | None, shown: ShownImages, name: str
    ) -> None:
        self._shown, self._name = shown, name
        self.archive = None if directory is None else Path(directory)
        self._given, self._writers = writers, list(writers or ())
        self._opened: list[PlainTensorBoardWriter] = []
        self._begun = False
        queue = WarningQueue()
        self._records = BackgroundWriter(capacity=1, queue=queue)
        self._pictures = BackgroundWriter(queue=queue)

    def begin(self, asked: Mapping[str, Any], panel: Panel, store_images: bool, resumed: Resumed | None = None) -> None:
        """Writes what the snapshots are of, once, and waits until that is done.

        A data loader's workers are forked next, which must not happen amid another thread's imports.

        Args:
            asked: What is asked of the model and of which panel, as plain data.
            panel: The images.
            store_images: Whether the archive keeps them.
            resumed: The run that goes on here; its archive is the only one that may lie in the folder already.
        """
        if self._begun:
            return
        self._begun = True
        if self.archive is not None:
            self.archive = free_folder(self.archive, None if resumed is None else resumed.archive)
            if self._given is None:
                from camwatch.watch.writers.tensorboard import summary_writer

                self._opened = [summary_writer(self.archive)]
                self._writers = list(self._opened)
            described = {
                "name": self._name,
                "asked": dict(asked),
                "layers": list(self._shown.layers),
                "size": list(panel.size),
                "measures": measured_lines(panel.regions, panel.labels),
                "versions": versions(),
            }
            state = panel.state_dict() if store_images else panel.state_dict() | {"images": None}
            pictures = panel_pictures(panel.rgb_images()) if store_images else ()
            self._records.submit(write_run, self.archive, described, state, pictures)
            if resumed is not None:  # killed amid this, a later run would find its snapshots in neither archive
                self._records.submit(take_over, self.archive, *resumed)
        if self._writers:
            self._pictures.submit(publish_panel, self._writers, self._shown, self._name)
        self.flush()

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Writes tagged scalars, on the calling thread: it is cheap, and loggers write their own there."""
        publish_scalars(self._writers, values, step)

    def snapshot(self, snapshot: Snapshot, findings: Sequence[Finding], frames: Sequence[Frame]) -> None:
        """Writes a snapshot with what was found at it: the record, overlays, film strip, texts."""
        if self.archive is not None:
            self._records.submit(_write, self.archive, snapshot, findings)
        if self._writers:
            self._pictures.submit(publish, self._writers, self._shown, snapshot, findings, frames, self._name)

    def end(self, findings: Sequence[Finding], summary: str, step: int) -> None:
        """Writes what was found at the end of training, and the summary."""
        if self.archive is not None:
            self._records.submit(write_end, self.archive, findings)
        if self._writers:
            self._pictures.submit(publish_texts, self._writers, findings, summary, self._name, step)

    def cue(self, panel: Panel, cue: Cue, step: int) -> None:
        """Writes what a named cue looks like."""
        if self._writers:
            self._pictures.submit(publish_cue, self._writers, panel, cue, self._name, step)

    def flush(self) -> None:
        """Waits until everything so far is written."""
        self._records.flush()
        self._pictures.flush()

    def close(self) -> None:
        """Writes what is left and ends the threads; what comes later starts others."""
        self._records.close()
        self._pictures.close()
        for writer in self._opened:
            writer.close()


def _write(folder: Path, snapshot: Snapshot, findings: Sequence[Finding]) -> None:
    """Writes a snapshot, each panel mean with its interval, which training need not wait for."""
    right = snapshot.per_image.get("correct")
    intervals = panel_intervals(snapshot.per_image, None if right is None else right == 1)
    write_snapshot(folder, dataclasses.replace(snapshot, intervals=intervals), findings)


def versions() -> dict[str, str]:
    """Returns the versions of what took part: noted, never decisive.

    Example:
        >>> {"camwatch", "python", "torch"} <= set(versions())
        True
    """
    found = {"camwatch": __version__, "python": platform.python_version()}
    for name in NOTED:
        if name in sys.modules:
            found[name] = importlib.metadata.version(name)
    return found
