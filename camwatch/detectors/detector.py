"""What a detector is, and a user's own function as one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from camwatch.detectors.behaviour import Limits
from camwatch.detectors.state import Remembering
from camwatch.errors import InputError
from camwatch.records import Finding, Snapshot


@runtime_checkable
class Detector(Protocol):
    """A rule over the history of snapshots."""

    name: str

    def update(self, snapshot: Snapshot) -> Finding | None:
        """Judges one more snapshot, which was measured without an error."""

    def finish(self, last: Snapshot) -> Finding | None:
        """Judges the end of a training whose last sound snapshot this was."""

    def state_dict(self) -> dict[str, Any]:
        """Returns the state as plain data that a weights-only checkpoint takes."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Puts a state back."""


@dataclass(eq=False)
class MapDetector(Remembering):
    """A detector of what maps do, which says whether behaviour agrees.

    Attributes:
        limits: What the probes have to show for that; None: those of the run's ``Probe``.
    """

    limits: Limits | None = field(default=None, kw_only=True)


@dataclass(eq=False)
class Custom:
    """A function of one's own as a detector. It keeps no state: what it says at a look is its own affair.

    Example:
        >>> import torch
        >>> def sees_blue(snapshot):
        ...     return Finding("sees_blue", snapshot.epoch, snapshot.global_step, "It is blue.")
        >>> detector = Custom(sees_blue, "sees_blue")
        >>> from camwatch.records import Finding, Snapshot
        >>> label = torch.zeros(1, dtype=torch.int64)
        >>> detector.name, detector.update(Snapshot(3, 30, 3, None, label, label, torch.ones(1))).message
        ('sees_blue', 'It is blue.')
    """

    function: Callable[[Snapshot], Finding | None]
    name: str

    def update(self, snapshot: Snapshot) -> Finding | None:
        """Asks the function.

        Raises:
            InputError: It returned something else than a Finding or None.
        """
        found = self.function(snapshot)
        if found is not None and not isinstance(found, Finding):
            raise InputError(f"the detector {self.name!r} has to return a Finding or None, got {type(found).__name__}")
        return found

    def finish(self, last: Snapshot) -> Finding | None:
        """Says nothing of the end."""
        return None

    def state_dict(self) -> dict[str, Any]:
        """Returns nothing: the function's own state is not known."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Has nothing to put back."""


class Endless:
    """A user's own detector that does not judge the end of training, as one that says nothing of it."""

    def __init__(self, detector: Any) -> None:
        self.detector = detector
        self.name: str = detector.name

    def update(self, snapshot: Snapshot) -> Finding | None:
        """Asks the detector."""
        found: Finding | None = self.detector.update(snapshot)
        return found

    def finish(self, last: Snapshot) -> Finding | None:
        """Says nothing of the end."""
        return None

    def state_dict(self) -> dict[str, Any]:
        """Returns the detector's own state."""
        state: dict[str, Any] = self.detector.state_dict()
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Puts the detector's own state back."""
        self.detector.load_state_dict(state)
