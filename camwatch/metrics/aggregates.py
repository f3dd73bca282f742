"""The measures as torchmetrics: means over images, batches and processes.

Each class is a function of ``camwatch.metrics`` and its options. Images whose number is undefined are
excluded and counted in ``n_undefined``. ``compute()`` is NaN where no image was scored.

Example:
    >>> import torch
    >>> metric = RelevanceMassAccuracy()
    >>> region = torch.tensor([[True, False]]).expand(2, 1, 2)
    >>> metric.update(torch.tensor([[[3.0, 1.0]], [[0.0, 0.0]]]), region)
    >>> metric.compute(), metric.n_scored, metric.n_undefined
    (tensor(0.7500), 1, 1)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from camwatch.errors import InputError
from camwatch.metrics.agreement import between_class_agreement, standardized
from camwatch.metrics.faithfulness import (
    SHARES,
    PredictProbabilities,
    average_drop,
    average_increase,
    deletion_auc,
    insertion_auc,
    road,
)
from camwatch.metrics.imputation import Fill
from camwatch.metrics.localization import (
    lift,
    map_entropy,
    pointing_game,
    region_auroc,
    region_iou,
    relevance_mass_accuracy,
    relevance_rank_accuracy,
    skill,
)
from camwatch.metrics.mean import UNIT, MeanOverImages, check_labels
from camwatch.metrics.preparation import to_double
from camwatch.regions.regions import Regions


class _Localization(MeanOverImages):
    higher_is_better: bool | None = True

    def __init__(self, num_classes: int | None = None, options: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        super().__init__(num_classes, options or {}, **kwargs)

    def update(self, maps: Tensor, regions: Tensor | Regions, labels: Tensor | None = None) -> None:
        """Adds a batch.

        Args:
            maps: (N, h, w) raw maps.
            regions: (N, H, W) masks, or ``Regions``.
            labels: (N,) int64; needed with ``num_classes``.
        """
        self._add(self._function(maps, regions, **self.options), labels)


class RelevanceMassAccuracy(_Localization):
    """Mean of ``relevance_mass_accuracy``."""

    _function = staticmethod(relevance_mass_accuracy)


class RelevanceRankAccuracy(_Localization):
    """Mean of ``relevance_rank_accuracy``."""

    _function = staticmethod(relevance_rank_accuracy)


class RegionAUROC(_Localization):
    """Mean of ``region_auroc``."""

    _function = staticmethod(region_auroc)


class Lift(_Localization):
    """Mean of ``lift``."""

    _function = staticmethod(lift)


class Skill(_Localization):
    """Mean of ``skill``."""

    _function = staticmethod(skill)


class PointingGame(_Localization):
    """Mean of ``pointing_game``; the literature's score is the mean over classes, with ``num_classes``.

    Example:
        >>> import torch
        >>> metric = PointingGame(num_classes=2)
        >>> maps = torch.tensor([[[1.0, 0.0]], [[1.0, 0.0]], [[0.0, 1.0]]])
        >>> region = torch.tensor([[True, False]]).expand(3, 1, 2)
        >>> metric.update(maps, region, labels=torch.tensor([0, 0, 1]))
        >>> metric.compute(), metric.per_class()
        (tensor(0.5000), tensor([1., 0.]))
    """

    _function = staticmethod(pointing_game)

    def __init__(self, tolerance: float = 0.0, num_classes: int | None = None, **kwargs: Any) -> None:
        super().__init__(num_classes, {"tolerance": tolerance}, **kwargs)


class RegionIoU(_Localization):
    """Mean of ``region_iou``."""

    _function = staticmethod(region_iou)

    def __init__(self, threshold: float = 0.5, num_classes: int | None = None, **kwargs: Any) -> None:
        super().__init__(num_classes, {"threshold": threshold}, **kwargs)


class MapEntropy(MeanOverImages):
    """Mean of ``map_entropy``."""

    higher_is_better = None

    def __init__(self, num_classes: int | None = None, **kwargs: Any) -> None:
        super().__init__(num_classes, {}, **kwargs)

    def update(self, maps: Tensor, regions: Tensor | Regions | None = None, labels: Tensor | None = None) -> None:
        """Adds a batch; regions are ignored, and may be given because the others of a collection need them."""
        self._add(map_entropy(maps), labels)


class _Faithfulness(MeanOverImages):
    def __init__(
        self,
        num_classes: int | None = None,
        batch_size: int = 64,
        options: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_classes, {"batch_size": batch_size, **(options or {})}, **kwargs)

    def update(self, predict: PredictProbabilities, images: Tensor, maps: Tensor, targets: Tensor) -> None:
        """Adds a batch; the arguments are those of ``camwatch.metrics.faithfulness``."""
        self._add(self._function(predict, images, maps, targets, **self.options), targets)


class InsertionAUC(_Faithfulness):
    """Mean of ``insertion_auc``."""

    higher_is_better = True
    _function = staticmethod(insertion_auc)

    def __init__(self, steps: int = 32, fill: Fill = "blur", **kwargs: Any) -> None:
        super().__init__(options={"steps": steps, "fill": fill}, **kwargs)


class DeletionAUC(_Faithfulness):
    """Mean of ``deletion_auc``."""

    higher_is_better = False
    _function = staticmethod(deletion_auc)

    def __init__(self, steps: int = 32, fill: Fill = "blur", **kwargs: Any) -> None:
        super().__init__(options={"steps": steps, "fill": fill}, **kwargs)


class AverageDrop(_Faithfulness):
    """Mean of ``average_drop``."""

    higher_is_better = False
    _function = staticmethod(average_drop)


class AverageIncrease(_Faithfulness):
    """Mean of ``average_increase``: the share of images whose probability grows."""

    higher_is_better = True
    _function = staticmethod(average_increase)


class ROAD(_Faithfulness):
    """Mean of ``road``."""

    higher_is_better = True
    _function = staticmethod(road)

    def __init__(self, shares: Sequence[float] = SHARES, noise: float = 0.01, **kwargs: Any) -> None:
        super().__init__(options={"shares": tuple(shares), "noise": noise}, **kwargs)


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
        n = to_double(self.counts[0])
        pairs = (to_double(self.sums) * UNIT).square().mean(1) - n
        return (pairs / (n * (n - 1))).masked_fill(n < 2, torch.nan).clamp(-1, 1).float()

    @property
    def n_undefined(self) -> int:
        """How many images of this process were left out, because their map has no contrast."""
        return int(self.counts[1].sum())
