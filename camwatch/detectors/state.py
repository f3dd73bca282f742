"""What detectors remember between looks: plain numbers and tensors that a weights-only checkpoint takes."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from camwatch.errors import CamwatchWarning, InputError
from camwatch.records import Snapshot
from camwatch.statistics import look_level


@dataclass
class Looks:
    """How often a detector has judged, and how much of its level a look may use.

    Attributes:
        tests: Looks judged so far.
        planned: What was planned at the first of them.
        open: Whether the number of looks has turned out to be unknown; stays so.
        warned: Whether the panel's size has been looked at.
    """

    tests: int = 0
    planned: int | None = None
    open: bool = False
    warned: bool = False

    def level(self, snapshot: Snapshot, alpha: float) -> float:
        """Returns the level of this look, counting it."""
        if self.tests == 0:
            self.planned = snapshot.planned
        self.open = self.open or snapshot.planned is None or snapshot.planned != self.planned
        self.open = self.open or snapshot.look >= (self.planned or 0)
        self.tests += 1
        return look_level(alpha, self.tests, None if self.open else self.planned)

    def check_size(self, n: int, smallest: int = 16, advised: int = 32) -> None:
        """Warns once where too few images can be judged."""
        if not self.warned and n < smallest:
            warnings.warn(
                f"only {n} images of the panel can be judged: below {smallest} an alarm is unlikely whatever "
                f"happens; {advised} or more are advised",
                CamwatchWarning,
                stacklevel=2,
            )
        self.warned = True


@dataclass
class Episode:
    """One alarm per episode: raised after ``needed`` looks in a row, again only after as many calm ones."""

    streak: int = 0
    calm: int = 0
    active: bool = False

    def step(self, hit: bool, calm: bool, needed: int, at_once: bool = False) -> bool:
        """Returns whether to raise an alarm at this look.

        Args:
            hit: The condition is met.
            calm: What was found is gone; an episode that is neither hit nor calm goes on.
            needed: Looks in a row, for either.
            at_once: Do not wait for them.
        """
        self.streak = self.streak + 1 if hit else 0
        self.calm = self.calm + 1 if calm else 0
        if self.active:
            self.active = self.calm < needed
            return False
        self.active = at_once or self.streak >= needed
        return self.active


class Remembering:
    """A dataclass whose fields that are no arguments are what it remembers: dataclasses of plain data, too."""

    def state_dict(self) -> dict[str, Any]:
        """Returns the state as plain data that a weights-only checkpoint takes."""
        return {
            name: {key: list(value) if isinstance(value, list) else value for key, value in vars(part).items()}
            for name, part in self._parts().items()
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Puts back what ``state_dict`` returned.

        Raises:
            InputError: It is the state of something else.
        """
        parts = self._parts()
        if set(state) != set(parts):
            raise InputError(f"expected a state with {sorted(parts)}, got {sorted(state)}")
        for name, part in parts.items():
            for key, value in state[name].items():
                setattr(part, key, list(value) if isinstance(value, list) else value)

    def _parts(self) -> dict[str, Any]:
        kept = [one.name for one in fields(self) if not one.init]  # type: ignore[arg-type]  # of the subclass
        return {name.lstrip("_"): getattr(self, name) for name in kept}
