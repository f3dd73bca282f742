"""The mean of a measure over images, batches and processes: what all torchmetrics classes here share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor
from torchmetrics import Metric

from camwatch.errors import InputError
from camwatch.metrics.preparation import to_double

# Sums are integers in units of 2^-32: so they are the same, to the last bit, in whatever order and on
# however many processes the images come, and on devices without doubles.
UNIT = 2.0**-32


class MeanOverImages(Metric):
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
        else:
            labels = check_labels(labels, len(values), self.num_classes)
        scored = values.isfinite()
        units = (values.where(scored, 0) / UNIT).round().long()
        sums.index_add_(1, labels.to(sums.device), torch.stack([units, scored.long(), (~scored).long()]))

    def compute(self) -> Tensor:
        """Returns the mean over the scored images; with ``num_classes``, over the classes of their means."""
        return self.per_class().nanmean()

    def per_class(self) -> Tensor:
        """Returns (num_classes,): each class's mean on this process, NaN for one without a scored image."""
        total, scored, _ = getattr(self, self._sums)
        means: Tensor = to_double(total) * UNIT / scored
        return means.float()

    @property
    def n_scored(self) -> int:
        """How many images of this process the mean is over."""
        return int(getattr(self, self._sums)[1].sum())

    @property
    def n_undefined(self) -> int:
        """How many images of this process were excluded, because their number is undefined."""
        return int(getattr(self, self._sums)[2].sum())


def check_labels(labels: Tensor | None, n: int, num_classes: int) -> Tensor:
    """Returns the labels of n images.

    Raises:
        InputError: They are missing, of another shape or no class indices below ``num_classes``.

    Example:
        >>> check_labels(torch.tensor([2, 0]), n=2, num_classes=3)
        tensor([2, 0])
    """
    if labels is None or labels.shape != (n,) or labels.is_floating_point():
        got = "none" if labels is None else f"{labels.dtype} of shape {tuple(labels.shape)}"
        raise InputError(f"with num_classes={num_classes}, expected {n} labels, got {got}")
    if n and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
        raise InputError(f"expected labels from 0 to {num_classes - 1}, got {int(labels.min())} to {int(labels.max())}")
    return labels.long()
