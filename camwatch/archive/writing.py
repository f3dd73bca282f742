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
    RUN,
    SNAPSHOTS,
    is_archive,
    picture_files,
    snapshot_file,
    snapshot_files,
    to_text,
)
from camwatch.archive.reading import read_header
from camwatch.files import remove_leftovers, write_whole
from camwatch.records import Finding, Snapshot

STEPS = 255  # of the predicted class's maps, which are for the eye


def free_folder(folder: str | Path, own: str | None = None) -> Path:
    """Returns the folder, or one beside it where another run's archive lies there already.

    Args:
        folder: Where an archive is to be.
        own: The archive of the run that goes on, which may lie there.

    Example:
        >>> free_folder("runs/camwatch").name
        'camwatch'
    """
    folder = Path(folder)
    candidates = (folder if i == 0 else folder.with_name(f"{folder.name}_{i}") for i in range(10_000))
    return next(f for f in candidates if str(f.absolute()) == own or not is_archive(f))


def write_run(
    folder: Path, run: Mapping[str, Any], panel: Mapping[str, Any], pictures: Iterable[tuple[bytes, bytes]] = ()
) -> None:
    """Writes what the snapshots are of, and removes what a killed process left half-written.

    Args:
        folder: The archive's, made where it does not exist.
        run: What was asked, as plain data.
        panel: The panel's state: arrays, and plain data.
        pictures: Of each image, for the eye: PNG and small JPEG.
    """
    (folder / SNAPSHOTS).mkdir(parents=True, exist_ok=True)
    for each in (folder, folder / SNAPSHOTS):
        remove_leftovers(each)
    for i, files in enumerate(pictures):
        for path, data in zip(picture_files(folder, i), files, strict=True):
            write_whole(path, data, durable=False)
    regions = panel.get("regions") or {}
    held = {**panel, "regions": None, **{f"regions/{zone}": masks for zone, masks in regions.items()}}
    arrays = {key: _array(value) for key, value in held.items() if hasattr(value, "dtype")}
    facts = {key: value for key, value in held.items() if key not in arrays}
    write_whole(folder / PANEL, _packed(arrays, facts))
    write_whole(folder / RUN, to_text(run).encode())


def write_snapshot(folder: Path, snapshot: Snapshot, findings: Sequence[Finding]) -> None:
    """Writes a snapshot with what was found at it; what the end of training found is no longer the end."""
    (folder / END).unlink(missing_ok=True)
    write_whole(snapshot_file(folder, snapshot.look), snapshot_as_bytes(snapshot, findings))


def write_end(folder: Path, findings: Sequence[Finding]) -> None:
    """Writes what the end of training found."""
    write_whole(folder / END, to_text({"findings": [vars(finding) for finding in findings]}).encode())


def take_over(
    folder: Path, source: str | Path | None, history: Sequence[Snapshot], findings: Sequence[Finding]
) -> None:
    """Makes a folder the archive of a resumed run: its history, and nothing after it.

    Args:
        folder: The archive's.
        source: The archive that the run wrote so far, which may be this one. Its snapshots are taken with their maps;
            what is gone or damaged there is written from ``history``, without maps.
        history: All snapshots so far.
        findings: All that was found at them.
    """
    for snapshot in history:
        there = None if source is None else snapshot_file(Path(source), snapshot.look)
        here = snapshot_file(folder, snapshot.look)
        if there is None or not _is_of(there, snapshot):
            moment = (snapshot.epoch, snapshot.global_step)
            write_snapshot(folder, snapshot, [f for f in findings if (f.epoch, f.global_step) == moment])
        elif there.resolve() != here.resolve():
            shutil.copyfile(there, temporary := here.with_name(f".{here.name}.tmp"))
            temporary.replace(here)
    (folder / END).unlink(missing_ok=True)
    for later in snapshot_files(folder):
        if int(later.stem) >= len(history):
            later.unlink(missing_ok=True)


def snapshot_as_bytes(snapshot: Snapshot, findings: Sequence[Finding] = ()) -> bytes:
    """Returns a snapshot as a safetensors file."""
    measures = {name: _array(values).astype(np.float32) for name, values in snapshot.per_image.items()}
    arrays = {
        "labels": _array(snapshot.labels).astype(np.int32),
        "predicted": _array(snapshot.predicted).astype(np.int32),
        "probability": _array(snapshot.probability).astype(np.float32),
    }
    if measures:
        arrays["measures"] = np.stack(list(measures.values()))
    for i, maps in enumerate(snapshot.maps.values()):
        arrays[f"maps/{i}"] = _array(maps).astype(np.float32)
    for i, maps in enumerate(snapshot.predicted_maps.values()):
        arrays |= {f"predicted_{part}/{i}": array for part, array in _for_the_eye(_array(maps)).items()}
    if snapshot.top_classes is not None and snapshot.top_probabilities is not None:
        arrays["top_classes"] = _array(snapshot.top_classes).astype(np.int32)
        arrays["top_probabilities"] = _array(snapshot.top_probabilities).astype(np.float32)
    if snapshot.pastes is not None:
        held = snapshot.pastes
        arrays |= {"places": _array(held.places), "pastes": _array(held.rows), "paste_chances": _array(held.chances)}
    facts = {
        **{
            key: getattr(snapshot, key)
            for key in ("epoch", "global_step", "look", "planned", "averaged", "error", "cue")
        },
        "layers": list(snapshot.maps),
        "measures": list(measures),
        "means": _means(snapshot, list(measures)),
        "findings": [vars(finding) for finding in findings],
        "probes": None if snapshot.pastes is None else list(snapshot.pastes.probes),
    }
    return _packed(arrays, facts)


def _means(snapshot: Snapshot, measures: list[str]) -> list[list[Any]]:
    """Returns a row for each panel mean: its measure's position (or its name), the mean, and its interval."""
    return [
        [
            measures.index(key) if key in measures else key,
            value,
            *(float(f"{bound:.6g}") for bound in snapshot.intervals.get(key, ())),
        ]
        for key, value in snapshot.scalars.items()
    ]


def _for_the_eye(maps: np.ndarray) -> dict[str, np.ndarray]:
    """Returns maps as bytes with one scale each, of the images that have one."""
    images = np.isfinite(maps).all((1, 2)).nonzero()[0].astype(np.int32)
    kept = maps[images]
    peak = kept.max((1, 2), initial=0.0).astype(np.float32)
    scale = np.where(peak > 0, peak, 1)[:, None, None]
    return {"images": images, "maps": np.rint(kept / scale * STEPS).astype(np.uint8), "peaks": peak}


def _is_of(file: Path, snapshot: Snapshot) -> bool:
    try:
        header = read_header(file)
    except (OSError, ValueError):
        return False
    return all(header[key] == getattr(snapshot, key) for key in ("look", "epoch", "global_step"))


def _array(values: Any) -> np.ndarray:
    if hasattr(values, "detach"):  # a tensor, whose 16 bits of bfloat16 NumPy does not know
        values = values.detach().cpu()
        values = values.float() if str(values.dtype) == "torch.bfloat16" else values
    return np.ascontiguousarray(values)


def _packed(arrays: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> bytes:
    from safetensors.numpy import save

    return save(dict(arrays), {KEY: to_text(facts)})
