"""Which score is explained: from a model's output and a target to one or several scores per image."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from camwatch.cam.model.nested import tensors
from camwatch.errors import TargetError

Target = str | int | Tensor | Callable[[Any], Tensor]  # a PerImage is such a callable
SCORE_KEYS = ("logits", "out", "scores", "prediction", "predictions", "preds", "y_hat")


class PerImage(ABC):
    """A callable on the model's output that has a part for each image."""

    @abstractmethod
    def __call__(self, output: Any) -> Tensor:
        """Returns the scores (N,) or (N, K)."""

    @abstractmethod
    def rows(self, rows: slice) -> PerImage:
        """Returns the target of some of the images."""

    @abstractmethod
    def resolved(self, output: Any) -> PerImage:
        """Returns the target that asks for the same classes whatever the model returns next."""


def select(target: Target, rows: slice) -> Target:
    """Returns the target of some of the images."""
    if isinstance(target, PerImage):
        return target.rows(rows)
    return target[rows] if isinstance(target, Tensor) else target


def resolve_target(output: Any, target: Target) -> Target:
    """Returns the target that asks for the same classes whatever the model returns next.

    Example:
        >>> resolve_target(torch.tensor([[0.1, 2.0]]), "predicted")
        tensor([1])
    """
    if isinstance(target, PerImage):
        return target.resolved(output)
    return predicted_classes(output) if isinstance(target, str) else target


def class_scores(output: Any) -> Tensor:
    """Finds the class scores in what a model returned: (N, C), or (N, C, H, W) for segmentation.

    A tensor is taken as it is (one logit per image may be (N,)); in a mapping or dataclass the fields
    ``logits``, ``out``, ``scores`` and the like go first, then the first floating tensor.

    Raises:
        TargetError: The output holds no floating tensor.

    Example:
        >>> class_scores({"loss": torch.tensor(1.0), "logits": torch.zeros(2, 5)}).shape
        torch.Size([2, 5])
    """
    if isinstance(output, Tensor):
        scores: Tensor | None = output if output.is_floating_point() else None
    elif isinstance(output, list) and all(isinstance(item, Mapping) for item in output):
        scores = None  # a detector's boxes per image: which of them is explained, a callable must say
    else:
        named = output if isinstance(output, Mapping) else _fields(output)
        keyed = [named[key] for key in SCORE_KEYS if isinstance(named.get(key), Tensor)]
        floating = [t for t in tensors(output) if t.is_floating_point() and t.ndim >= 1]
        scores = next(iter([*keyed, *floating]), None)
    if scores is None:
        kind = f"a {output.dtype} tensor" if isinstance(output, Tensor) else type(output).__name__
        raise TargetError(
            f"the model's output is {kind} without a floating tensor of class scores; pass target= as a "
            f"callable from this output to scores (N,), or forward= as a callable (model, images) -> scores"
        )
    return scores.unsqueeze(1) if scores.ndim == 1 else scores


def _fields(output: Any) -> dict[str, Any]:
    if not dataclasses.is_dataclass(output):
        return {}
    return {field.name: getattr(output, field.name) for field in dataclasses.fields(output)}


def two_sided(scores: Tensor) -> Tensor:
    """Gives a one-logit head its second side: (N, 1, ...) -> (N, 2, ...), class 0 scored by minus the logit."""
    return torch.cat([-scores, scores], dim=1) if scores.shape[1] == 1 else scores


def predicted_classes(output: Any) -> Tensor:
    """Returns the (N,) classes with the highest score; for segmentation the class of most pixels.

    Example:
        >>> predicted_classes(torch.tensor([[0.1, 2.0], [3.0, 0.0]]))
        tensor([1, 0])
    """
    winners = two_sided(class_scores(output).detach()).argmax(1)
    return winners if winners.ndim == 1 else winners.flatten(1).mode(dim=1).values


def probabilities(output: Any) -> Tensor:
    """Returns (N, C) class probabilities: softmax, sigmoid for one logit; pixels are averaged.

    Example:
        >>> probabilities(torch.tensor([[0.0]]))
        tensor([[0.5000, 0.5000]])
    """
    scores = class_scores(output).detach().float()
    if scores.shape[1] == 1:
        positive = scores.sigmoid()
        both = torch.cat([1 - positive, positive], dim=1)
    else:
        both = scores.softmax(1)
    return both.flatten(2).mean(2) if both.ndim > 2 else both


def check_target(target: Target, images: int) -> None:
    """Raises TargetError for a target that cannot be used, before any forward pass.

    Args:
        target: "predicted", a class index, (N,) or (N, K) integers, (N, classes) bool or float, or a callable.
        images: N, the number of images.
    """
    valid = (
        "valid are 'predicted', a class index, integers (N,) or (N, K), a multi-hot bool or float matrix "
        "(N, classes), and a callable on the model's output"
    )
    if isinstance(target, str):
        if target != "predicted":
            raise TargetError(f"unknown target {target!r}: {valid}")
    elif isinstance(target, Tensor):
        if target.ndim not in (1, 2) or len(target) != images:
            raise TargetError(f"the target has shape {tuple(target.shape)} for {images} images: {valid}, N = {images}")
        if target.ndim == 1 and (target.is_floating_point() or target.dtype == torch.bool):
            raise TargetError(f"one class per image must be integers, got {target.dtype}: {valid}")
    elif isinstance(target, bool) or not (isinstance(target, int) or callable(target)):
        raise TargetError(f"the target is {type(target).__name__}: {valid}")


def score(output: Any, target: Target) -> Tensor:
    """Returns the scores that a target names: (N,), or (N, K) for K classes per image.

    A logit is scored, never a probability: the softmax saturates and mixes the classes. For segmentation
    a class's score is the sum over the pixels predicted as that class (all pixels where there are none).

    Raises:
        TargetError: An index out of range, a matrix that fits no reading, or an unusable callable.

    Example:
        >>> score(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([1, 0]))
        tensor([2., 3.])
    """
    if callable(target):
        scores = target(output)
        if not isinstance(scores, Tensor) or scores.ndim not in (0, 1, 2):
            arrived = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
            raise TargetError(f"the target callable must return scores (N,) or (N, K), got {arrived}")
        return scores
    scores = two_sided(class_scores(output))
    classes = scores.shape[1]
    if isinstance(target, str):
        index = predicted_classes(output)
    elif isinstance(target, int):
        index = torch.full((len(scores),), target, device=scores.device)
    else:
        target = target.to(scores.device)
        if target.ndim == 2 and (target.is_floating_point() or target.dtype == torch.bool):
            return _mean_of_positives(scores, target)
        index = target.long()
        if index.ndim == 2 and index.shape[1] == classes and bool(((index == 0) | (index == 1)).all()):
            raise TargetError(
                f"an integer matrix of 0 and 1 with shape {tuple(index.shape)} is ambiguous for {classes} "
                f"classes: pass .bool() for a multi-hot target, or K different class indices per image"
            )
    if bool(((index < 0) | (index >= classes)).any()):
        wrong = sorted(set(index.flatten().tolist()) - set(range(classes)))
        raise TargetError(f"target {wrong[0]} is out of range: the model scores {classes} classes, 0 to {classes - 1}")
    return _pick(scores, index)


def _pick(scores: Tensor, index: Tensor) -> Tensor:
    rows = torch.arange(len(scores), device=scores.device)
    if index.ndim == 2:
        return torch.stack([_pick(scores, column) for column in index.unbind(1)], dim=1)
    chosen = scores[rows, index]
    if chosen.ndim == 1:
        return chosen
    mask = scores.detach().argmax(1) == index.view(-1, *[1] * (chosen.ndim - 1))
    empty = ~mask.flatten(1).any(1)
    mask = mask | empty.view(-1, *[1] * (chosen.ndim - 1))
    return (chosen * mask).flatten(1).sum(1)


def _mean_of_positives(scores: Tensor, positives: Tensor) -> Tensor:
    if positives.shape[1] != scores.shape[1]:
        raise TargetError(
            f"a multi-hot target needs one column per class: got {positives.shape[1]} columns, the model "
            f"scores {scores.shape[1]} classes"
        )
    weights = positives.to(scores.dtype)
    totals = weights.sum(1)
    if bool((totals <= 0).any()):
        raise TargetError(f"row {int((totals <= 0).nonzero()[0])} of the multi-hot target has no positive class")
    if scores.ndim > 2:
        scores = scores.flatten(2).sum(2)
    return (scores * weights).sum(1) / totals
