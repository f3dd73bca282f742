"""Reading an archive without torch. It is not trusted: what does not fit is named and left out."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, overload

import numpy as np

from camwatch.archive.layout import END, KEY, PANEL, RUN, from_text, is_archive, snapshot_files, unpack_means
from camwatch.errors import CamwatchWarning, InputError
from camwatch.records import Finding, Pastes, Snapshot

LONGEST_HEADER = 2**24  # bytes
FACTS = ("epoch", "global_step", "look", "planned", "averaged", "error", "cue")
T = TypeVar("T")
Change = Callable[[np.ndarray], Any]


@dataclass(frozen=True, eq=False)
class ArchivedRun:
    """A run as its archive has it.

    Attributes:
        path: The archive's folder.
        run: What was asked, of what, and the measures that were taken: the content of ``run.json``.
        panel: The panel's state, its arrays read when they are looked at; images are None where they were not to be
            stored.
        layers: Names of the layers that were explained.
        snapshots: Oldest first; a snapshot is read when it is asked for, its maps when they are looked at.
        findings: Oldest first, those of the end of training last.
    """

    path: Path
    run: Mapping[str, Any]
    panel: Mapping[str, Any]
    layers: tuple[str, ...]
    snapshots: Sequence[Snapshot]
    findings: list[Finding]

    @property
    def alarms(self) -> list[Finding]:
        """The findings of severity "alarm"."""
        return [finding for finding in self.findings if finding.severity == "alarm"]


def unchanged(array: np.ndarray) -> np.ndarray:
    """Returns the array."""
    return array


def read_archive(path: str | Path) -> ArchivedRun:
    """Reads a run's archive, with NumPy's arrays.

    A damaged file is skipped, with one warning that names all such files.

    Args:
        path: The archive's folder, or any folder with exactly one archive below it, such as a log directory.

    Raises:
        InputError: There is no archive, or there are several; they are listed.
    """
    return read_changed(path, unchanged)


def read_changed(path: str | Path, change: Change) -> ArchivedRun:
    """Reads a run's archive with every array changed, for the function that its user calls."""
    root = find_archive(Path(path))
    damaged: list[str] = []
    run = _try(_run, root / RUN, damaged) or {"layers": ()}
    panel = _try(partial(_panel, change=change), root / PANEL, damaged) or {}
    found = {file: _try(_findings, file, damaged) for file in snapshot_files(root)}
    whole = {file: findings for file, findings in found.items() if findings is not None}
    end = _try(_findings_at_end, root / END, damaged) if (root / END).exists() else None
    if damaged:
        named = "; ".join(damaged)
        warnings.warn(f"skipped damaged files of the archive {root}: {named}", CamwatchWarning, stacklevel=3)
    findings = [finding for held in whole.values() for finding in held] + (end or [])
    return ArchivedRun(root, run, panel, tuple(run["layers"]), Snapshots(list(whole), change), findings)


def find_archive(path: Path) -> Path:
    """Returns the archive in a folder, or the only one below it.

    Raises:
        InputError: There is none, or there are several.
    """
    if is_archive(path):
        return path
    found = sorted(file.parent for file in path.rglob(RUN) if is_archive(file.parent))
    if len(found) == 1:
        return found[0]
    if not found:
        raise InputError(f"no archive of camwatch in or below {str(path)!r}")
    raise InputError(f"{len(found)} archives below {str(path)!r}, choose one: " + ", ".join(str(f) for f in found))


def read_header(file: Path) -> dict[str, Any]:
    """Reads what a snapshot's file says beside its arrays.

    Raises:
        Exception: It is not there, damaged, of a newer format or of another kind; which one depends on where.
    """
    with _opened(file) as held:
        return _header_of(held)


class Snapshots(Sequence[Snapshot]):
    """The snapshots of an archive, each read when it is asked for.

    Args:
        files: Of each its file.
        change: Applied to every array.
    """

    def __init__(self, files: Sequence[Path], change: Change = unchanged) -> None:
        self._files, self._change = files, change

    def __len__(self) -> int:
        return len(self._files)

    @overload
    def __getitem__(self, index: int) -> Snapshot: ...

    @overload
    def __getitem__(self, index: slice) -> Snapshots: ...

    def __getitem__(self, index: int | slice) -> Snapshot | Snapshots:
        if isinstance(index, slice):
            return Snapshots(self._files[index], self._change)
        return _snapshot(self._files[index], self._change)


class OnDemand(Mapping[str, Any]):
    """Values by name; those that are given as partial functions are made when they are asked for.

    Example:
        >>> held = OnDemand({"n": 2, "sum": partial(sum, [1, 2])})
        >>> dict(held)
        {'n': 2, 'sum': 3}
    """

    def __init__(self, held: Mapping[str, Any]) -> None:
        self._held = held

    def __getitem__(self, name: str) -> Any:
        value = self._held[name]
        return value() if isinstance(value, partial) else value

    def __iter__(self) -> Iterator[str]:
        return iter(self._held)

    def __len__(self) -> int:
        return len(self._held)

    def __repr__(self) -> str:
        return f"OnDemand({', '.join(self._held)})"


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    """Opens a safetensors file whose header is no longer than it may be and whose arrays all lie within it."""
    from safetensors import safe_open

    with open(file, "rb") as raw:
        if int.from_bytes(raw.read(8), "little") > LONGEST_HEADER:
            raise ValueError(f"its header is longer than {LONGEST_HEADER} bytes")
    with safe_open(file, "np") as held:
        yield held


def _header_of(held: Any) -> dict[str, Any]:
    facts = from_text((held.metadata() or {}).get(KEY, "{}"))
    needed = {"labels", "predicted", "probability"}
    needed |= {"measures"} if facts["measures"] else set()
    needed |= set() if facts["probes"] is None else {"places", "pastes", "paste_chances"}
    if missing := needed - set(held.keys()):
        raise ValueError(f"it has no {', '.join(sorted(missing))}")
    if facts["measures"] and held.get_slice("measures").get_shape()[:-1] != [len(facts["measures"])]:
        raise ValueError(f"it has not the {len(facts['measures'])} measures that it names")
    unpack_means(facts["measures"], facts["means"])
    return facts


def _run(file: Path) -> dict[str, Any]:
    run = from_text(file.read_bytes())
    return {**run, "layers": [str(layer) for layer in run["layers"]]}


def _findings(file: Path) -> list[Finding]:
    return [Finding(**one) for one in read_header(file)["findings"]]


def _findings_at_end(file: Path) -> list[Finding]:
    return [Finding(**one) for one in from_text(file.read_bytes())["findings"]]


def _read(file: Path, name: str, change: Change) -> Any:
    with _opened(file) as held:
        return change(held.get_tensor(name))


def _read_for_the_eye(file: Path, i: int, n: int, change: Change) -> Any:
    """Returns (n, h, w) maps of the predicted class, NaN where it is the one that was explained."""
    with _opened(file) as held:
        steps, scale, rows = (held.get_tensor(f"predicted{part}/{i}") for part in ("", "_scale", "_rows"))
    maps = np.full((n, *steps.shape[1:]), np.nan, dtype=np.float32)
    maps[rows] = steps * scale[:, None, None]
    return change(maps)


def _snapshot(file: Path, change: Change) -> Snapshot:
    with _opened(file) as held:
        facts, names = _header_of(held), set(held.keys())
        integers = {key: held.get_tensor(key) for key in ("labels", "predicted", "top_classes") if key in names}
        floats = {key: held.get_tensor(key) for key in ("probability", "top_probabilities") if key in names}
        measures = held.get_tensor("measures") if facts["measures"] else ()
        pasted = [held.get_tensor(key) for key in ("places", "pastes", "paste_chances") if facts["probes"] is not None]
    maps, predicted_maps = {}, {}
    for i, layer in enumerate(facts["layers"]):
        if f"maps/{i}" in names:
            maps[layer] = partial(_read, file, f"maps/{i}", change)
        if f"predicted/{i}" in names:
            predicted_maps[layer] = partial(_read_for_the_eye, file, i, len(integers["labels"]), change)
    scalars, intervals = unpack_means(facts["measures"], facts["means"])
    return Snapshot(
        **{key: facts[key] for key in FACTS},
        **{key: change(array.astype(np.int64)) for key, array in integers.items()},
        **{key: change(array) for key, array in floats.items()},
        per_image={name: change(row) for name, row in zip(facts["measures"], measures, strict=True)},
        scalars=scalars,
        intervals=intervals,
        maps=OnDemand(maps),
        predicted_maps=OnDemand(predicted_maps),
        pastes=Pastes(tuple(facts["probes"]), *map(change, pasted)) if pasted else None,
    )


def _panel(file: Path, change: Change) -> Mapping[str, Any]:
    with _opened(file) as held:
        state = from_text((held.metadata() or {}).get(KEY, "{}"))
        state |= {name: partial(_read, file, name, change) for name in held.keys()}  # noqa: SIM118  no mapping
    del state["format"]
    zones = {name.partition("/")[2]: state.pop(name) for name in list(state) if name.startswith("regions/")}
    return OnDemand({**state, "regions": OnDemand(zones) if zones else None})


def _try(read: Callable[[Path], T], file: Path, damaged: list[str]) -> T | None:
    try:
        return read(file)
    except Exception as error:  # what a damaged file raises depends on where it is damaged
        reason = (str(error).splitlines() or [""])[0][:100]
        damaged.append(f"{file.name} ({type(error).__name__}: {reason})")
        return None
