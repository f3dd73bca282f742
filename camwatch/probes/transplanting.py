"""Where on the image does another image's patch carry the answer over?"""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass

import torch
from torch import Tensor

from camwatch.errors import InputError
from camwatch.probes.composing import Box, PredictScores, best_class, overlap, scores_of, whole_boxes
from camwatch.probes.pairing import mean_by_image, pair

LEAST = 0.05  # rate that a named window surely exceeds: on small nets .09 to .5 at a cue, at most .03 without one
SURE = 3.0  # standard errors by which it has to, which allows for the choice among windows
PAIRS = 8  # fewest for a window to be rated


@dataclass(frozen=True, eq=False)
class Transplant:
    """Where a patch of another class's image carries the answer over.

    Attributes:
        rates: (rows, columns) float32, of every window: how much of the way from the image's own scores to the
            donor's its patch goes; 1 is all of it, 0 nothing. NaN where too few pairs could be asked.
        cell: (row, column) of the first cell of the named place, None where none stands out.
        box: x1, y1, x2, y2 in pixels: the cells of the highest-rated window that carry it, whether it is named or
            not; None where no window could be asked.
        flipped: (N,) float32, 1 where that window's patch turned the image's answer.
    """

    rates: Tensor
    cell: tuple[int, int] | None
    box: Box | None
    flipped: Tensor


def transplant(
    predict: PredictScores,
    images: Tensor,
    labels: Tensor,
    grid: tuple[int, int] = (8, 8),
    boxes: Tensor | None = None,
    batch_size: int = 64,
    seed: int = 0,
) -> Transplant:
    """Names a cue without regions: the window whose patch of another class's image moves the answers most.

    Every image is paired with one of another class (both answered rightly), and a window of 2 x 2 cells is slid
    over a grid, cell by cell, so that a cue across an edge of the grid lies whole in one of them. The second
    image's patch is moved onto the first at the same place. A window's rate is the mean rise of the donor class's
    score over the image's own class's, divided by the rise that the whole second image would make; a patch can go
    far without turning an answer. The best window is named when its rate is surely above .05, and twice the
    lower quartile of all windows: what is everywhere has no place.

    An object that always lies at one place is a cue too, as far as this test can tell, and one at a varying place
    may be: hand over ``boxes`` to leave out the windows that touch either image's region.

    Args:
        predict: As elsewhere; scores ought to be logits, which do not saturate.
        images: (N, C, H, W) as ``predict`` takes them.
        labels: (N,) int.
        grid: (rows, columns) of cells; (rows - 1) x (columns - 1) x N forwards are run.
        boxes: (N, 4), what to leave out; None: nothing.
        batch_size: How many images ``predict`` is given at once.
        seed: Of the pairing.

    Raises:
        InputError: Shapes do not fit, the grid is finer than the image, or ``predict`` returns no
            (N, classes) tensor.

    Example:
        >>> corner = lambda x: torch.stack([0.5 - x[:, 0, 0, 0], x[:, 0, 0, 0] - 0.5], 1)
        >>> images = torch.zeros(16, 1, 8, 8)
        >>> images[8:, 0, 0, 0] = 1
        >>> found = transplant(corner, images, torch.arange(16) // 8, grid=(4, 4))
        >>> found.cell, found.box, float(found.rates[0, 0]), float(found.rates[0, 1])
        ((0, 0), (0, 0, 2, 2), 1.0, 0.0)
    """
    found = whole_boxes(images, labels, torch.zeros(len(images), 4) if boxes is None else boxes)
    size = (int(images.shape[2]), int(images.shape[3]))
    grid = rows, columns = _checked(grid, size)
    cpu = labels.cpu()
    plain = scores_of(predict, list(images), batch_size)
    right = best_class(plain) == cpu
    allowed = (cpu[:, None] != cpu[None, :]) & right[:, None] & right[None, :]
    chosen = pair(torch.where(allowed, 0.0, math.inf), 1, seed)

    def move(box: Box) -> _Moved | None:
        asked = [(i, j) for i, j in chosen if not any(overlap(box, b) for b in (found[i], found[j]) if b)]
        if len(asked) < PAIRS:
            return None
        x1, y1, x2, y2 = box
        composed = [images[i].clone() for i, _ in asked]
        for canvas, (_, j) in zip(composed, asked, strict=True):
            canvas[:, y1:y2, x1:x2] = images[j, :, y1:y2, x1:x2]
        takers, givers = torch.tensor(asked).T
        after = scores_of(predict, composed, batch_size)
        before = _lead(plain[takers], cpu[givers], cpu[takers])
        rise = _lead(after, cpu[givers], cpu[takers]) - before
        needed = float((_lead(plain[givers], cpu[givers], cpu[takers]) - before).mean())
        turned = mean_by_image(takers, best_class(after) == cpu[givers], len(images))
        return _Moved(float(rise.mean()) / needed, float(rise.std()) / needed / math.sqrt(len(asked)), turned)

    down, across = min(2, rows), min(2, columns)
    windows = [(r, c) for r in range(rows - down + 1) for c in range(columns - across + 1)]
    moved = {w: m for w in windows if (m := move(_cells(w, (down, across), grid, size))) is not None}
    rates = torch.full((rows - down + 1, columns - across + 1), math.nan)
    for window, one in moved.items():
        rates[window] = one.rate
    if not moved:
        return Transplant(rates, None, None, torch.full((len(images),), math.nan))
    best = max(moved, key=lambda window: moved[window].rate)
    # Of the window, the cells that carry their share: a cue that lies in one cell is shown as one cell.
    inner = [(best[0] + r, best[1] + c) for r in range(down) for c in range(across)]
    carried = {cell: m.rate for cell in inner if (m := move(_cells(cell, (1, 1), grid, size))) is not None}
    kept = [cell for cell, rate in carried.items() if rate > moved[best].rate / 8] or inner
    (r1, c1), (r2, c2) = (tuple(map(edge, zip(*kept, strict=True))) for edge in (min, max))
    sure = moved[best].rate - SURE * moved[best].error > LEAST
    usual = float(torch.tensor([one.rate for one in moved.values()]).quantile(0.25)) if len(moved) > 1 else 0.0
    return Transplant(
        rates=rates,
        cell=(r1, c1) if sure and moved[best].rate > 2 * usual else None,
        box=_cells((r1, c1), (r2 - r1 + 1, c2 - c1 + 1), grid, size),
        flipped=moved[best].turned,
    )


@dataclass(frozen=True, eq=False)
class _Moved:
    """One window: its rate, the rate's standard error, and (N,) whose answers were turned."""

    rate: float
    error: float
    turned: Tensor


def _checked(grid: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
    try:
        rows, columns = map(operator.index, grid)
    except (TypeError, ValueError):
        rows = columns = 0
    if not (1 <= rows <= size[0] and 1 <= columns <= size[1]):
        raise InputError(f"expected a grid (rows, columns) between (1, 1) and the image's {size}, got {grid!r}")
    return rows, columns


def _lead(scores: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Returns (N,): the score of one class less that of another."""
    return (scores.gather(1, first[:, None]) - scores.gather(1, second[:, None]))[:, 0]


def _cells(first: tuple[int, int], span: tuple[int, int], grid: tuple[int, int], size: tuple[int, int]) -> Box:
    """Returns the box of some cells of a grid over an image of (H, W)."""
    (row, column), (down, across), (rows, columns), (height, width) = first, span, grid, size
    return (
        column * width // columns,
        row * height // rows,
        (column + across) * width // columns,
        (row + down) * height // rows,
    )
