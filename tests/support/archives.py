"""A run's archive as tests write it, and when two records are the same."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from camwatch.archive.writing import write_run, write_snapshot
from camwatch.records import Pastes, Snapshot

N = 5
RUN = {"name": "x", "layers": ["layer4", "layer3"], "size": [8, 8], "measures": [{"name": "correct"}]}


def panel_state(**fields):
    regions = {"allowed": np.eye(8, dtype=bool)[None].repeat(N, 0), "forbidden": None, "annotated": np.ones(N, bool)}
    images = np.random.default_rng(0).random((N, 3, 8, 8), dtype=np.float32)
    described = {"images": images, "labels": np.arange(N), "regions": regions, "ids": [str(i) for i in range(N)]}
    return {**described, "class_names": None, "denormalize": None, "rgb": (0, 1, 2), **fields}


def snapshot(look, seed=0, **fields):
    rng = np.random.default_rng(1000 * seed + look)
    predicted_maps = rng.random((N, 3, 4), dtype=np.float32)
    predicted_maps[::2] = np.nan
    described = {
        "epoch": look - 1,
        "global_step": 10 * look,
        "look": look,
        "planned": 9,
        "labels": np.arange(N),
        "predicted": np.arange(N)[::-1],
        "probability": rng.random(N, dtype=np.float32),
        "per_image": {"correct": np.array([1, 0, math.nan, 1, 0], np.float32)},
        "scalars": {"correct": 0.5, "correct/right": 1.0, "blank_maps": float(np.float32(1 / 3))},
        "intervals": {"correct": (0.25, 0.75)},
        "maps": {"layer4": rng.random((N, 3, 4), dtype=np.float32), "layer3": rng.random((N, 6, 8), dtype=np.float32)},
        "predicted_maps": {"layer4": predicted_maps},
        "top_classes": np.tile([4, 1], (N, 1)),
        "top_probabilities": rng.random((N, 2), dtype=np.float32),
        "pastes": Pastes(
            ("hide/mean", "swap"),
            np.array([[0, 0, 4, 4]], np.int16),
            np.array([[0, 3, -1, 0, 1], [1, 2, 3, 0, 4]], np.int16),
            np.array([[0.25, math.nan], [0.5, 0.125]], np.float16),
        ),
        "cue": {"box": [0, 0, 2, 2], "rate": 0.5},
    }
    return Snapshot(**(described | fields))


def written(folder, looks, findings=None, **fields):
    write_run(folder, RUN, panel_state())
    snapshots = [snapshot(look, **fields) for look in looks]
    for one in snapshots:
        write_snapshot(folder, one, (findings or {}).get(one.look, ()))
    return snapshots


def same(a: Any, b: Any) -> bool:
    """Whether two values are equal to the last bit, their types and the order of their keys included."""
    if isinstance(a, Pastes):
        return same(vars(a), vars(b))
    if isinstance(a, Mapping):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if hasattr(a, "dtype"):
        a, b = np.asarray(a), np.asarray(b)
        return a.dtype == b.dtype and np.array_equal(a, b, equal_nan=a.dtype.kind == "f")
    return type(a) is type(b) and a == b
