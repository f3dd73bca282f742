"""DEAD MAPS: maps that are zero everywhere say nothing, and neither does what is computed from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from camwatch.detectors.behaviour import right
from camwatch.detectors.sentences import alarm, listing
from camwatch.detectors.state import Episode, restore, save
from camwatch.records import Finding, Snapshot


@dataclass(eq=False)
class DeadMaps:
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
        asked, whose = right(snapshot) == 1, "images answered rightly"
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
        found = {"effect": share, "n": n, "dead": dead, "limit": self.limit}
        return alarm(self.name, snapshot, [sentence], found, "Try another layer, target or method.")

    def state_dict(self) -> dict[str, Any]:
        """Returns the state as plain data."""
        return save({"episode": self._episode})

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Puts a state back."""
        restore({"episode": self._episode}, state)
