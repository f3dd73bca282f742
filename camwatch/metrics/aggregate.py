"""The measures as torchmetrics: means over images, batches and processes.

Each class is a function of ``camwatch.metrics`` and its options. Images whose number is undefined are
excluded and counted in ``n_undefined``. ``compute()`` is NaN where no image was scored.

Example:
    >>> metric = RelevanceMassAccuracy()
    >>> region = torch.tensor([[True, False]]).expand(2, 1, 2)
    >>> metric.update(torch.tensor([[[3.0, 1.0]], [[0.0, 0.0]]]), region)
    >>> metric.compute(), metric.n_scored, metric.n_undefined
    (tensor(0.7500), 1, 1)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor
from torchmetrics import Metric

from camwatch.errors import InputError
from camwatch.metrics import faithfulness, functional
from camwatch.metrics.cells import precise
from camwatch.metrics.faithfulness import Predict
from camwatch.metrics.perturbation import Fill
from camwatch.regions import Regions

# Sums are integers in units of 2^-32: so they are the same, to the last bit, in whatever order and on
# however many processes the images come, and on devices without doubles.
_UNIT = 2.0**-32


class _MeanOverImages(Metric):
    """The mean of a function's numbers.

    Args:
        num_classes: None for the mean over images, else the number of classes for the mean over the means of
            the classes.
        options: The function's.
        kwargs: Passed on to ``torchmetrics.Metric``.
    """

    is_differentiable = False
    higher_is_better: bool | None = None
    full_state_update = False
    _function: ClassVar[Callable[..., Tensor]]

    def __init__(self, num_classes: int | None, options: Mapping[str, Any], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if num_classes is not None and num_classes < 1:
            raise InputError(f"expected num_classes of at least 1 or None, got {num_classes}")
        self.num_classes = num_classes
        self.options = dict(options)
        # A MetricCollection lets metrics share one state when theirs are equal after the first batch, which
        # two of these can be by chance. States of different names are never shared.
        words = (type(self).__name__, num_classes, *options.values())
        self._sums = "sums_" + "_".join(str(getattr(word, "__name__", word)) for word in words)
        self.add_state(self._sums, torch.zeros(3, num_classes or 1, dtype=torch.int64), dist_reduce_fx="sum")

    def _add(self, values: Tensor, labels: Tensor | None) -> None:
        sums = getattr(self, self._sums)
        values = values.to(sums.device)
        if self.num_classes is None:
            labels = torch.zeros_like(values, dtype=torch.int64)
        elif labels is None or labels.shape != values.shape:
            got = "none" if labels is None else f"shape {tuple(labels.shape)}"
            raise InputError(f"with num_classes={self.num_classes}, expected {len(values)} labels, got {got}")
        elif len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < self.num_classes:
            span = f"{int(labels.min())} to {int(labels.max())}"
            raise InputError(f"expected labels from 0 to {self.num_classes - 1}, got {span}")
        scored = values.isfinite()
        units = (values.where(scored, 0) / _UNIT).round().long()
        sums.index_add_(1, labels.to(sums.device), torch.stack([units, scored.long(), (~scored).long()]))

    def compute(self) -> Tensor:
        """Returns the mean over the scored images; with ``num_classes``, over the classes of their means."""
        return self.per_class().nanmean()

    def per_class(self) -> Tensor:
        """Returns (num_classes,): each class's mean on this process, NaN for one without a scored image."""
        total, scored, _ = getattr(self, self._sums)
        means: Tensor = precise(total) * _UNIT / scored
        return means.float()

    @property
    def n_scored(self) -> int:
        """How many images of this process the mean is over."""
        return int(getattr(self, self._sums)[1].sum())

    @property
    def n_undefined(self) -> int:
        """How many images of this process were excluded, because their number is undefined."""
        return int(getattr(self, self._sums)[2].sum())


class _Localization(_MeanOverImages):
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


class MapEntropy(_Localization):
    """Mean of ``map_entropy``; ``update`` is given regions as its neighbours in a collection are."""

    higher_is_better = None
    _function = staticmethod(lambda maps, regions: functional.map_entropy(maps))


class _Faithfulness(_MeanOverImages):
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
