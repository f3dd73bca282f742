"""MAP CHANGE: each map's similarity to a reference, compared with what it was at the start of the run."""

from __future__ import annotations

from dataclasses import dataclass, field

from camwatch.detectors import sentences
from camwatch.detectors.baseline import Baseline, check_counts, judge
from camwatch.detectors.detector import MapDetector
from camwatch.detectors.sentences import Said, map_finding
from camwatch.detectors.state import Episode, Looks
from camwatch.records import Finding, Snapshot


@dataclass(eq=False)
class MapChange(MapDetector):
    """The maps look less like the reference snapshot's than they did: needs no regions.

    ``map_similarity`` (to the run's first snapshot) is compared with its own level in the first snapshots of a
    model that knows the task, by the statistic of ``Drop``. The reference itself, alike in every image, is not
    counted among them. A change is no fault: fine-tuning may move maps for good reasons.

    Args:
        margin: Loss of similarity that is of no interest.
        alpha, baseline, jitter, looks, name: As in ``Drop``.
    """

    margin: float = 0.2
    alpha: float = 0.05
    baseline: int = 3
    jitter: float = 0.01
    looks: int = 2
    name: str = "map_change"
    _looks: Looks = field(default_factory=Looks, init=False, repr=False)
    _episode: Episode = field(default_factory=Episode, init=False, repr=False)
    _baseline: Baseline = field(default_factory=Baseline, init=False, repr=False)

    def __post_init__(self) -> None:
        check_counts(self.baseline, self.looks)

    def update(self, snapshot: Snapshot) -> Finding | None:
        """Judges one more snapshot."""
        values = snapshot.per_image.get("map_similarity")
        if snapshot.error is not None or values is None or bool((values[values.isfinite()] > 0.9999).all()):
            return None
        found = judge(
            snapshot, values, self._baseline, self._looks, self.baseline, self.margin, self.jitter, self.alpha
        )
        if found is None:
            return None
        test, drops, level, jitter = found
        if not self._episode.step(test.p < level, test.mean <= self.margin, self.looks):
            return None
        fell, most = int((drops > self.margin).sum()), sentences.worst(drops)
        effect = sentences.effect_with_interval(test)
        lines = [
            f"The maps' similarity to the reference snapshot fell by {effect} on {test.n} "
            f"images (margin {self.margin:g}, p = {test.p:.1e} at the level {level:.1e}).",
            f"It fell by more than the margin on {fell} of them, most on images {sentences.listing(most)}.",
        ]
        more = {"jitter": jitter, "fell": fell, "worst": most}
        evidence = sentences.statistics_as_data(test, level, self.margin) | more
        return map_finding(self.name, snapshot, Said("The maps have changed", lines, evidence), self.limits)

    def finish(self, last: Snapshot) -> Finding | None:
        """Says nothing of the end."""
        return None
