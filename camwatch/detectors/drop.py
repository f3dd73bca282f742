"""DROP: each image's share inside its region, compared with what it was at the start of the run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from camwatch.detectors import sentences
from camwatch.detectors.baseline import Baseline, check_counts, judge
from camwatch.detectors.detector import MapDetector
from camwatch.detectors.sentences import Said, map_finding
from camwatch.detectors.state import Episode, Looks
from camwatch.records import Finding, Snapshot
from camwatch.statistics import MeanTest, holm, mean_test


@dataclass
class _Before:
    """The last baseline look's mean map and forbidden share, for saying where the mass went."""

    map: Tensor | None = None
    forbidden: float | None = None


@dataclass(eq=False)
class Drop(MapDetector):
    """The share of the map inside the regions has fallen, beyond a margin and the training's jitter.

    With b_i an image's mean share over the first ``baseline`` snapshots and d_i = b_i - s_i(t):
    tau^2 = max(``jitter``^2, half the mean squared difference of successive panel means, the largest left out),
    and z = (mean d - ``margin``) / sqrt(var(d)/N + tau^2 (1 + 1/``baseline``)), one-sided against t with N - 1
    degrees of freedom. Finding when p < alpha/K at ``looks`` looks in a row, K being the planned looks; where K
    is unknown or changes, at the level 6 alpha/(pi k)^2 for the k-th look. Once per episode.

    Snapshots of a random head (accuracy not above chance) are no baseline. Images whose share is undefined are
    left out. A cue learned before the baseline is complete cannot be seen.

    Simulated with 32 images, image noise .08, jitter .02, 20 looks: a sudden drop of .20 is found in 99 % of
    runs, one look after it (with the largest difference counted in: 56 %, 13 looks after); one of .15 in 83 %.
    False alarms with 256 images and jitter .04: 0.1 %.

    Args:
        margin: Drop that is of no interest, in units of the share.
        alpha: Probability of any false alarm in a run.
        baseline: Snapshots that make the baseline.
        jitter: Smallest standard deviation of the panel's mean from look to look.
        looks: Looks in a row that must agree.
        reference: (N,) shares of a trusted checkpoint, in the place of the first snapshots.
        name: Under which alarms and states go.

    Example:
        >>> def look(k, share):
        ...     labels = torch.arange(32) % 4
        ...     noise = 0.05 * torch.randn(32, generator=torch.Generator().manual_seed(k))
        ...     return Snapshot(k, k, k, 8, labels, labels, torch.ones(32), {"relevance_mass_accuracy": share + noise})
        >>> detector = Drop()
        >>> shares = (0.6, 0.6, 0.6, 0.6, 0.5, 0.4, 0.3, 0.2)
        >>> alarms = [detector.update(look(k, share)) for k, share in enumerate(shares)]
        >>> [alarm.epoch for alarm in alarms if alarm]
        [5]
    """

    margin: float = 0.05
    alpha: float = 0.05
    baseline: int = 3
    jitter: float = 0.01
    looks: int = 2
    reference: Tensor | None = None
    name: str = "drop"
    _looks: Looks = field(default_factory=Looks, init=False, repr=False)
    _episode: Episode = field(default_factory=Episode, init=False, repr=False)
    _baseline: Baseline = field(default_factory=Baseline, init=False, repr=False)
    _before: _Before = field(default_factory=_Before, init=False, repr=False)

    def __post_init__(self) -> None:
        check_counts(self.baseline, self.looks)
        if self.reference is not None:
            self._baseline.rows = [self.reference.float()]

    def update(self, snapshot: Snapshot) -> Finding | None:
        """Judges one more snapshot."""
        values = snapshot.per_image.get(sentences.SHARE)
        if snapshot.error is not None or values is None:
            return None
        needed = self.baseline if self.reference is None else 1
        known = len(self._baseline.rows)
        found = judge(snapshot, values, self._baseline, self._looks, needed, self.margin, self.jitter, self.alpha)
        if len(self._baseline.rows) > known:
            self._before.map = sentences.mean_map(snapshot)
            self._before.forbidden = _mean(snapshot.per_image.get("forbidden_mass"))
        if found is None:
            return None
        test, _, level, _ = found
        if not self._episode.step(test.p < level, test.mean <= self.margin, self.looks):
            return None
        return self._finding(snapshot, values, found)

    def _finding(self, snapshot: Snapshot, values: Tensor, found: tuple[MeanTest, Tensor, float, float]) -> Finding:
        test, drops, level, jitter = found
        both = drops.isfinite()
        start, end = float(self._baseline.mean()[both].mean()), float(values[both].mean())
        fell, most = int((drops > self.margin).sum()), sentences.worst(drops)
        classes, where = _by_class(drops, snapshot.labels, self.margin, jitter), self._where(snapshot)
        effect = sentences.effect_with_interval(test)
        lines = [
            f"The share of the map inside the regions fell by {effect}, from {start:.2f} to "
            f"{end:.2f} on {test.n} images (margin {self.margin:g}, p = {test.p:.1e} at the level {level:.1e}).",
            f"It fell by more than the margin on {fell} of them, most on images {sentences.listing(most)}.",
            *_went_to(where),
            *_classes_said(classes),
        ]
        evidence = {
            **sentences.statistics_as_data(test, level, self.margin),
            "before": start,
            "after": end,
            "jitter": jitter,
            "fell": fell,
            "worst": most,
            "worst_effects": [float(drops[i]) for i in most],
            "went": where,
            "classes": classes,
        }
        return map_finding(self.name, snapshot, Said("Attention has left the regions", lines, evidence), self.limits)

    def finish(self, last: Snapshot) -> Finding | None:
        """Says nothing of the end."""
        return None

    def _where(self, snapshot: Snapshot) -> dict[str, Any] | None:
        forbidden, was = _mean(snapshot.per_image.get("forbidden_mass")), self._before.forbidden
        now = sentences.mean_map(snapshot)
        found = None if now is None or self._before.map is None else sentences.mass_shift(self._before.map, now)
        if forbidden is not None and was is not None and forbidden - was > self.margin:
            return {**(found or {}), "to": "forbidden", "forbidden_gain": forbidden - was}
        return found


def _by_class(drops: Tensor, labels: Tensor, margin: float, jitter: float, smallest: int = 8) -> list[dict[str, Any]]:
    """Returns the drop of each class that has enough images, with its p-value adjusted after Holm."""
    tests: dict[int, MeanTest] = {}
    for label in sorted(set(labels.tolist())):
        test = mean_test(drops[labels == label], margin, jitter)
        if test is not None and test.n >= smallest:
            tests[label] = test
    adjusted = holm({label: test.p for label, test in tests.items()})
    return [{"label": k, "effect": t.mean, "n": t.n, "p": adjusted[k]} for k, t in tests.items()]


def _classes_said(classes: list[dict[str, Any]]) -> list[str]:
    sure = sorted((c for c in classes if c["p"] < 0.05), key=lambda c: -c["effect"])
    if not sure or len(sure) == len(classes):
        return []
    return ["It surely fell in class " + ", ".join(f"{c['label']} (by {c['effect']:.2f})" for c in sure) + "."]


def _went_to(where: dict[str, Any] | None) -> list[str]:
    if where is None:
        return []
    if where["to"] == "spread out":
        return ["The mass spread out over the image."]
    spot = sentences.describe_cell(where) if "row" in where else ""
    if where["to"] == "forbidden":
        return ["The mass went into the forbidden zone" + (f", most to the {spot}." if spot else ".")]
    return [f"The mass went to the {spot}."]


def _mean(values: Tensor | None) -> float | None:
    if values is None or not bool(torch.isfinite(values).any()):
        return None
    return float(values.nanmean())
