"""Whom does the answer follow when a region is pasted onto an image of another class?"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from camwatch.probes.composing import Box, PredictScores, answer, fill_border, whole_boxes
from camwatch.probes.pairing import mean_by_image, pair

VISIBLE = 0.1  # smallest share of the image pasted onto that has to stay visible


@dataclass(frozen=True, eq=False)
class Swap:
    """Whom the answer follows when a region is pasted onto an image of another class.

    Attributes:
        region: (N,) float32, the share of an image's pastes that get the label of the pasted region.
        context: (N,) float32, the share that get the label of the image pasted onto.
        confusion: (N,) float32, the share that would get that label by confusion alone: how often it is given
            in the pastes of which neither side is of that class. NaN where there are no such pastes.
        asked: (N,) float32, how many pastes of an image were asked, NaN for none.
    """

    region: Tensor
    context: Tensor
    confusion: Tensor
    asked: Tensor


def swap(
    predict: PredictScores,
    images: Tensor,
    labels: Tensor,
    boxes: Tensor,
    only: Tensor | None = None,
    partners: int = 6,
    batch_size: int = 64,
    seed: int = 0,
) -> Swap:
    """Pastes each image's box onto images of another class and asks whom the answer follows.

    The context must not keep its own object, or a clean model would rightly follow it. So the partner's box
    is first filled with the colours along its border, then the pasted box is put over the middle of it, moved
    into the image where it would stick out, and never resized. Partners are chosen by a generator of their
    own: every image serves about equally often, and among these one whose box the pasted one covers best, so
    that little of the fill is seen.

    Args:
        images: (N, C, H, W) as ``predict`` takes them.
        labels: (N,) int.
        boxes: (N, 4), dilated as for ``hide``.
        only: (N,) bool, whose regions are pasted, such as the images answered rightly; None: all.
        partners: How many images of other classes each box is pasted onto, at most; the answers are averaged.
        batch_size: How many images ``predict`` is given at once.
        seed: Of the pairing.

    Returns:
        Rates of each image; NaN where no partner is left.

    Raises:
        InputError: Shapes do not fit, or ``predict`` returns no (N, classes) tensor.

    Example:
        >>> corner = lambda x: torch.stack([0.5 - x[:, 0, 0, 0], x[:, 0, 0, 0] - 0.5], 1)
        >>> images = torch.zeros(2, 1, 8, 8)
        >>> images[1, 0, 0, 0] = 1
        >>> swap(corner, images, torch.tensor([0, 1]), torch.tensor([[3, 3, 6, 6]]).expand(2, 4)).context
        tensor([1., 1.])
    """
    found = whole_boxes(images, labels, boxes)
    size = (int(images.shape[2]), int(images.shape[3]))
    cpu = labels.cpu()
    cost = _uncovered(found, size).masked_fill(cpu[:, None] == cpu[None, :], math.inf)
    pairs = [(i, j) for i, j in pair(cost, partners, seed) if only is None or only[i]]
    composed = []
    for i, j in pairs:
        own, other = found[i], found[j]
        assert own and other  # other pairs cost infinitely much
        x1, y1, x2, y2 = _over(own, other, size)
        canvas = fill_border(images[j], other)
        canvas[:, y1:y2, x1:x2] = images[i, :, own[1] : own[3], own[0] : own[2]]
        composed.append(canvas)
    answers = answer(predict, composed, batch_size)
    givers, takers = torch.tensor(pairs, dtype=torch.int64).view(-1, 2).T
    by_image = partial(mean_by_image, givers, n=len(images))
    counts = torch.bincount(givers, minlength=len(images)).float()
    return Swap(
        region=by_image(answers == cpu[givers]),
        context=by_image(answers == cpu[takers]),
        confusion=by_image(_confusion(answers, cpu[givers], cpu[takers])),
        asked=counts.masked_fill(counts == 0, math.nan),
    )


def _confusion(answers: Tensor, givers: Tensor, takers: Tensor) -> Tensor:
    """Returns for each paste how often its taker's class is answered where that class is on neither side."""
    rates = torch.full(answers.shape, math.nan)
    for label in torch.unique(takers):
        neither = (givers != label) & (takers != label)
        rates[takers == label] = (answers[neither] == label).float().mean()
    return rates


def _uncovered(boxes: list[Box | None], size: tuple[int, int]) -> Tensor:
    """Returns (N, N): the share of box j that box i leaves open when put over it; infinite where that cannot be."""
    x1, y1, x2, y2 = torch.tensor([box or (0, 0, 0, 0) for box in boxes]).T
    width, height = x2 - x1, y2 - y1
    area = width * height

    def along(low: Tensor, high: Tensor, length: Tensor, most: int) -> Tensor:
        """The overlap in one direction, of i (rows) put over the middle of j (columns)."""
        start = (low[None] + high[None] - length[:, None]).div(2, rounding_mode="floor").clamp(min=0)
        start = torch.minimum(start, most - length[:, None])
        return (torch.minimum(start + length[:, None], high[None]) - torch.maximum(start, low[None])).clamp(min=0)

    covered = along(x1, x2, width, size[1]) * along(y1, y2, height, size[0])
    hidden = area[:, None] + area[None] - covered
    impossible = (hidden >= (1 - VISIBLE) * size[0] * size[1]) | (area == 0)[:, None] | (area == 0)[None]
    cost: Tensor = 1 - covered / area[None]
    return cost.masked_fill(impossible, math.inf)


def _over(own: Box, other: Box, size: tuple[int, int]) -> Box:
    """Returns ``own`` moved over the middle of ``other``, as far as it stays in an image of (H, W)."""
    width, height = own[2] - own[0], own[3] - own[1]
    x = min(max((other[0] + other[2] - width) // 2, 0), size[1] - width)
    y = min(max((other[1] + other[3] - height) // 2, 0), size[0] - height)
    return x, y, x + width, y + height
