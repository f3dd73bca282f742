"""What a detector is, and a user's own function as one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from camwatch.errors import InputError
from camwatch.records import Finding, Snapshot


@runtime_checkable
class Detector(Protocol):
    """A rule over the history of snapshots."""

    name: str

    def update(self, snapshot: Snapshot) -> Finding | None:
        """Judges one more snapshot, which was measured without an error."""

    def state_dict(self) -> dict[str, Any]:
        """Returns the state as plain data that a weights-only checkpoint takes."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Puts a state back."""


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
            InputError: It returned something else than an Finding or None.
        """
        found = self.function(snapshot)
        if found is not None and not isinstance(found, Finding):
            raise InputError(f"the detector {self.name!r} has to return an Finding or None, got {type(found).__name__}")
        return found

    def state_dict(self) -> dict[str, Any]:
        """Returns nothing: the function's own state is not known."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Has nothing to put back."""
