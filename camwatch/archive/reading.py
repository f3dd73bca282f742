"""Reading an archive without torch."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, overload

import numpy as np

from camwatch.archive.layout import END, KEY, PANEL, RUN, from_text, is_archive, snapshot_files
from camwatch.errors import CamwatchWarning, InputError
from camwatch.records import Finding, Pastes, Snapshot

LONGEST_HEADER = 2**24  # bytes
T = TypeVar("T")
FACTS = ("epoch", "global_step", "look", "planned", "averaged", "error", "cue")


@dataclass(frozen=True, eq=False)
class ArchivedRun:
    """A run as its archive has it.

    Attributes:
        path: The archive's folder.
        run: What was asked, of what, and the measures that were taken: the content of ``run.json``.
        panel: The panel's state; its images are None where they were not to be stored.
        layers: Names of the layers that were explained.
        snapshots: Oldest first; a snapshot's arrays are read when it is looked at, its maps when they are.
        findings: Oldest first, those of the end of training last.
    """

    path: Path
    run: dict[str, Any]
    panel: dict[str, Any]
    layers: tuple[str, ...]
    snapshots: Sequence[Snapshot]
    findings: list[Finding]

    @property
    def alarms(self) -> list[Finding]:
        """The findings of severity "alarm"."""
        return [finding for finding in self.findings if finding.severity == "alarm"]


def read_archive(path: str | Path) -> ArchivedRun:
    """Reads a run's archive.

    A damaged file is skipped, with one warning that names all such files.

    Args:
        path: The archive's folder, or any folder with exactly one archive below it, such as a log directory.

    Raises:
        InputError: There is no archive, or there are several; they are listed.
    """
    root = find_archive(Path(path))
    damaged: list[str] = []
    run = _try(lambda: from_text((root / RUN).read_bytes()), root / RUN, damaged) or {}
    panel = _try(lambda: _panel(root / PANEL), root / PANEL, damaged) or {}
    files = snapshot_files(root)
    held = [(file, header) for file in files if (header := _try(lambda f=file: read_header(f), file, damaged))]  # type: ignore[misc]
    found = [Finding(**one) for _, header in held for one in header["findings"]]
    if (root / END).exists():
        end = _try(lambda: from_text((root / END).read_bytes()), root / END, damaged) or {"findings": ()}
        found += [Finding(**one) for one in end["findings"]]
    if damaged:
        warnings.warn(
            f"skipped damaged files of the archive {root}: {'; '.join(damaged)}", CamwatchWarning, stacklevel=2
        )
    return ArchivedRun(root, run, panel, tuple(run.get("layers", ())), Snapshots(held), found)


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
    """Reads what a file says beside its arrays, and whether these are all there.

    Raises:
        OSError: It cannot be read.
        ValueError: It is damaged, or of a newer format.
    """
    from safetensors import SafetensorError, safe_open

    with open(file, "rb") as opened:
        if int.from_bytes(opened.read(8), "little") > LONGEST_HEADER:
            raise ValueError(f"its header is longer than {LONGEST_HEADER} bytes")
    try:
        with safe_open(file, "np") as held:
            return from_text((held.metadata() or {}).get(KEY, "{}"))
    except SafetensorError as error:
        raise ValueError(str(error)) from None


def read_arrays(file: Path, names: Sequence[str] | None = None) -> dict[str, np.ndarray]:
    """Reads arrays of a file by name; all of them by default."""
    from safetensors import safe_open

    with safe_open(file, "np") as held:
        return {name: held.get_tensor(name) for name in (held.keys() if names is None else names)}


class Snapshots(Sequence[Snapshot]):
    """The snapshots of an archive, each read when it is asked for.

    Args:
        held: Of each its file, and what ``read_header`` returned.
        change: Applied to every array.
    """

    def __init__(self, held: Sequence[tuple[Path, Mapping[str, Any]]], change: Callable[[Any], Any] = lambda a: a):
        self._held, self._change = list(held), change

    def with_arrays(self, change: Callable[[np.ndarray], Any]) -> Snapshots:
        """Returns the same with every array changed."""
        return Snapshots(self._held, change)

    def __len__(self) -> int:
        return len(self._held)

    @overload
    def __getitem__(self, index: int) -> Snapshot: ...

    @overload
    def __getitem__(self, index: slice) -> Snapshots: ...

    def __getitem__(self, index: int | slice) -> Snapshot | Snapshots:
        if isinstance(index, slice):
            return Snapshots(self._held[index], self._change)
        return _snapshot(*self._held[index], self._change)


class _OnDisk(Mapping[str, Any]):
    """Arrays by layer, each read when it is asked for."""

    def __init__(self, layers: Sequence[str], read: Callable[[int], Any]) -> None:
        self._layers, self._read = list(layers), read

    def __getitem__(self, layer: str) -> Any:
        if layer not in self._layers:
            raise KeyError(layer)
        return self._read(self._layers.index(layer))

    def __iter__(self) -> Iterator[str]:
        return iter(self._layers)

    def __len__(self) -> int:
        return len(self._layers)


def _snapshot(file: Path, header: Mapping[str, Any], change: Callable[[Any], Any]) -> Snapshot:
    small = ("labels", "predicted", "probability", "measures", "top_classes", "top_probabilities")
    names = _names(file)
    found = read_arrays(file, [name for name in (*small, "places", "pastes", "paste_chances") if name in names])
    integers = {
        key: change(found[key].astype(np.int64)) for key in ("labels", "predicted", "top_classes") if key in found
    }
    measures = header["measures"]
    means = {measures[key] if isinstance(key, int) else key: row for key, *row in header["means"]}
    pastes = None
    if header["probes"] is not None:
        pastes = Pastes(tuple(header["probes"]), *(change(found[key]) for key in ("places", "pastes", "paste_chances")))
    drawn = [layer for i, layer in enumerate(header["layers"]) if f"predicted_maps/{i}" in names]
    return Snapshot(
        **{key: header[key] for key in FACTS},
        labels=integers["labels"],
        predicted=integers["predicted"],
        probability=change(found["probability"]),
        per_image={name: change(row) for name, row in zip(measures, found.get("measures", ()), strict=True)},
        scalars={key: mean for key, (mean, *_) in means.items()},
        intervals={key: (bounds[0], bounds[1]) for key, (_, *bounds) in means.items() if bounds},
        maps=_OnDisk(header["layers"], lambda i: change(read_arrays(file, [f"maps/{i}"])[f"maps/{i}"])),
        predicted_maps=_OnDisk(drawn, lambda i: change(_for_the_eye(file, i, len(found["labels"])))),
        top_classes=integers.get("top_classes"),
        top_probabilities=change(found["top_probabilities"]) if "top_probabilities" in found else None,
        pastes=pastes,
    )


def _names(file: Path) -> set[str]:
    from safetensors import safe_open

    with safe_open(file, "np") as held:
        return set(held.keys())


def _for_the_eye(file: Path, i: int, n: int) -> np.ndarray:
    """Returns (n, h, w) maps of the predicted class, NaN where it is the one that was explained."""
    images, maps, peaks = read_arrays(file, [f"predicted_{part}/{i}" for part in ("images", "maps", "peaks")]).values()
    whole = np.full((n, *maps.shape[1:]), np.nan, dtype=np.float32)
    whole[images] = maps / np.float32(255) * peaks[:, None, None]
    return whole


def _panel(file: Path) -> dict[str, Any]:
    state: dict[str, Any] = {**read_header(file), **read_arrays(file)}
    zones = {key.partition("/")[2]: state.pop(key) for key in list(state) if key.startswith("regions/")}
    return {key: value for key, value in state.items() if key != "format"} | {"regions": zones or None}


def _try(read: Callable[[], T], file: Path, damaged: list[str]) -> T | None:
    try:
        return read()
    except Exception as error:  # what a damaged file raises depends on where it is damaged
        reason = (str(error).splitlines() or [""])[0][:100]
        damaged.append(f"{file.name} ({type(error).__name__}: {reason})")
        return None
