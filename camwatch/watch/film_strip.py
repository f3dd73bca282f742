"""The maps that the film strip shows: a bounded number, however long the run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from camwatch.pictures.film_sheet import CELL, COLUMNS, ROWS, Frame, film_sheet
from camwatch.pictures.sheets import SheetImages


class FilmStrip:
    """Keeps the maps that a film strip shows: at most 16 images at 12 moments, however long the run.

    The moments are the first, the last, and every k-th between, where k is the smallest power of two that
    leaves at most 12. They follow from the number of snapshots alone, so that a resumed run keeps the same.

    ``frames`` is never changed in place: :func:`film_sheet` may draw it in another thread while the next
    snapshot is added.

    Example:
        >>> strip = FilmStrip()
        >>> for step in range(14):
        ...     strip.add(epoch=step, global_step=10 * step, maps=torch.rand(4, 7, 7))
        >>> [frame.epoch for frame in strip.frames]
        [0, 2, 4, 6, 8, 10, 12, 13]
    """

    def __init__(self) -> None:
        self.count = 0
        self.frames: tuple[Frame, ...] = ()

    def add(self, epoch: int, global_step: int, maps: Tensor, correct: Tensor | None = None) -> None:
        """Adds a snapshot: maps (n, h, w) and correct (n,) bool of the shown images; the first 16 are kept.

        Maps finer than a cell of the strip are averaged down to it.
        """
        kept = maps[:ROWS].detach().to("cpu", torch.float32, copy=True)
        grid = (min(kept.shape[-2], CELL), min(kept.shape[-1], CELL))
        if grid != kept.shape[-2:]:
            kept = F.adaptive_avg_pool2d(kept[:, None], grid)[:, 0]
        right = None if correct is None else correct[:ROWS].detach().to("cpu", torch.bool, copy=True)
        columns = set(shown_columns(self.count + 1))
        added = (*self.frames, Frame(self.count, epoch, global_step, kept, right))
        self.frames = tuple(frame for frame in added if frame.index in columns)
        self.count += 1

    def render(self, images: SheetImages, title: str = "film strip") -> Tensor:
        """Draws the strip as it stands; see :func:`film_sheet`."""
        return film_sheet(self.frames, images, title)

    def state_dict(self) -> dict[str, Any]:
        """Returns plain types and tensors."""
        return {"count": self.count, "frames": [dict(vars(frame)) for frame in self.frames]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over what ``state_dict`` returned."""
        self.count = int(state["count"])
        self.frames = tuple(Frame(**frame) for frame in state["frames"])


def shown_columns(count: int) -> list[int]:
    """Returns which of ``count`` snapshots the strip shows: first, last, and evenly spaced ones between.

    Example:
        >>> shown_columns(12), shown_columns(13)
        ([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11], [0, 2, 4, 6, 8, 10, 12])
    """
    step = 1
    while len(columns := sorted({*range(0, count, step), count - 1})) > COLUMNS:
        step *= 2
    return columns
