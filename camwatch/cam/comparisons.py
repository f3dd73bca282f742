"""Targets with a part for each image: why this class and not that one, like what, and which boxes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from camwatch.cam.model.nested import tensors
from camwatch.cam.model.targets import PerImage, Target, class_scores, resolve_target, score, select, two_sided
from camwatch.errors import TargetError, unknown

EMBEDDING_KEYS = ("image_embeds", "embeddings", "embedding", "features", "pooler_output")


@dataclass(frozen=True, eq=False)
class Contrast(PerImage):
    """Why this class and not that one: the difference of two scores.

    Attributes:
        target: What is explained, as in ``explain``.
        against: What it is set off from, likewise; "runner-up" is the best class other than the target.

    Example:
        >>> Contrast(0, against=2)(torch.tensor([[5.0, 1.0, 3.0]]))
        tensor([2.])
        >>> Contrast("predicted")(torch.tensor([[5.0, 1.0, 3.0]]))
        tensor([2.])
    """

    target: Target = "predicted"
    against: Target = "runner-up"

    def __post_init__(self) -> None:
        for name, value, valid in (
            ("target", self.target, ("predicted",)),
            ("against", self.against, ("predicted", "runner-up")),
        ):
            if isinstance(value, str) and value not in valid:
                raise TargetError(f"{unknown(name, value, valid)}, or any other target that explain() takes")

    def __call__(self, output: Any) -> Tensor:
        resolved = self.resolved(output)
        one, other = score(output, resolved.target), score(output, resolved.against)
        if one.ndim != other.ndim:  # K targets against one, or one against K
            one, other = (s[:, None] if s.ndim == 1 else s for s in (one, other))
        return one - other

    def rows(self, rows: slice) -> Contrast:
        return Contrast(select(self.target, rows), select(self.against, rows))

    def resolved(self, output: Any) -> Contrast:
        target = resolve_target(output, self.target)
        if isinstance(self.against, str) and self.against == "runner-up":
            return Contrast(target, _runner_up(output, target))
        return Contrast(target, resolve_target(output, self.against))


def _runner_up(output: Any, target: Target) -> Tensor:
    scores = two_sided(class_scores(output).detach())
    scores = scores.flatten(2).mean(2) if scores.ndim > 2 else scores
    if isinstance(target, int):
        target = torch.full((len(scores),), target, device=scores.device)
    if not isinstance(target, Tensor) or target.ndim != 1 or target.is_floating_point():
        raise TargetError(
            "a runner-up needs one class per image as target: 'predicted', a class index, or (N,) indices"
        )
    return scores.scatter(1, target.to(scores.device).long()[:, None], -torch.inf).argmax(1)


@dataclass(frozen=True, eq=False)
class Similarity(PerImage):
    """How alike the model's embedding and a reference are: their cosine.

    Attributes:
        reference: (D,), or (N, D) for one per image.

    Example:
        >>> Similarity(torch.tensor([0.0, 1.0]))(torch.tensor([[3.0, 4.0]]))
        tensor([0.8000])
    """

    reference: Tensor

    def __call__(self, output: Any) -> Tensor:
        embedding = _embedding(output).flatten(1)
        reference = self.reference.to(embedding).reshape(-1, self.reference.shape[-1])
        if embedding.shape[1] != reference.shape[1] or len(reference) not in (1, len(embedding)):
            raise TargetError(
                f"the reference has shape {tuple(self.reference.shape)}, the model's embeddings "
                f"{tuple(embedding.shape)}: valid are (D,) and (N, D)"
            )
        return torch.cosine_similarity(embedding, reference)

    def rows(self, rows: slice) -> Similarity:
        return Similarity(self.reference[rows]) if self.reference.ndim > 1 else self

    def resolved(self, output: Any) -> Similarity:
        return self


def _embedding(output: Any) -> Tensor:
    named: Mapping[str, Any] = output if isinstance(output, Mapping) else getattr(output, "__dict__", {})
    keyed: list[Tensor] = [named[key] for key in EMBEDDING_KEYS if isinstance(named.get(key), Tensor)]
    found = [*keyed, *(t for t in tensors(output) if t.is_floating_point() and t.ndim >= 2)]
    if not found:
        raise TargetError(f"the model's output is {type(output).__name__} without an embedding (N, D)")
    return found[0]


@dataclass(frozen=True, eq=False)
class BoxScores(PerImage):
    """A detector's scores of chosen boxes: for each, that of the detection that overlaps it most.

    The detector answers with a list of {"boxes": (M, 4) xyxy, "labels": (M,), "scores": (M,)}, as torchvision's do.

    Attributes:
        boxes: For each image (B, 4) xyxy in pixels.
        labels: For each image (B,) classes that the detections must have; any by default.
        overlap: The least intersection over union.

    Example:
        >>> found = {"boxes": torch.tensor([[0.0, 0, 4, 4], [0, 0, 4, 3]]), "scores": torch.tensor([0.9, 0.6])}
        >>> BoxScores([torch.tensor([[0.0, 0.0, 4.0, 3.0]])])([found])
        tensor([0.6000])
    """

    boxes: Sequence[Tensor]
    labels: Sequence[Tensor] | None = None
    overlap: float = 0.5

    def __call__(self, output: Any) -> Tensor:
        if not isinstance(output, list) or not all(isinstance(i, Mapping) and "scores" in i for i in output):
            raise TargetError(f"BoxScores needs a detector's list of boxes and scores, got {type(output).__name__}")
        if len(output) != len(self.boxes):
            raise TargetError(f"boxes were given for {len(self.boxes)} images, the detector answered for {len(output)}")
        labels = self.labels if self.labels is not None else [None] * len(output)
        triples = zip(output, self.boxes, labels, strict=True)
        return torch.stack([self._score(found, boxes, label) for found, boxes, label in triples])

    def _score(self, found: Mapping[str, Tensor], boxes: Tensor, labels: Tensor | None) -> Tensor:
        scores = found["scores"]
        if not len(scores) or not len(boxes):
            return scores.sum() * 0
        overlaps = _overlaps(boxes.to(scores), found["boxes"].detach())
        if labels is not None:
            overlaps = overlaps * (labels.to(scores.device)[:, None] == found["labels"])
        best = overlaps.max(1)
        return (scores[best.indices] * (best.values >= self.overlap)).sum()

    def rows(self, rows: slice) -> BoxScores:
        return replace(self, boxes=self.boxes[rows], labels=None if self.labels is None else self.labels[rows])

    def resolved(self, output: Any) -> BoxScores:
        return self


def _overlaps(one: Tensor, two: Tensor) -> Tensor:
    """Intersection over union of every box of one (A, 4) with every one of two (B, 4): (A, B)."""
    low, high = torch.max(one[:, None, :2], two[:, :2]), torch.min(one[:, None, 2:], two[:, 2:])
    inside = (high - low).clamp(min=0).prod(2)
    area_one, area_two = ((b[:, 2:] - b[:, :2]).prod(1) for b in (one, two))
    return inside / (area_one[:, None] + area_two - inside).clamp(min=1e-12)
