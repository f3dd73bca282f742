"""The arithmetic of the detectors: pure functions on tensors and numbers."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import TypeVar

import torch
from torch import Tensor

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class MeanTest:
    """A one-sided t-test of a mean over images.

    Attributes:
        mean: Of the finite values.
        error: Standard error of the mean, the jitter that all images share included.
        p: Of the hypothesis that the true mean is at most the margin.
        n: How many values were finite.
    """

    __test__ = False  # not a test of pytest's

    mean: float
    error: float
    p: float
    n: int

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Returns the two-sided interval of the mean."""
        half = t_quantile((1 + level) / 2, self.n - 1) * self.error
        return self.mean - half, self.mean + half


def look_level(alpha: float, test: int, planned: int | None) -> float:
    """Returns the level of the ``test``-th look, from 1.

    Where the number of looks is not known: 6 alpha/(pi k)^2 at look k, which adds up to alpha over all of them. Of K
    planned looks each has an equal share of what the first K would have so. What is left is for looks beyond the plan,
    which go on by the open rule, so that all levels add up to at most alpha, whether the plan is kept, exceeded, or
    changed on the way.

    Example:
        >>> round(look_level(0.05, 3, planned=20), 6), round(look_level(0.05, 3, planned=None), 6)
        (0.002426, 0.003377)
        >>> kept = sum(look_level(0.05, k, planned=20) for k in range(1, 21))
        >>> round(kept + sum(look_level(0.05, k, planned=None) for k in range(21, 100_000)), 4)
        0.05
    """
    if planned is None:
        return 6 * alpha / (math.pi * test) ** 2
    return sum(look_level(alpha, k, None) for k in range(1, planned + 1)) / planned


def t_quantile(level: float, degrees: int) -> float:
    """Returns Student's t quantile."""
    from scipy.stats import t

    return float(t.ppf(level, degrees))


def mean_test(values: Tensor, margin: float = 0.0, jitter: float = 0.0) -> MeanTest | None:
    """Tests whether the mean of the finite values is above a margin.

    z = (mean - margin) / sqrt(variance / N + jitter^2), compared with t of N - 1 degrees of freedom.

    Args:
        values: (N,) numbers, NaN where undefined.
        margin: What the mean has to exceed.
        jitter: Standard deviation of what moves all images together from look to look, which more images do
            not average out.

    Returns:
        None below two finite values, or where they do not vary at all and there is no jitter.

    Example:
        >>> found = mean_test(torch.tensor([0.1, 0.2, 0.3, float("nan")]), margin=0.05, jitter=0.01)
        >>> round(found.mean, 3), round(found.error, 4), round(found.p, 4), found.n
        (0.2, 0.0586, 0.0623, 3)
    """
    from scipy.stats import t

    finite = values[values.isfinite()].double()
    n = len(finite)
    if n < 2:
        return None
    mean, error = float(finite.mean()), math.sqrt(float(finite.var()) / n + jitter**2)
    if error == 0:
        return None
    return MeanTest(mean, error, float(t.sf((mean - margin) / error, n - 1)), n)


def wilson(rate: float, n: float, z: float) -> tuple[float, float]:
    """Returns the Wilson interval of a rate seen in ``n`` trials, at the normal quantile ``z``.

    Source: Brown, Cai, DasGupta, Interval Estimation for a Binomial Proportion, 2001, equation 4.

    Example:
        >>> [round(bound, 3) for bound in wilson(0.25, 64, 1.96)]
        [0.16, 0.368]
    """
    centre, scale = rate + z * z / (2 * n), 1 + z * z / n
    half = z * math.sqrt(max(rate * (1 - rate), 0.0) / n + z * z / (4 * n * n))
    return max((centre - half) / scale, 0.0), min((centre + half) / scale, 1.0)


def effective_trials(rates: Tensor, trials: Tensor) -> float:
    """Returns how many independent trials those of several images are worth, which agree within an image.

    The variance of a mean of n images' rates is taken from how the rates vary; a binomial proportion of that variance
    has rate * (1 - rate) / variance trials: at least one an image, at most all.

    Source: Kish, Survey Sampling, 1965, section 8.2 (design effect); Dean, Pagano, Evaluating Confidence Interval
    Methods for Binomial Proportions in Clustered Surveys, 2015 (in Wilson's interval).

    Args:
        rates: (n,) each image's rate.
        trials: (n,) how many it is of.

    Example:
        >>> same, mixed = torch.tensor([1.0, 0.0, 1.0, 0.0]), torch.tensor([0.4, 0.6, 0.5, 0.5])
        >>> [round(effective_trials(rates, torch.full((4,), 10.0)), 3) for rates in (same, mixed)]
        [4.0, 40.0]
    """
    n, rate = len(rates), float(rates.double().mean())
    variance = float(rates.double().var()) / n if n > 1 else 0.0
    if variance == 0:  # all alike: nothing says that an image's trials are independent
        return float(n)
    return min(max(rate * (1 - rate) / variance, float(n)), float(trials.sum()))


def normal_quantile(level: float) -> float:
    """Returns the normal quantile of an upper tail of ``level``."""
    return -NormalDist().inv_cdf(level)


def class_average(values: Tensor, labels: Tensor) -> tuple[float, float]:
    """Returns the mean over classes of the classes' means, and the number of images that it is worth.

    With weights w = 1 / (classes x images of the class) that number is 1 / sum(w^2); it equals N where all
    classes are of one size.

    Args:
        values: (N,) finite.
        labels: (N,) int.

    Example:
        >>> class_average(torch.tensor([1.0, 1.0, 1.0, 0.0]), torch.tensor([0, 0, 0, 1]))
        (0.5, 3.0)
    """
    _, index, counts = torch.unique(labels, return_inverse=True, return_counts=True)
    weights = 1 / (len(counts) * counts.double())[index]
    return float((weights * values.double()).sum()), round(float(1 / weights.square().sum()), 9)


def above_chance(correct: Tensor, labels: Tensor, level: float = 0.05) -> bool:
    """Whether more answers are right than by always giving the panel's most frequent class (binomial test).

    Args:
        correct: (N,) 1 where right, NaN where unknown.
        labels: (N,) int. Where all are of one class, chance is taken as one half.
        level: Of the test.

    Example:
        >>> labels = torch.arange(40) % 4
        >>> above_chance((labels == 0).float(), labels), above_chance((labels < 3).float(), labels)
        (False, True)
    """
    from scipy.stats import binom

    known = correct.isfinite()
    n = int(known.sum())
    if n == 0:
        return False
    share = float(torch.unique(labels[known], return_counts=True)[1].max()) / n
    chance = share if share < 1 else 0.5
    return bool(binom.sf(float(correct[known].sum()) - 1, n, chance) < level)


def at_least(hits: float, n: int, rate: float) -> float:
    """Returns the probability of ``hits`` or more in ``n`` trials of a rate (binomial, exact)."""
    from scipy.stats import binom

    return float(binom.sf(math.ceil(hits - 1e-9) - 1, n, rate))


def holm(p: Mapping[Key, float]) -> dict[Key, float]:
    """Returns p-values adjusted for their number.

    Source: Holm, A simple sequentially rejective multiple test procedure, 1979.

    Example:
        >>> holm({"a": 0.01, "b": 0.04, "c": 0.03})
        {'a': 0.03, 'c': 0.06, 'b': 0.06}
    """
    adjusted: dict[Key, float] = {}
    largest = 0.0
    for rank, key in enumerate(sorted(p, key=lambda key: p[key])):
        largest = max(largest, min((len(p) - rank) * p[key], 1.0))
        adjusted[key] = largest
    return adjusted
