"""Where a run's records and pictures go: the archive and the writers, each on a thread of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from camwatch.panel.panel import Panel
from camwatch.pictures.film_sheet import Frame
from camwatch.probes.cue import Cue
from camwatch.records import Alarm, Snapshot
from camwatch.watch.archive import Archive
from camwatch.watch.background import BackgroundWriter, Notes
from camwatch.watch.publish import Sheets, publish, publish_cue, publish_panel, publish_scalars, publish_texts
from camwatch.watch.snapshot import Measured

if TYPE_CHECKING:
    from camwatch.watch.writers.base import Writer
    from camwatch.watch.writers.tensorboard import PlainTensorBoardWriter


class Output:
    """Takes what a watcher has to write, and lets it go on.

    A record waits for no picture, and the next record waits until it is on the disk, which takes milliseconds: a
    kill at any instant costs the last snapshot at most. Pictures may lag behind by eight jobs.

    Args:
        directory: Where the archive is kept; None: nowhere.
        writers: Where pictures, scalars and texts go; None: TensorBoard files in ``directory``.
        sheets: What every picture of the run shares.
        name: Prefix of all tags.
    """

    def __init__(
        self, directory: str | Path | None, writers: Sequence[Writer] | None, sheets: Sheets, name: str
    ) -> None:
        self._sheets, self._name = sheets, name
        self._archive = None if directory is None else Archive(directory)
        self._opened: list[PlainTensorBoardWriter] = []
        if writers is None and directory is not None:
            from camwatch.watch.writers.tensorboard import summary_writer

            writers = self._opened = [summary_writer(directory)]
        self._writers = list(writers or ())
        notes = Notes()
        self._records = BackgroundWriter(capacity=1, notes=notes)
        self._pictures = BackgroundWriter(notes=notes)

    @property
    def archive(self) -> Path | None:
        """The folder of the archive; None where none is kept."""
        return None if self._archive is None else self._archive.path

    def panel(self, panel: Panel, store_images: bool) -> None:
        """Writes what the snapshots are of, and waits until that is done.

        A data loader's workers are forked next, which must not happen amid another thread's imports.
        """
        if self._archive is not None:
            state = panel.state_dict() if store_images else panel.state_dict() | {"images": None}
            self._records.submit(self._archive.write_panel, state, self._sheets.layers, {"name": self._name})
        if self._writers:
            self._pictures.submit(publish_panel, self._writers, self._sheets, self._name)
        self.flush()

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Writes tagged scalars, on the calling thread: it is cheap, and loggers write their own there."""
        publish_scalars(self._writers, values, step)

    def snapshot(self, measured: Measured, alarms: Sequence[Alarm], frames: Sequence[Frame]) -> None:
        """Writes a snapshot with the alarms that it raised: the record, overlays, film strip, texts."""
        self.record(measured.snapshot, alarms)
        if self._writers:
            self._pictures.submit(publish, self._writers, self._sheets, measured, alarms, frames, self._name)

    def record(self, snapshot: Snapshot, alarms: Sequence[Alarm]) -> None:
        """Writes a snapshot and its alarms to the archive, once more where it is there already."""
        if self._archive is not None:
            self._records.submit(self._archive.append, snapshot, alarms)

    def texts(self, alarms: Sequence[Alarm], summary: str, step: int) -> None:
        """Writes the alarms' messages and a summary."""
        if self._writers:
            self._pictures.submit(publish_texts, self._writers, alarms, summary, self._name, step)

    def cue(self, panel: Panel, cue: Cue, step: int) -> None:
        """Writes what a named cue looks like."""
        if self._writers:
            self._pictures.submit(publish_cue, self._writers, panel, cue, self._name, step)

    def take_over(self, source: str | None, history: Sequence[Snapshot], alarms: Sequence[Alarm]) -> None:
        """Makes the archive that of a resumed run, and waits until it is.

        Killed in the middle, a later run would find the snapshots in neither archive.
        """
        if self._archive is not None:
            self._records.submit(self._archive.take_over, source, list(history), list(alarms))
            self._records.flush()

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
