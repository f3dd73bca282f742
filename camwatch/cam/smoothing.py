"""Smoothing by test-time augmentation: maps averaged over changed copies of the images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from camwatch.cam.model.targets import Target, resolve_target

# Mirrored or not, and how much brighter: the six copies that pytorch-grad-cam averages over.
COPIES = [(mirrored, factor) for factor in (1.0, 0.9, 1.1) for mirrored in (False, True)]


def augmented(
    run: Callable[[Tensor, Target], tuple[list[Tensor], Any]], images: Tensor, target: Target
) -> tuple[list[Tensor], Any]:
    """Averages raw maps over the images mirrored or not, times 0.9, 1 and 1.1.

    Args:
        run: Callable (images, target) -> each layer's maps (N[, K], *grid), and the model's output.
        images: (N, C, *size).
        target: As in ``explain``; "predicted" is what the images as they are get.

    Returns:
        Each layer's mean maps, and the output for the images as they are.
    """
    total, output = run(images, target)
    fixed = resolve_target(output, target)
    for mirrored, factor in COPIES[1:]:
        copy = (images.flip(-1) if mirrored else images) * factor
        found, _ = run(copy, fixed)
        total = [t + (m.flip(-1) if mirrored else m) for t, m in zip(total, found, strict=True)]
    return [maps / len(COPIES) for maps in total], output
