"""The archive of a run: every snapshot on disk, safe against a kill at any instant.

Below the archive's folder lie ``panel.pt`` (the panel, the layers, what else describes the run) and one file
per snapshot, ``snapshots/000012.pt``, named by its look and holding the alarms that it raised. Each is plain
types and tensors, readable by ``torch.load(path, weights_only=True)``, and appears whole or not at all.
"""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from camwatch.errors import CamwatchWarning, InputError
from camwatch.files import write_atomically
from camwatch.records import Alarm, Snapshot

FORMAT = 1


T = TypeVar("T")


class Archive:
    """Writes a run's archive into a folder, which is made when first written to.

    Example:
        >>> import tempfile
        >>> nothing = torch.empty(0)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     archive = Archive(folder)
        ...     archive.write_panel({"labels": torch.tensor([3])}, ["layer4"])
        ...     archive.append(Snapshot(-1, 0, 0, None, nothing, nothing, nothing, scalars={"correct": 0.5}))
        ...     run = load_archive(folder)
        >>> run.layers, run.snapshots[0].scalars
        (('layer4',), {'correct': 0.5})
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def write_panel(
        self, state: Mapping[str, Any], layers: Sequence[str], meta: Mapping[str, Any] | None = None
    ) -> None:
        """Writes what the snapshots are of, and removes what a killed process left half-written."""
        snapshots = self.path / "snapshots"
        snapshots.mkdir(parents=True, exist_ok=True)
        for folder in (self.path, snapshots):
            for leftover in folder.glob(".*.pt.tmp"):
                leftover.unlink(missing_ok=True)
        described = {"panel": state, "layers": list(layers), "meta": meta or {}}
        write_atomically(self.path / "panel.pt", _dump(described))

    def append(self, snapshot: Snapshot, alarms: Iterable[Alarm] = ()) -> None:
        """Writes a snapshot with the alarms that it raised. Later looks, of an earlier run, are removed."""
        self.truncate(look=snapshot.look + 1)
        raised = [vars(alarm) for alarm in alarms]
        write_atomically(self._file(snapshot.look), _dump({"snapshot": vars(snapshot), "alarms": raised}))

    def truncate(self, *, look: int) -> None:
        """Removes the snapshots from this look on."""
        for later in _snapshot_files(self.path):
            if int(later.stem) >= look:
                later.unlink(missing_ok=True)

    def take_over(self, source: str | Path | None, history: Sequence[Snapshot], alarms: Sequence[Alarm] = ()) -> None:
        """Makes this the archive of a resumed run: its history, and nothing after it.

        Args:
            source: The archive that the run wrote so far, which may be this one. Its snapshots are taken
                with their maps; what is gone or damaged there is written from ``history``, without maps.
            history: All snapshots so far.
            alarms: All alarms so far.
        """
        raised_by = {(snapshot.epoch, snapshot.global_step): snapshot.look for snapshot in history}
        for snapshot in history:
            there = None if source is None else Archive(source)._file(snapshot.look)
            if there is not None and _is_of(there, snapshot):
                if there.resolve() != self._file(snapshot.look).resolve():
                    write_atomically(self._file(snapshot.look), there.read_bytes())
                continue
            self.append(snapshot, [a for a in alarms if raised_by.get((a.epoch, a.global_step)) == snapshot.look])
        self.truncate(look=len(history))

    def _file(self, look: int) -> Path:
        return self.path / "snapshots" / f"{look:06d}.pt"


@dataclass(frozen=True, eq=False)
class ArchivedRun:
    """A run as its archive has it.

    Attributes:
        path: The archive's folder.
        panel: The panel's state, from which ``Panel.from_state`` makes it; its images are None where they were
            not to be stored.
        layers: Names of the layers that were explained.
        meta: What else was noted about the run.
        snapshots: Oldest first. Their tensors are mapped from the files: a map is read when it is looked at.
        alarms: Oldest first.
    """

    path: Path
    panel: dict[str, Any]
    layers: tuple[str, ...]
    meta: dict[str, Any]
    snapshots: list[Snapshot]
    alarms: list[Alarm]


def load_archive(path: str | Path) -> ArchivedRun:
    """Reads a run's archive.

    A damaged file is skipped, with one warning that names all such files.

    Args:
        path: The archive's folder, or any folder with exactly one archive below it, such as a log directory.

    Raises:
        InputError: There is no archive, or there are several; they are listed.
    """
    root = _find(Path(path))
    damaged: list[str] = []
    described = _read(root / "panel.pt", damaged, dict) or {}
    held = [one for file in _snapshot_files(root) if (one := _read(file, damaged, _records)) is not None]
    if damaged:
        warnings.warn(
            f"skipped damaged files of the archive {root}: {'; '.join(damaged)}", CamwatchWarning, stacklevel=2
        )
    return ArchivedRun(
        root,
        described.get("panel", {}),
        tuple(described.get("layers", ())),
        described.get("meta", {}),
        [snapshot for snapshot, _ in held],
        [alarm for _, alarms in held for alarm in alarms],
    )


def _find(path: Path) -> Path:
    if _is_archive(path):
        return path
    found = sorted(file.parent for file in path.rglob("panel.pt") if _is_archive(file.parent))
    if len(found) == 1:
        return found[0]
    if not found:
        raise InputError(f"no archive of camwatch in or below {str(path)!r}")
    raise InputError(f"{len(found)} archives below {str(path)!r}, choose one: " + ", ".join(str(f) for f in found))


def _is_archive(path: Path) -> bool:
    return (path / "panel.pt").is_file() and (path / "snapshots").is_dir()


def _snapshot_files(root: Path) -> list[Path]:
    return sorted((f for f in (root / "snapshots").glob("*.pt") if f.stem.isdecimal()), key=lambda f: int(f.stem))


def _read(file: Path, damaged: list[str], make: Callable[[dict[str, Any]], T]) -> T | None:
    try:
        held = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        if held["format"] > FORMAT:
            raise ValueError(f"format {held['format']} is newer than this camwatch, which reads {FORMAT}")
        return make(held)
    except Exception as error:  # what a damaged file raises depends on where it is damaged
        reason = (str(error).splitlines() or [""])[0][:100]
        damaged.append(f"{file.name} ({type(error).__name__}: {reason})")
        return None


def _records(held: dict[str, Any]) -> tuple[Snapshot, list[Alarm]]:
    return Snapshot(**held["snapshot"]), [Alarm(**alarm) for alarm in held["alarms"]]


def _is_of(file: Path, snapshot: Snapshot) -> bool:
    held = _read(file, [], _records)
    keys = ("look", "epoch", "global_step")
    return held is not None and all(getattr(held[0], key) == getattr(snapshot, key) for key in keys)


def _dump(content: Mapping[str, Any]) -> bytes:
    buffer = io.BytesIO()
    torch.save(_plain({"format": FORMAT, **content}), buffer)
    return buffer.getvalue()


def _plain(value: Any) -> Any:
    """Returns what loads with weights only; of a view no more than what it shows."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True).contiguous()
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value.copy())
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return {_plain(key): _plain(held) for key, held in value.items()}
    if isinstance(value, (list, tuple)):
        plain = [_plain(held) for held in value]
        return plain if isinstance(value, list) else tuple(plain)
    return str(value) if isinstance(value, os.PathLike) else value
