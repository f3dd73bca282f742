"""When snapshots are taken, how many there will be, and at which of them the probes run."""

from __future__ import annotations

from collections.abc import Callable, Container
from dataclasses import dataclass

from camwatch.errors import check_at_least


@dataclass(frozen=True)
class Schedule:
    """In which epochs, or after which steps, a trainer's monitor takes snapshots.

    Attributes:
        every_n_epochs: In every n-th epoch.
        every_n_steps: After every n-th optimizer step instead.
        epochs: In these epochs instead.
        probe_every: The behavioural tests run at every n-th snapshot.

    Raises:
        InputError: A number is no integer of 1 or more.

    Example:
        >>> schedule = Schedule(every_n_epochs=2)
        >>> [epoch for epoch in range(6) if schedule.is_due(epoch)], schedule.planned(6)
        ([1, 3, 5], 3)
    """

    every_n_epochs: int = 1
    every_n_steps: int | None = None
    epochs: Container[int] | None = None
    probe_every: int = 1

    def __post_init__(self) -> None:
        check_at_least(1, every_n_epochs=self.every_n_epochs, probe_every=self.probe_every)
        if self.every_n_steps is not None:
            check_at_least(1, every_n_train_steps=self.every_n_steps)

    def is_due(self, epoch: int) -> bool:
        """Whether a snapshot is due at the end of an epoch, from 0."""
        if self.every_n_steps is not None:
            return False
        return epoch in self.epochs if self.epochs is not None else (epoch + 1) % self.every_n_epochs == 0

    def is_due_between(self, last: int, step: int) -> bool:
        """Whether a snapshot by steps is due after a step, the last one having been taken at another."""
        return self.every_n_steps is not None and step // self.every_n_steps > last // self.every_n_steps

    def planned(self, epochs: int, inside: Callable[[int], int] = lambda epoch: 1) -> int:
        """Returns how many snapshots a number of epochs has, each counting as often as ``inside(epoch)``."""
        return sum(inside(epoch) for epoch in range(epochs) if self.is_due(epoch))

    def probes(self, look: int) -> bool:
        """Whether the behavioural tests run at the look-th snapshot, from 0."""
        return look % self.probe_every == 0
