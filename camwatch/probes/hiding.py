"""Is the label still given when a box is hidden?"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from camwatch.probes.composing import (
    Box,
    PredictScores,
    area,
    best_class,
    fill_border,
    fill_mean,
    scores_of,
    whole_boxes,
)

FILLS = {"mean": fill_mean, "border": fill_border}
Note = Callable[[str, list[tuple[int, Box]], Tensor], None]


def hide(
    predict: PredictScores,
    images: Tensor,
    labels: Tensor,
    boxes: Tensor,
    context: float = 0.1,
    batch_size: int = 64,
    note: Note | None = None,
) -> Tensor:
    """Asks whether the label is still given when the box is hidden, under two fills that must agree.

    The box is filled once with the mean colour of the rest of the image, once with the colours along its
    border, blended inward. Neither depends on what the box held, so nothing of it is left but its place.
    Hand over boxes that are dilated by a cell of the map's grid at least: the outline of a tight mask alone
    gives classes away.

    Args:
        images: (N, C, H, W) as ``predict`` takes them.
        labels: (N,) int.
        boxes: (N, 4).
        context: Smallest share of the image that has to be left; NaN below.
        batch_size: How many images ``predict`` is given at once.
        note: Called with each fill's name, the images and boxes that were hidden, and their scores.

    Returns:
        (N,) float32: 1 where both answers are the label, 0 where not, NaN where nothing can be hidden.

    Raises:
        InputError: Shapes do not fit, or ``predict`` returns no (N, classes) tensor.

    Example:
        >>> corner = lambda x: torch.stack([0.5 - x[:, 0, 0, 0], x[:, 0, 0, 0] - 0.5], 1)
        >>> images = torch.zeros(2, 1, 8, 8)
        >>> images[1, 0, 0, 0] = 1
        >>> hide(corner, images, torch.tensor([0, 1]), torch.tensor([[2, 2, 6, 6]]).expand(2, 4))
        tensor([1., 1.])
    """
    found = whole_boxes(images, labels, boxes)
    most = (1 - context) * images.shape[2] * images.shape[3]
    asked = [box if box is not None and area(box) < most else None for box in found]
    return _survives(predict, images, labels, asked, batch_size, note)


def hide_elsewhere(
    predict: PredictScores, images: Tensor, labels: Tensor, boxes: Tensor, batch_size: int = 64
) -> Tensor:
    """Asks the same as ``hide`` of a box of the same area outside the given one, as far away as possible.

    What a hole of that size costs by itself. The box keeps its shape where it can, becomes a strip where only
    that fits (its area then exceeds the box's by less than a row of pixels), and is NaN where none fits.

    Example:
        >>> corner = lambda x: torch.stack([0.5 - x[:, 0, 0, 0], x[:, 0, 0, 0] - 0.5], 1)
        >>> images = torch.zeros(2, 1, 8, 8)
        >>> images[1, 0, 0, 0] = 1
        >>> hide_elsewhere(corner, images, torch.tensor([0, 1]), torch.tensor([[5, 5, 8, 8], [0, 0, 8, 7]]))
        tensor([1., nan])
    """
    size = (int(images.shape[-2]), int(images.shape[-1]))
    placed = [None if box is None else _elsewhere(box, size) for box in whole_boxes(images, labels, boxes)]
    return _survives(predict, images, labels, placed, batch_size)


def _survives(
    predict: PredictScores,
    images: Tensor,
    labels: Tensor,
    boxes: Sequence[Box | None],
    batch_size: int,
    note: Note | None = None,
) -> Tensor:
    """Returns (N,): 1 where the label is given with the box hidden under both fills, NaN without a box."""
    result = torch.full((len(images),), math.nan)
    asked = [(i, box) for i, box in enumerate(boxes) if box is not None]
    index = torch.tensor([i for i, _ in asked], dtype=torch.int64)
    kept = torch.ones(len(asked), dtype=torch.bool)
    for name, fill in FILLS.items():
        scores = scores_of(predict, [fill(images[i], box) for i, box in asked], batch_size)
        kept &= best_class(scores) == labels.cpu()[index]
        if note is not None:
            note(name, asked, scores)
    result[index] = kept.float()
    return result


def _elsewhere(box: Box, size: tuple[int, int]) -> Box | None:
    """Returns a box of the same area beside ``box``: of its shape where that fits, then the farthest."""
    (x1, y1, x2, y2), (height, width) = box, size
    best: tuple[tuple[bool, float], Box] | None = None
    for left, top, right, bottom in (
        (0, 0, x1, height),
        (x2, 0, width, height),
        (0, 0, width, y1),
        (0, y2, width, height),
    ):
        wide, high = min(x2 - x1, right - left), min(y2 - y1, bottom - top)
        if not wide or not high:
            continue
        if wide < x2 - x1:
            high = math.ceil(area(box) / wide)
        elif high < y2 - y1:
            wide = math.ceil(area(box) / high)
        if wide > right - left or high > bottom - top:
            continue
        for x in (left, right - wide):
            for y in (top, bottom - high):
                far = math.hypot(2 * x + wide - x1 - x2, 2 * y + high - y1 - y2)
                rank = ((wide, high) == (x2 - x1, y2 - y1), far)
                if best is None or rank > best[0]:
                    best = rank, (x, y, x + wide, y + high)
    return None if best is None else best[1]
