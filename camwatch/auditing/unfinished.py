"""What an audit has done so far, on disk: it survives a kill, and several processes write it side by side.

Each process appends to a file of its own, one line per finished batch. A line counts once it ends: a kill
leaves at most one torn line, whose batch is done again. Within a file batches ascend, so that merging all
files takes no memory.
"""

from __future__ import annotations

import heapq
import json
import shutil
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from camwatch.auditing.verdicts import Row
from camwatch.descriptions import changes
from camwatch.errors import InputError
from camwatch.files import write_whole


class Parts:
    """The folder beside the table that holds unfinished work.

    Args:
        table: Where the table will be; the folder is called the same with ``.parts`` behind it.
    """

    def __init__(self, table: Path) -> None:
        self.folder = table.with_name(f"{table.name}.parts")
        self._file: Path | None = None

    def open(self, settings: Mapping[str, Any], resume: bool) -> None:
        """Begins, or goes on where the same audit was interrupted.

        Raises:
            InputError: Another audit was interrupted here.
            OSError: The folder cannot be written.
        """
        if not resume:
            self.remove()
        self.folder.mkdir(parents=True, exist_ok=True)
        kept = self.folder / "settings.json"
        if kept.exists():
            changed = changes(json.loads(kept.read_text()), settings)
            if changed:
                raise InputError(
                    f"{self.folder} holds an unfinished audit with other settings ({'; '.join(changed)}): give the "
                    "same ones to go on with it, another output, or resume=False (--no-resume) to begin anew"
                )
        else:
            write_whole(kept, json.dumps(dict(settings)).encode())

    def append(self, number: int, rows: list[Row]) -> None:
        """Adds a finished batch."""
        if self._file is None:  # named by the process that writes it
            self._file = self.folder / f"{uuid.uuid4().hex}.rows"
        with open(self._file, "ab") as file:
            file.write(f"{number}\t{json.dumps(rows, ensure_ascii=False)}\n".encode())

    def done(self) -> list[int]:
        """Returns the numbers of the finished batches."""
        return sorted({number for path in self._files() for number, _ in _lines(path)})

    def rows(self) -> Iterator[Row]:
        """Yields the rows of all finished batches in order, each batch once."""
        last = -1
        for number, text in heapq.merge(*map(_lines, self._files()), key=lambda line: line[0]):
            if number != last:
                yield from json.loads(text)
            last = number

    @property
    def layer(self) -> str | None:
        """The layer that was found when the audit began; None before."""
        kept = self.folder / "layer"
        return kept.read_text() if kept.exists() else None

    @layer.setter
    def layer(self, name: str) -> None:
        write_whole(self.folder / "layer", name.encode())

    def remove(self) -> None:
        """Deletes the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("*.rows"))


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    with open(path, "rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                number, _, text = line.partition(b"\t")
                yield int(number), text
