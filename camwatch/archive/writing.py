"""Writing an archive: every file appears whole or not at all, safe against a kill at any instant.

Below the archive's folder lie ``run.json`` (what was asked, of what), ``panel.safetensors``, pictures of all panel
images for the eye, one file per snapshot, ``snapshots/000012.safetensors``, named by its look and holding what was
found at it, and ``end.json``, what the end of training found. None is a pickle; NumPy, a browser and anybody's
safetensors read them.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from camwatch.archive.layout import (
    END,
    KEY,
    PANEL,
    PICTURES,
    RUN,
    SNAPSHOTS,
    findings_as_data,
    pack_means,
    picture_files,
    snapshot_file,
    snapshot_files,
    to_text,
)
from camwatch.archive.reading import read_header
from camwatch.files import remove_leftovers, write_whole
from camwatch.records import Finding, Snapshot


def free_folder(folder: str | Path, own: str | Path | None = None) -> Path:
    """Returns the folder, or one beside it where another run's archive lies there already.

    Args:
        folder: Where an archive is to be.
        own: The archive of the run that goes on, which may lie there.

    Example:
        >>> free_folder("runs/camwatch").name
        'camwatch'
    """
    folder = Path(folder)
    mine = None if own is None else Path(own).resolve()
    candidates = (folder if i == 0 else folder.with_name(f"{folder.name}_{i}") for i in range(10_000))
    return next(f for f in candidates if f.resolve() == mine or not ((f / RUN).exists() or snapshot_files(f)))


def write_run(
    folder: Path, run: Mapping[str, Any], panel: Mapping[str, Any], pictures: Iterable[tuple[bytes, bytes]] = ()
) -> None:
    """Writes what the snapshots are of, and removes what a killed process left half-written.

    Args:
        folder: The archive's, made where it does not exist.
        run: What was asked, as plain data; ``layers`` by their names.
        panel: The panel's state: arrays, and plain data. Its images are None where they are not to be stored.
        pictures: Of each image, for the eye: PNG and small JPEG.
    """
    (folder / SNAPSHOTS).mkdir(parents=True, exist_ok=True)
    for each in (folder, folder / SNAPSHOTS):
        remove_leftovers(each)
    shutil.rmtree(folder / PICTURES, ignore_errors=True)
    for i, files in enumerate(pictures):
        for path, data in zip(picture_files(folder, i), files, strict=True):
            write_whole(path, data, durable=False)
    regions = panel.get("regions") or {}
    held = {**panel, "regions": None, **{f"regions/{zone}": masks for zone, masks in regions.items()}}
    arrays = {key: _array(value) for key, value in held.items() if hasattr(value, "dtype")}
    facts = {key: value for key, value in held.items() if key not in arrays}
    write_whole(folder / PANEL, _packed(arrays, facts))
    write_whole(folder / RUN, to_text(run).encode())  # last: what has it is an archive


def write_snapshot(folder: Path, snapshot: Snapshot, findings: Sequence[Finding] = ()) -> None:
    """Writes a snapshot with what was found at it; what an end of training found before is removed.

    Example:
        >>> import tempfile
        >>> from camwatch.archive.reading import read_archive
        >>> folder = Path(tempfile.mkdtemp())
        >>> write_run(folder, {"layers": ["layer4"]}, {"labels": np.array([3])})
        >>> write_snapshot(folder, Snapshot(-1, 0, 0, None, *np.ones((3, 1)), scalars={"correct": 0.5}))
        >>> run = read_archive(folder)
        >>> run.layers, run.snapshots[0].scalars
        (('layer4',), {'correct': 0.5})
    """
    remove_end(folder)
    write_whole(snapshot_file(folder, snapshot.look), snapshot_as_bytes(snapshot, findings))


def write_end(folder: Path, findings: Sequence[Finding]) -> None:
    """Writes what the end of training found."""
    write_whole(folder / END, to_text({"findings": findings_as_data(findings)}).encode())


def remove_end(folder: Path) -> None:
    """Removes what the end of training found: of a run that is continued after all it is no part."""
    (folder / END).unlink(missing_ok=True)


def truncate(folder: Path, *, look: int) -> None:
    """Removes the snapshots from this look on."""
    for file in snapshot_files(folder):
        if int(file.stem) >= look:
            file.unlink(missing_ok=True)


def take_over(
    folder: Path, source: str | Path | None, history: Sequence[Snapshot], findings: Sequence[Finding] = ()
) -> None:
    """Makes a folder the archive of a resumed run: its history, and nothing after it.

    Args:
        folder: The archive's.
        source: The archive that the run wrote so far, which may be this one. Its snapshots are taken with their maps;
            what is gone or damaged there is written from ``history``, without maps.
        history: All snapshots so far.
        findings: All that was found at them.
    """
    found_at = {(snapshot.epoch, snapshot.global_step): snapshot.look for snapshot in history}
    remove_end(folder)
    for snapshot in history:
        there = None if source is None else snapshot_file(Path(source), snapshot.look)
        here = snapshot_file(folder, snapshot.look)
        if there is None or not _is_of(there, snapshot):
            found = [f for f in findings if found_at.get((f.epoch, f.global_step)) == snapshot.look]
            write_snapshot(folder, snapshot, found)
        elif there.resolve() != here.resolve():
            write_whole(here, there.read_bytes())
    truncate(folder, look=len(history))


def snapshot_as_bytes(snapshot: Snapshot, findings: Sequence[Finding] = ()) -> bytes:
    """Returns a snapshot as a safetensors file."""
    layers = list(dict.fromkeys([*snapshot.maps, *snapshot.predicted_maps]))
    measures = list(snapshot.per_image)
    arrays = {
        "labels": _integers(snapshot.labels),
        "predicted": _integers(snapshot.predicted),
        "probability": _array(snapshot.probability, np.float32),
    }
    if measures:
        arrays["measures"] = np.stack([_array(values, np.float32) for values in snapshot.per_image.values()])
    for layer, maps in snapshot.maps.items():
        arrays[f"maps/{layers.index(layer)}"] = _array(maps, np.float32)
    for layer, maps in snapshot.predicted_maps.items():
        arrays |= _for_the_eye(_array(maps, np.float32), layers.index(layer))
    if snapshot.top_classes is not None and snapshot.top_probabilities is not None:
        arrays["top_classes"] = _integers(snapshot.top_classes)
        arrays["top_probabilities"] = _array(snapshot.top_probabilities, np.float32)
    if (pastes := snapshot.pastes) is not None:
        arrays |= {"places": _integers(pastes.places), "pastes": _integers(pastes.rows)}
        arrays["paste_chances"] = _array(pastes.chances, np.float16)
    facts = {
        **{key: getattr(snapshot, key) for key in ("epoch", "global_step", "look", "planned", "averaged", "error")},
        "cue": snapshot.cue,
        "layers": layers,
        "measures": measures,
        "means": pack_means(measures, snapshot.scalars, snapshot.intervals),
        "findings": findings_as_data(findings),
        "probes": None if pastes is None else list(pastes.probes),
    }
    return _packed(arrays, facts)


def _for_the_eye(maps: np.ndarray, i: int) -> dict[str, np.ndarray]:
    """Returns the maps of those images that have one as bytes, with one scale each: map = bytes * scale."""
    rows = np.isfinite(maps).all((1, 2)).nonzero()[0]
    kept = maps[rows].clip(min=0)
    scale = (kept.max((1, 2), initial=0.0) / 255).astype(np.float32)
    steps = kept / np.where(scale > 0, scale, 1)[:, None, None]
    return {
        f"predicted/{i}": np.rint(steps).clip(max=255).astype(np.uint8),
        f"predicted_scale/{i}": scale,
        f"predicted_rows/{i}": _integers(rows),
    }


def _is_of(file: Path, snapshot: Snapshot) -> bool:
    try:
        header = read_header(file)
    except Exception:  # what a damaged file raises depends on where it is damaged
        return False
    return all(header[key] == getattr(snapshot, key) for key in ("look", "epoch", "global_step"))


def _array(values: Any, dtype: type | None = None) -> np.ndarray:
    if hasattr(values, "detach"):  # a tensor, whose 16 bits of bfloat16 NumPy does not know
        values = values.detach().cpu()
        values = values.float() if str(values.dtype) == "torch.bfloat16" else values
    return np.ascontiguousarray(values, dtype=dtype)


def _integers(values: Any) -> np.ndarray:
    """Returns the shortest of 16, 32 and 64 bits that hold all values."""
    array = _array(values)
    low, high = array.min(initial=0), array.max(initial=0)
    kinds = (np.int16, np.int32, np.int64)
    return array.astype(next(kind for kind in kinds if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max))


def _packed(arrays: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> bytes:
    from safetensors.numpy import save

    return save(dict(arrays), {KEY: to_text(facts)})
