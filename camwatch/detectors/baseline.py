"""Each image compared with itself: the baseline, the jitter, and the test that DROP and MAP CHANGE share."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from camwatch.detectors.behaviour import beats_chance
from camwatch.detectors.state import Looks
from camwatch.errors import InputError
from camwatch.records import Snapshot
from camwatch.statistics import MeanTest, mean_test


@dataclass
class Baseline:
    """What each image had in the first usable looks, and how much the panel's mean jitters.

    Attributes:
        rows: The first looks' (N,) values.
        last: The previous look's (N,) values.
        squares: Sum of squared differences of successive panel means.
        largest: The largest of them.
        differences: How many.
    """

    rows: list[Tensor] = field(default_factory=list)
    last: Tensor | None = None
    squares: float = 0.0
    largest: float = 0.0
    differences: int = 0

    def follow(self, values: Tensor) -> None:
        """Counts one look into the jitter, over the images that are defined in both looks."""
        if self.last is not None:
            change = (values - self.last).double().nanmean()
            if change.isfinite():
                square = float(change) ** 2
                self.squares += square
                self.largest = max(self.largest, square)
                self.differences += 1
        self.last = values

    def mean(self) -> Tensor:
        """Returns (N,): each image's mean over the baseline looks, NaN where it was never defined."""
        return torch.stack(self.rows).nanmean(0)

    def jitter(self, floor: float) -> float:
        """Returns tau * sqrt(1 + 1/m), with tau^2 = max(floor^2, half the mean squared difference).

        The largest difference is left out: a sudden drop would otherwise count as jitter and hide itself.
        """
        others = self.differences - 1
        square = 0.5 * (self.squares - self.largest) / others if others > 0 else 0.0
        return math.sqrt(max(floor**2, square) * (1 + 1 / len(self.rows)))


def judge(
    snapshot: Snapshot,
    values: Tensor,
    baseline: Baseline,
    looks: Looks,
    needed: int,
    margin: float,
    jitter: float,
    alpha: float,
) -> tuple[MeanTest, Tensor, float, float] | None:
    """Adds a look to the baseline until that has ``needed``, then tests each further one against it.

    A look of a random head is not added, and nothing of a look without any finite value is used.

    Returns:
        The test, the (N,) drops, the level of the look and the standard deviation from jitter; None where the
        look was not tested.
    """
    usable = int(values.isfinite().sum())
    building = len(baseline.rows) < needed
    if usable == 0 or (building and not beats_chance(snapshot)):
        return None
    if baseline.rows and len(baseline.rows[0]) != len(values):
        raise InputError(
            f"the panel has {len(values)} images, the baseline {len(baseline.rows[0])}; "
            "a detector follows the same images through a run"
        )
    looks.check_size(usable)
    baseline.follow(values)
    if building:
        baseline.rows.append(values)
        return None
    drops, common = baseline.mean() - values, baseline.jitter(jitter)
    test = mean_test(drops, margin, common)
    return None if test is None else (test, drops, looks.level(snapshot, alpha), common)


def check_counts(baseline: int, looks: int) -> None:
    """Raises an InputError for numbers of looks below 1."""
    if baseline < 1 or looks < 1:
        raise InputError(f"expected baseline and looks of 1 at least, got {baseline} and {looks}")
