"""LEVEL: what the maps are at this moment, without any baseline."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from camwatch.detectors import sentences
from camwatch.detectors.behaviour import beats_chance
from camwatch.detectors.detector import MapDetector
from camwatch.detectors.sentences import Said, map_finding
from camwatch.detectors.state import Episode, Looks
from camwatch.records import Finding, Snapshot
from camwatch.statistics import MeanTest, mean_test

AT_END = 0.25  # share of alpha that the end of training has
NEVER = "never arrived"
TITLES = {
    "uniform": "Attention avoids the regions",
    "floor": "Attention inside the regions is below the floor",
    "forbidden": "Attention dwells in the forbidden zone",
}


@dataclass
class _First:
    """The run's first shares, whatever the head knew."""

    shares: Tensor | None = None


@dataclass(eq=False)
class Level(MapDetector):
    """The maps avoid the regions, or dwell where they must not.

    Each condition is a one-sided t-test over images at the level of the look, shared between the conditions
    that are measured, and has to hold ``looks`` times in a row; the looks have three quarters of ``alpha``, the end of
    training the last one:

    - *uniform*: mean(share - area) is below 0, worse than a map that is the same everywhere;
    - *floor*: mean(share) is below ``floor``;
    - *forbidden*: mean(forbidden share - forbidden area) is above 0.

    When training ends ``finish`` also asks whether the maps *never arrived*: surely less than ``arrival`` above
    the first snapshot, and surely less than ``lift`` times the uniform share. A model whose accuracy is not
    above chance is not judged.

    A share above the region's area is silent here, and a cue beside a region can leave it there: see ``Probe``.

    Args:
        floor: Share of the map that ought to be inside; None: not asked.
        alpha: Probability of any false alarm in a run.
        looks: Looks in a row that must agree.
        jitter: Standard deviation of the panel's mean from look to look that is allowed for.
        arrival: Rise of the share over the run that counts as arriving.
        lift: Share, as a multiple of the region's area, that counts as having arrived.
        name: Under which alarms and states go.

    Example:
        >>> labels = torch.arange(32) % 4
        >>> share = 0.1 + 0.05 * torch.rand(32, generator=torch.Generator().manual_seed(0))
        >>> measured = {"relevance_mass_accuracy": share, "region_area": torch.full((32,), 0.25)}
        >>> detector = Level()
        >>> looks = [Snapshot(k, k, k, 8, labels, labels, torch.ones(32), measured) for k in range(4)]
        >>> [alarm is not None for alarm in map(detector.update, looks)]
        [False, True, False, False]
    """

    floor: float | None = None
    alpha: float = 0.05
    looks: int = 2
    jitter: float = 0.01
    arrival: float = 0.05
    lift: float = 1.25
    name: str = "level"
    _looks: Looks = field(default_factory=Looks, init=False, repr=False)
    _uniform: Episode = field(default_factory=Episode, init=False, repr=False)
    _floor: Episode = field(default_factory=Episode, init=False, repr=False)
    _forbidden: Episode = field(default_factory=Episode, init=False, repr=False)
    _first: _First = field(default_factory=_First, init=False, repr=False)

    def update(self, snapshot: Snapshot) -> Finding | None:
        """Judges one more snapshot."""
        if snapshot.error is not None:
            return None
        if self._first.shares is None:
            self._first.shares = snapshot.per_image.get(sentences.SHARE)
        shortfalls = self._shortfalls(snapshot)
        if not shortfalls or not beats_chance(snapshot):
            return None
        tests = {k: t for k, v in shortfalls.items() if (t := mean_test(v, jitter=self.jitter)) is not None}
        if not tests:
            return None
        self._looks.check_size(max(test.n for test in tests.values()))
        level = self._looks.level(snapshot, (1 - AT_END) * self.alpha) / len(tests)
        episodes = {"uniform": self._uniform, "floor": self._floor, "forbidden": self._forbidden}
        raised = [k for k, t in tests.items() if episodes[k].step(t.p < level, t.mean <= 0, self.looks)]
        if not raised:
            return None
        return self._finding(snapshot, {k: (tests[k], shortfalls[k]) for k in raised}, level)

    def finish(self, last: Snapshot) -> Finding | None:
        """Judges the last snapshot of a training that has ended."""
        share, area = (last.per_image.get(key) for key in (sentences.SHARE, "region_area"))
        first = self._first.shares
        if last.error is not None or share is None or area is None or first is None:
            return None
        known = self._uniform.active or self._floor.active
        fallen = float((first - self.lift * area).nanmean()) > 0  # it was there: not a case of never
        if known or fallen or not beats_chance(last):
            return None
        risen = mean_test(first - share, -self.arrival, self.jitter)
        above = mean_test(self.lift * area - share, 0.0, self.jitter)
        level = AT_END * self.alpha
        if risen is None or above is None or max(risen.p, above.p) >= level:
            return None
        most = sentences.worst(area - share)
        lines = [
            f"The maps never arrived in the regions: at the end of training {float(share.nanmean()):.2f} of the "
            f"map lies inside, {float(first.nanmean()):.2f} at the start, and {float(area.nanmean()):.2f} would "
            f"by chance ({above.n} images; surely below {self.lift:g} times chance, and risen by less than "
            f"{self.arrival:g}).",
            f"Farthest below chance are images {sentences.listing(most)}.",
        ]
        evidence = {
            "conditions": [NEVER],
            NEVER: sentences.statistics_as_data(above, level, 0.0),
            "rise": -risen.mean,
            "worst": most,
        }
        said = Said("The maps never arrived in the regions", lines, evidence, NEVER)
        return map_finding(self.name, last, said, self.limits)

    def _shortfalls(self, snapshot: Snapshot) -> dict[str, Tensor]:
        """Returns condition -> (N,): by how much each image fails it, positive where it does."""
        per_image = snapshot.per_image
        share, area = per_image.get(sentences.SHARE), per_image.get("region_area")
        forbidden, zone = per_image.get("forbidden_mass"), per_image.get("forbidden_area")
        found: dict[str, Tensor] = {}
        if share is not None and area is not None:
            found["uniform"] = area - share
        if share is not None and self.floor is not None:
            found["floor"] = self.floor - share
        if forbidden is not None and zone is not None:
            found["forbidden"] = forbidden - zone
        return found

    def _finding(self, snapshot: Snapshot, raised: dict[str, tuple[MeanTest, Tensor]], level: float) -> Finding:
        words = {
            "uniform": "The share of the map inside the regions is below that of a uniform map by",
            "floor": f"The share of the map inside the regions is below the floor of {self.floor} by",
            "forbidden": "The share of the map in the forbidden zone is above the zone's own by",
        }
        lines: list[str] = []
        found: dict[str, Any] = {"conditions": list(raised)}
        for key, (test, shortfall) in raised.items():
            most, fell = sentences.worst(shortfall), int((shortfall > 0).sum())
            effect = sentences.effect_with_interval(test)
            lines.append(
                f"{words[key]} {effect} on {test.n} images (p = {test.p:.1e} at the level {level:.1e}); "
                f"that holds for {fell} of them, most for images {sentences.listing(most)}."
            )
            found[key] = {**sentences.statistics_as_data(test, level, 0.0), "fell": fell, "worst": most}
        now = sentences.mean_map(snapshot)
        if now is not None and bool(torch.isfinite(now).all()):
            where = sentences.mass_shift(torch.zeros_like(now), now)
            found["went"] = where
            if where is not None:
                lines.append(f"The mean map peaks at the {sentences.describe_cell(where)}.")
        said = Said(TITLES[next(iter(raised))], lines, found, "+".join(raised))
        return map_finding(self.name, snapshot, said, self.limits)
