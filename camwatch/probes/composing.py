"""What the tests share: boxes on whole pixels, fills that know nothing of what they cover, and answers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from camwatch.errors import InputError

PredictScores = Callable[[Tensor], Tensor]


Box = tuple[int, int, int, int]


def whole_boxes(images: Tensor, labels: Tensor, boxes: Tensor) -> list[Box | None]:
    """Returns the boxes on whole pixels inside the image, None for an empty one."""
    if images.ndim != 4:
        raise InputError(f"expected images of shape (N, C, H, W), got {tuple(images.shape)}")
    n, _, height, width = images.shape
    if tuple(labels.shape) != (n,):
        raise InputError(f"expected labels of shape ({n},), one per image, got {tuple(labels.shape)}")
    if tuple(boxes.shape) != (n, 4):
        raise InputError(f"expected boxes of shape ({n}, 4), got {tuple(boxes.shape)}")
    found: list[Box | None] = []
    for x1, y1, x2, y2 in boxes.tolist():
        if not all(map(math.isfinite, (x1, y1, x2, y2))):
            found.append(None)
            continue
        box = (
            max(math.floor(x1), 0),
            max(math.floor(y1), 0),
            min(math.ceil(x2), width),
            min(math.ceil(y2), height),
        )
        found.append(box if box[0] < box[2] and box[1] < box[3] else None)
    return found


@torch.no_grad()
def scores_of(predict: PredictScores, images: Sequence[Tensor], batch_size: int) -> Tensor:
    """Returns (N, classes) on the CPU."""
    found = []
    for start in range(0, len(images), batch_size):
        chunk = torch.stack(list(images[start : start + batch_size]))
        scores = predict(chunk)
        if not isinstance(scores, Tensor) or scores.ndim != 2 or len(scores) != len(chunk):
            got = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
            raise InputError(f"expected predict to return scores of shape ({len(chunk)}, classes), got {got}")
        found.append(scores.float().cpu())
    return torch.cat(found) if found else torch.zeros(0, 1)


def answer(predict: PredictScores, images: Sequence[Tensor], batch_size: int) -> Tensor:
    """Returns (N,) int64 on the CPU: the class with the highest score, -1 where scores are not finite."""
    return best_class(scores_of(predict, images, batch_size))


def best_class(scores: Tensor) -> Tensor:
    """Returns (N,) int64 of scores (N, classes), -1 where they are not finite."""
    return torch.where(scores.isfinite().all(1), scores.argmax(1), -1)


def fill_mean(image: Tensor, box: Box) -> Tensor:
    """Returns the image (C, H, W) with the box in the mean colour of the rest."""
    x1, y1, x2, y2 = box
    rest = torch.ones(image.shape[1:], dtype=torch.bool, device=image.device)
    rest[y1:y2, x1:x2] = False
    filled = image.clone()
    filled[:, y1:y2, x1:x2] = image[:, rest].mean(1)[:, None, None]
    return filled


def fill_border(image: Tensor, box: Box) -> Tensor:
    """Returns the image (C, H, W) with the box blended from the pixels around it, by inverse distance."""
    x1, y1, x2, y2 = box
    _, height, width = image.shape
    across = torch.arange(1, x2 - x1 + 1, device=image.device, dtype=image.dtype)[None, :]
    down = torch.arange(1, y2 - y1 + 1, device=image.device, dtype=image.dtype)[:, None]
    sides = [
        (image[:, y1:y2, x1 - 1 : x1], 1 / across) if x1 > 0 else None,
        (image[:, y1:y2, x2 : x2 + 1], 1 / across.flip(1)) if x2 < width else None,
        (image[:, y1 - 1 : y1, x1:x2], 1 / down) if y1 > 0 else None,
        (image[:, y2 : y2 + 1, x1:x2], 1 / down.flip(0)) if y2 < height else None,
    ]
    there = [side for side in sides if side is not None]
    filled = image.clone()
    filled[:, y1:y2, x1:x2] = torch.as_tensor(
        sum(colour * weight for colour, weight in there) / sum(weight for _, weight in there)
    )
    return filled


def area(box: Box) -> int:
    return (box[2] - box[0]) * (box[3] - box[1])


def overlap(a: Box, b: Box) -> int:
    across, down = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    return max(across, 0) * max(down, 0)
