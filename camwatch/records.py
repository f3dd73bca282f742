"""What a run leaves behind: frozen plain data, no behaviour.

Every field holds Python scalars, strings, dictionaries and CPU tensors only, so that a record passes
through a weights-only checkpoint and an archive unchanged.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Snapshot:
    """Everything measured on the panel at one moment of training.

    N is the number of panel images. A value that is undefined for an image (no region, an all-zero map)
    is NaN in ``per_image`` and excluded from ``scalars``; it is never 0 or 0.5.

    Attributes:
        epoch: Epoch of training, counted from 0; -1 before the first training step.
        global_step: Optimizer steps taken so far.
        look: Position in the run's history, counted from 0.
        planned: Number of snapshots that the schedule will take in all; None where it is unknown.
        labels: (N,) int64.
        predicted: (N,) int64, the class with the highest score.
        probability: (N,) float32, the predicted class's probability.
        per_image: Name -> (N,) float32. Measures of the first layer stand under their plain names
            (``relevance_mass_accuracy``), those of further layers under ``<layer>/<name>``.
        scalars: Name -> panel mean, finite values only.
        maps: Layer -> (N, h, w) float32 raw maps of the target. Empty once the snapshot lies in a
            history; the archive keeps them.
        averaged: Whether the weights were averaged ones (EMA, SWA).
        error: Why nothing was measured, for a snapshot that failed; None otherwise.
    """

    epoch: int
    global_step: int
    look: int
    planned: int | None
    labels: Tensor
    predicted: Tensor
    probability: Tensor
    per_image: Mapping[str, Tensor] = field(default_factory=dict)
    scalars: Mapping[str, float] = field(default_factory=dict)
    maps: Mapping[str, Tensor] = field(default_factory=dict)
    averaged: bool = False
    error: str | None = None


@dataclass(frozen=True)
class Alarm:
    """What a detector says, with its evidence.

    Attributes:
        detector: The detector's name.
        epoch: Epoch of the snapshot that raised it.
        global_step: Optimizer steps taken by then.
        message: One readable paragraph.
        evidence: The same as data: plain Python types only.
    """

    detector: str
    epoch: int
    global_step: int
    message: str
    evidence: Mapping[str, Any] = field(default_factory=dict)
