"""DEAD MAPS: maps that are zero everywhere say nothing, and neither does what is computed from them."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from camwatch.detectors.behaviour import is_correct
from camwatch.detectors.sentences import Said, finding, listing
from camwatch.detectors.state import Episode, Remembering
from camwatch.records import Finding, Snapshot


@dataclass(eq=False)
class DeadMaps(Remembering):
    """Too many images have a blank map: zero everywhere, or not finite.

    Only images that are answered rightly count, all of them where none is: the label of a wrong answer may well
    have no positive evidence, as every label has under an untrained head. No test: the share itself is compared,
    ``looks`` times in a row. The other detectors go on with the images that are alive.

    Args:
        limit: Share of these images above which an alarm is raised.
        looks: Looks in a row that must agree.
        name: Under which alarms and states go.
    """

    limit: float = 0.2
    looks: int = 2
    name: str = "dead_maps"
    _episode: Episode = field(default_factory=Episode, init=False, repr=False)

    def update(self, snapshot: Snapshot) -> Finding | None:
        """Judges one more snapshot."""
        mass = snapshot.per_image.get("map_mass")
        if snapshot.error is not None or mass is None or not len(mass):
            return None
        asked, whose = is_correct(snapshot) == 1, "images answered rightly"
        if not asked.any():
            asked, whose = torch.ones_like(asked), "all images"
        n = int(asked.sum())
        dead = ((~(mass > 0) | ~mass.isfinite()) & asked).nonzero().flatten().tolist()
        share = len(dead) / n
        if not self._episode.step(share > self.limit, share <= self.limit, self.looks):
            return None
        sentence = (
            f"{len(dead)} of the {n} maps of {whose} are blank ({share:.0%}, limit {self.limit:.0%}): images "
            f"{listing(dead)}. Their class gets no positive evidence at this layer, and every other "
            "number is of the rest."
        )
        evidence = {"effect": share, "n": n, "dead": dead, "limit": self.limit}
        said = Said("Many maps are blank", [sentence], evidence)
        return finding(self.name, snapshot, said, "Try another layer, target or method.")

    def finish(self, last: Snapshot) -> Finding | None:
        """Says nothing of the end."""
        return None
