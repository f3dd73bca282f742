"""One worker thread for rendering, encoding and writing, so that training does not wait for them."""

from __future__ import annotations

import atexit
import threading
import time
import warnings
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any

from camwatch.errors import CamwatchWarning

Job = tuple[Callable[..., Any], tuple[Any, ...]]


class WarningQueue:
    """What went wrong on other threads, to be told on this one: the first of each kind, later ones are counted.

    Example:
        >>> queue = WarningQueue()
        >>> queue.add("disk", "the disk is full")
        >>> queue.add("disk", "the disk is full")
        >>> queue.take(), queue.take()
        (['the disk is full. Further ones of this kind are not reported'], [])
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[str, int] = {}
        self._messages: list[str] = []

    def add(self, kind: str, message: str) -> None:
        """Keeps a message if it is the first of its kind."""
        with self._lock:
            self._counts[kind] = self._counts.get(kind, 0) + 1
            if self._counts[kind] == 1:
                self._messages.append(f"{message}. Further ones of this kind are not reported")

    def take(self) -> list[str]:
        """Returns the messages since the last call."""
        with self._lock:
            messages, self._messages = self._messages, []
        return messages


class BackgroundWriter:
    """Runs jobs in the order given, on one thread that exists only while there are any.

    Jobs never raise: the first error of each kind is handed back as a ``CamwatchWarning`` to the thread that
    calls next, later ones of the same kind are counted.

    The caller never waits without bound. When ``capacity`` jobs are pending, ``submit`` waits up to
    ``patience`` seconds for a place; after that the new job is dropped with a warning, and so are further
    ones, without waiting, until the worker has finished a job. Order is kept, and what is pending is written.

    Copies and pickles carry the settings only: no lock, no thread, no pending job. At the end of the
    interpreter what is pending gets up to 30 seconds.

    Args:
        capacity: Jobs that may be pending, the one that runs included.
        patience: Seconds that ``submit`` waits at most.
        queue: Where errors are kept until a caller can be warned; writers that share them report a fault once.

    Example:
        >>> writer, done = BackgroundWriter(), []
        >>> for i in range(3):
        ...     writer.submit(done.append, i)
        >>> writer.flush()
        True
        >>> done
        [0, 1, 2]
    """

    def __init__(self, capacity: int = 8, patience: float = 10.0, queue: WarningQueue | None = None) -> None:
        self.capacity, self.patience = capacity, patience
        self._queue = queue or WarningQueue()
        self._changed = threading.Condition()
        self._jobs: deque[Job] = deque()
        self._thread: threading.Thread | None = None
        self._stalled = False
        _writers.add(self)

    def submit(self, job: Callable[..., Any], *args: Any) -> None:
        """Runs ``job(*args)`` after all jobs before it."""
        with self._changed:
            if not self._stalled:
                self._stalled = not self._changed.wait_for(self._has_place, self.patience)
            if self._has_place():
                self._jobs.append((job, args))
                self._start()
            else:
                self._queue.add(
                    "full",
                    f"writing is too slow: {self.capacity} jobs are pending for {self.patience:g} s, new ones are "
                    "dropped until it goes on",
                )
        self._hand_back()

    def flush(self, timeout: float = 60.0) -> bool:
        """Waits until all jobs are done and the thread has ended; False if that took longer."""
        end = time.monotonic() + timeout
        with self._changed:
            done = self._changed.wait_for(lambda: not self._jobs, timeout)
            thread = self._thread
        if done and thread is not None and thread is not threading.current_thread():
            thread.join(max(0.0, end - time.monotonic()))
        self._hand_back()
        return done

    def close(self, timeout: float = 60.0) -> None:
        """Flushes, and drops with a warning what is still pending then. A later job starts anew."""
        if not self.flush(timeout):
            with self._changed:
                dropped = len(self._jobs) - 1
                while len(self._jobs) > 1:
                    self._jobs.pop()
                self._queue.add(
                    "closed",
                    f"writing did not end within {timeout:g} s: one job is left running, {dropped} were dropped",
                )
            self._hand_back()

    def _has_place(self) -> bool:
        return len(self._jobs) < self.capacity

    def _start(self) -> None:
        if len(self._jobs) > 1:
            return
        # A daemon: a logger that hangs must not keep the interpreter from ending.
        self._thread = threading.Thread(target=self._work, name="camwatch-writer", daemon=True)
        try:
            self._thread.start()
        except RuntimeError:  # no further thread, or the interpreter is ending: the caller does it
            self._thread = None
            self._work()

    def _work(self) -> None:
        while True:
            # The job that runs stays at the head, so that an empty queue means that all is done.
            with self._changed:
                job, args = self._jobs[0]
            try:
                job(*args)
            except BaseException as error:  # a SystemExit, too, must not end the thread before the jobs behind it
                name = getattr(job, "__qualname__", type(job).__name__)
                # A full disk or a read-only folder is one fault, whichever job meets it.
                number = getattr(error, "errno", None)
                kind = f"{type(error).__name__} {name if number is None else number}"
                self._queue.add(kind, f"{name} failed and training goes on: {type(error).__name__}: {error}")
            del job, args
            with self._changed:
                self._jobs.popleft()
                self._stalled = False
                self._changed.notify_all()
                if not self._jobs:
                    return

    def _hand_back(self) -> None:
        for message in self._queue.take():
            warnings.warn(message, CamwatchWarning, stacklevel=3)

    def __getstate__(self) -> dict[str, Any]:
        return {"capacity": self.capacity, "patience": self.patience}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]


_writers: weakref.WeakSet[BackgroundWriter] = weakref.WeakSet()


@atexit.register
def _finish() -> None:
    end = time.monotonic() + 30
    for writer in list(_writers):
        writer.flush(max(0.0, end - time.monotonic()))
