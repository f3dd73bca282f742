"""The records of a run, of which memory holds the last ones only."""

from __future__ import annotations

import pickle
import tempfile
import weakref
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import IO, Any, overload

import numpy as np
import torch

from camwatch.records import Snapshot


class History(Sequence[Snapshot]):
    """Snapshots, oldest first: the last ones in memory, those before in a temporary file.

    The file has no name and goes with the object. Where it cannot be written all records stay in memory.

    Args:
        records: What to begin with.
        recent: How many are held in memory.

    Example:
        >>> one = torch.zeros(2, dtype=torch.int64)
        >>> history = History((Snapshot(k, k, k, None, one, one, torch.ones(2)) for k in range(5)), recent=2)
        >>> len(history), history[0].epoch, [snapshot.epoch for snapshot in history[-2:]]
        (5, 0, [3, 4])
    """

    def __init__(self, records: Iterable[Snapshot] = (), recent: int = 50) -> None:
        self._most = recent
        self._recent: list[Snapshot] = []
        self._ends = array("q", [0])  # of the records in the file
        self._file: IO[bytes] | None = None
        for record in records:
            self.append(record)

    def append(self, record: Snapshot) -> None:
        """Adds the newest record."""
        self._recent.append(record)
        while len(self._recent) > self._most:
            try:
                self._write(_pack(self._recent[0]))
            except OSError:  # a full disk; tried again with the next record
                break
            del self._recent[0]

    def _write(self, data: bytes) -> None:
        if self._file is None:
            self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115  closed with the object
            weakref.finalize(self, self._file.close)
        self._file.seek(self._ends[-1])
        if self._file.write(data) != len(data):
            raise OSError("the record was written in part")
        self._ends.append(self._ends[-1] + len(data))

    def _read(self, index: int) -> Snapshot:
        assert self._file is not None  # records are in it
        start, end = self._ends[index], self._ends[index + 1]
        self._file.seek(start)
        return _unpack(self._file.read(end - start))

    def __len__(self) -> int:
        return len(self._ends) - 1 + len(self._recent)

    @overload
    def __getitem__(self, index: int) -> Snapshot: ...

    @overload
    def __getitem__(self, index: slice) -> list[Snapshot]: ...

    def __getitem__(self, index: int | slice) -> Snapshot | list[Snapshot]:
        where = range(len(self))[index]
        if isinstance(where, range):
            return [self[k] for k in where]
        written = len(self._ends) - 1
        return self._read(where) if where < written else self._recent[where - written]

    def __repr__(self) -> str:
        return f"History of {len(self)} snapshots"

    def __reduce__(self) -> tuple[type[History], tuple[list[Snapshot], int]]:
        return History, (list(self), self._most)


def _pack(record: Snapshot) -> bytes:
    """Returns the record as bytes; arrays take a tenth of what pickled tensors do."""
    return pickle.dumps(_convert(vars(record), torch.Tensor, lambda values: values.numpy(force=True)), protocol=5)


def _unpack(data: bytes) -> Snapshot:
    fields: Mapping[str, Any] = pickle.loads(data)
    return Snapshot(**_convert(fields, np.ndarray, lambda values: torch.from_numpy(values.copy())))


def _convert(fields: Mapping[str, Any], kind: type, change: Callable[[Any], Any]) -> dict[str, Any]:
    """Returns the fields with every value of a kind changed, in mappings too."""

    def one(value: Any) -> Any:
        if isinstance(value, Mapping):
            return _convert(value, kind, change)
        return change(value) if isinstance(value, kind) else value

    return {key: one(value) for key, value in fields.items()}
