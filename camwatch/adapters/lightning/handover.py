"""From a spawned process to the one that started it, where the user's objects are."""

from __future__ import annotations

import os
import tempfile
import uuid
import weakref
from pathlib import Path
from typing import Any

from camwatch.adapters.states import read_state, write_state


class StateFile:
    """A file that an object and its copies in child processes know: the child leaves its state, the parent finds it.

    Launchers that spawn or fork send back weights and metrics, but no callback.

    Example:
        >>> StateFile().receive() is None
        True
    """

    def __init__(self) -> None:
        self._path = Path(tempfile.gettempdir()) / f"camwatch-{uuid.uuid4().hex}.pt"
        self._process = os.getpid()
        weakref.finalize(self, _remove, self._path, self._process)

    def send(self, state: dict[str, Any]) -> None:
        """Leaves the state, in a child process of the one that the original was made in; elsewhere nothing."""
        if os.getppid() == self._process:
            write_state(self._path, state)

    def receive(self) -> dict[str, Any] | None:
        """Returns what a child left, once; None where there is nothing."""
        if os.getpid() != self._process or not self._path.exists():
            return None
        state = read_state(self._path)
        self._path.unlink()
        return state


def _remove(path: Path, process: int) -> None:
    if os.getpid() == process:
        path.unlink(missing_ok=True)
