"""Agreement between maps as torchmetrics: of the images of a class, and of the classes of an image."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from camwatch.errors import InputError
from camwatch.metrics.agreement import between_class_agreement, standardized
from camwatch.metrics.cells import precise
from camwatch.metrics.mean import UNIT, MeanOverImages, check_labels


class BetweenClassAgreement(MeanOverImages):
    """Mean of ``between_class_agreement``: near 1 the maps are the same whatever the class, and explain none.

    Example:
        >>> metric = BetweenClassAgreement()
        >>> metric.update(torch.tensor([[[[1.0, 0.0]], [[2.0, 0.0]]], [[[1.0, 0.0]], [[0.0, 2.0]]]]))
        >>> metric.compute()
        tensor(0.)
    """

    higher_is_better = False

    def __init__(self, num_classes: int | None = None, **kwargs: Any) -> None:
        super().__init__(num_classes, {}, **kwargs)

    def update(self, maps: Tensor, labels: Tensor | None = None) -> None:
        """Adds a batch.

        Args:
            maps: (N, K, h, w) raw maps of K >= 2 classes, the label's first.
            labels: (N,) int64; needed with ``num_classes``.
        """
        self._add(between_class_agreement(maps), labels)


class WithinClassAgreement(Metric):
    """The mean similarity of two maps of one class, over all pairs of its images; then over the classes.

    High where the evidence lies at the same place in every image: for centred objects, or for a planted cue.
    Equal to the class means of ``within_class_agreement`` over all images at once, but no map is kept: the
    pairs follow from one sum per class and cell. A map without contrast is left out, and so is a class with
    fewer than two maps.

    Args:
        num_classes: How many classes there are.
        grid: (h, w) of the maps.
        kwargs: Passed on to ``torchmetrics.Metric``.

    Example:
        >>> metric = WithinClassAgreement(num_classes=2, grid=(1, 3))
        >>> maps = torch.tensor([[[1.0, 0.0, 0.0]], [[3.0, 0.0, 0.0]], [[0.0, 1.0, 0.0]]])
        >>> metric.update(maps, torch.tensor([0, 0, 1]))
        >>> metric.compute(), metric.per_class()
        (tensor(1.), tensor([1., nan]))
    """

    is_differentiable = False
    higher_is_better = None
    full_state_update = False
    sums: Tensor
    counts: Tensor

    def __init__(self, num_classes: int, grid: tuple[int, int], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if num_classes < 1 or min(grid) < 1:
            raise InputError(f"expected at least 1 class and a grid (h, w) of 1x1, got {num_classes} and {grid}")
        self.num_classes, self.grid = num_classes, (int(grid[0]), int(grid[1]))
        cells = self.grid[0] * self.grid[1]
        self.add_state("sums", torch.zeros(num_classes, cells, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("counts", torch.zeros(2, num_classes, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, maps: Tensor, labels: Tensor) -> None:
        """Adds a batch.

        Args:
            maps: (N, h, w) raw maps.
            labels: (N,) int64.
        """
        if tuple(maps.shape[1:]) != self.grid:
            raise InputError(f"expected maps of shape (N, {self.grid[0]}, {self.grid[1]}), got {tuple(maps.shape)}")
        labels = check_labels(labels, len(maps), self.num_classes).to(self.sums.device)
        unit = standardized(maps).to(self.sums.device)
        sound = unit.isfinite().all(1)
        units = (unit.masked_fill(~sound[:, None], 0) / UNIT).round().long()
        self.sums.index_add_(0, labels, units)
        self.counts.index_add_(1, labels, torch.stack([sound.long(), (~sound).long()]))

    def compute(self) -> Tensor:
        """Returns the mean over the classes."""
        return self.per_class().nanmean()

    def per_class(self) -> Tensor:
        """Returns (num_classes,): each class's mean over its pairs on this process, NaN for one without a pair."""
        # Rows have mean 0 and variance 1: the products of all pairs are the square of the sum, less each with itself.
        n = precise(self.counts[0])
        pairs = (precise(self.sums) * UNIT).square().mean(1) - n
        return (pairs / (n * (n - 1))).masked_fill(n < 2, torch.nan).clamp(-1, 1).float()

    @property
    def n_undefined(self) -> int:
        """How many images of this process were left out, because their map has no contrast."""
        return int(self.counts[1].sum())
