"""What a run leaves behind: frozen plain data, no behaviour.

Arrays are CPU tensors while a run is alive and NumPy arrays where an archive is read without torch; everything else is
Python scalars, strings, tuples and dictionaries, so that a record passes through a weights-only checkpoint and an
archive unchanged.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import Tensor

Severity = Literal["alarm", "question", "note"]


@dataclass(frozen=True)
class Measure:
    """A number per image and its panel mean: what everybody who shows it has to know.

    Attributes:
        name: Under which it is recorded.
        title: In a few words, for people.
        unit: What kind of number it is.
        low: The least possible value; None where there is none.
        high: The greatest possible value; None where there is none.
        better: Which way is better; None where neither is.
        of: Whether it is a layer's, or the model's as a whole.
        needs: Of ``labels``, ``regions``, ``forbidden``, ``probes``, ``reference``: without these it is not measured.
        uninformative: What a map that says nothing has: a number, or the name of the measure that has it.
        split: Whether its mean is told for right and wrong answers apart, too.
        logged: Whether it is one of TensorBoard's dozen.
    """

    name: str
    title: str
    unit: Literal["share", "rate", "correlation", "probability", "amount"]
    low: float | None
    high: float | None
    better: Literal["high", "low"] | None
    of: Literal["layer", "model"]
    needs: frozenset[str] = frozenset()
    uninformative: float | str | None = None
    split: bool = False
    logged: bool = False


@dataclass(frozen=True, eq=False)
class Pastes:
    """What the model answered to each composed picture of the probes: P pastes at M places.

    Attributes:
        probes: Names of the probes.
        places: (M, 4) int16, x1, y1, x2, y2 in pixels of the panel's images.
        rows: (P, 5) int16: probe, taker, donor (-1: no image, a fill), place, and the class answered (-1: none).
        chances: (P, 2) float16: the probability of the taker's class, and of the donor's (NaN without a donor).
    """

    probes: tuple[str, ...]
    places: Tensor
    rows: Tensor
    chances: Tensor


@dataclass(frozen=True, eq=False)
class Snapshot:
    """Everything measured on the panel at one moment of training.

    N is the number of panel images. A value that is undefined for an image (no region, an all-zero map)
    is NaN in ``per_image`` and excluded from ``scalars``; it is never 0 or 0.5.

    Attributes:
        epoch: Epoch of training, counted from 0; -1 before the first training step.
        global_step: Optimizer steps taken so far.
        look: Position in the run's history, counted from 0 (an interim look, in the terms of sequential tests).
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
        intervals: Name -> 95 % interval of the panel mean.
        predicted_maps: Layer -> (N, h, w) maps of the predicted class, NaN where it is the explained one; like
            ``maps`` in the archive only.
        top_classes: (N, K) int64, the K <= 5 most probable classes, the first one first; None where not known.
        top_probabilities: (N, K) float32, their probabilities.
        pastes: What the probes composed and the model answered, in the archive only; None where no probe ran.
        cue: Where the cue lies, as plain data, at a snapshot at which it was looked for; None otherwise.
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
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    predicted_maps: Mapping[str, Tensor] = field(default_factory=dict)
    top_classes: Tensor | None = None
    top_probabilities: Tensor | None = None
    pastes: Pastes | None = None
    cue: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Finding:
    """What a detector says, with its evidence.

    Attributes:
        detector: The detector's name.
        epoch: Epoch of the snapshot that raised it.
        global_step: Optimizer steps taken by then.
        message: For a person to read.
        evidence: The same as data: plain Python types only.
        severity: "alarm": behaviour shown, outside of what the user allowed; "question": only the user can say
            whether it is allowed; "note": something to know.
        title: At most 80 characters.
        next: What the user can do.
        key: Detector and cause, under which later looks find the same again.
        since: Epoch in which it was first found; None where nobody has kept count.
    """

    detector: str
    epoch: int
    global_step: int
    message: str
    evidence: Mapping[str, Any] = field(default_factory=dict)
    severity: Severity = "alarm"
    title: str = ""
    next: str = ""
    key: str = ""
    since: int | None = None

    def __post_init__(self) -> None:
        if not self.key:
            object.__setattr__(self, "key", self.detector)
