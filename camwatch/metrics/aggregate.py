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

from torch import Tensor

from camwatch.metrics import faithfulness, functional
from camwatch.metrics.faithfulness import SHARES, Predict
from camwatch.metrics.mean import MeanOverImages
from camwatch.metrics.perturbation import Fill
from camwatch.regions import Regions


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

    _function = staticmethod(functional.relevance_mass_accuracy)


class RelevanceRankAccuracy(_Localization):
    """Mean of ``relevance_rank_accuracy``."""

    _function = staticmethod(functional.relevance_rank_accuracy)


class RegionAUROC(_Localization):
    """Mean of ``region_auroc``."""

    _function = staticmethod(functional.region_auroc)


class Lift(_Localization):
    """Mean of ``lift``."""

    _function = staticmethod(functional.lift)


class Skill(_Localization):
    """Mean of ``skill``."""

    _function = staticmethod(functional.skill)


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

    _function = staticmethod(functional.pointing_game)

    def __init__(self, tolerance: float = 0.0, num_classes: int | None = None, **kwargs: Any) -> None:
        super().__init__(num_classes, {"tolerance": tolerance}, **kwargs)


class RegionIoU(_Localization):
    """Mean of ``region_iou``."""

    _function = staticmethod(functional.region_iou)

    def __init__(self, threshold: float = 0.5, num_classes: int | None = None, **kwargs: Any) -> None:
        super().__init__(num_classes, {"threshold": threshold}, **kwargs)


class MapEntropy(MeanOverImages):
    """Mean of ``map_entropy``."""

    higher_is_better = None

    def __init__(self, num_classes: int | None = None, **kwargs: Any) -> None:
        super().__init__(num_classes, {}, **kwargs)

    def update(self, maps: Tensor, regions: Tensor | Regions | None = None, labels: Tensor | None = None) -> None:
        """Adds a batch; regions are ignored, and may be given because the others of a collection need them."""
        self._add(functional.map_entropy(maps), labels)


class _Faithfulness(MeanOverImages):
    def __init__(
        self,
        num_classes: int | None = None,
        batch_size: int = 64,
        options: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_classes, {"batch_size": batch_size, **(options or {})}, **kwargs)

    def update(self, predict: Predict, images: Tensor, maps: Tensor, targets: Tensor) -> None:
        """Adds a batch; the arguments are those of ``camwatch.metrics.faithfulness``."""
        self._add(self._function(predict, images, maps, targets, **self.options), targets)


class InsertionAUC(_Faithfulness):
    """Mean of ``insertion_auc``."""

    higher_is_better = True
    _function = staticmethod(faithfulness.insertion_auc)

    def __init__(self, steps: int = 32, fill: Fill = "blur", **kwargs: Any) -> None:
        super().__init__(options={"steps": steps, "fill": fill}, **kwargs)


class DeletionAUC(_Faithfulness):
    """Mean of ``deletion_auc``."""

    higher_is_better = False
    _function = staticmethod(faithfulness.deletion_auc)

    def __init__(self, steps: int = 32, fill: Fill = "blur", **kwargs: Any) -> None:
        super().__init__(options={"steps": steps, "fill": fill}, **kwargs)


class AverageDrop(_Faithfulness):
    """Mean of ``average_drop``."""

    higher_is_better = False
    _function = staticmethod(faithfulness.average_drop)


class AverageIncrease(_Faithfulness):
    """Mean of ``average_increase``: the share of images whose probability grows."""

    higher_is_better = True
    _function = staticmethod(faithfulness.average_increase)


class ROAD(_Faithfulness):
    """Mean of ``road``."""

    higher_is_better = True
    _function = staticmethod(faithfulness.road)

    def __init__(self, shares: Sequence[float] = SHARES, noise: float = 0.01, **kwargs: Any) -> None:
        super().__init__(options={"shares": tuple(shares), "noise": noise}, **kwargs)
