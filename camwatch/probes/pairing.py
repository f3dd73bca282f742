"""Which image is paired with which, and means over the pairs of an image."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def pair(cost: Tensor, rounds: int, seed: int) -> list[tuple[int, int]]:
    """Returns pairs (i, j): in each round, for every i the least used j, of these the one of least cost.

    Args:
        cost: (N, N) in [0, 1], infinite where i and j must not be paired.
        rounds: How many partners an i gets at most.
        seed: Of the order among equals.
    """
    chance = torch.rand(cost.shape, generator=torch.Generator().manual_seed(seed))
    cost = cost * 0.9 + chance * 0.05
    used = torch.zeros(len(cost))
    pairs = []
    for _ in range(rounds):
        for i, row in enumerate(cost):
            weights = row + used
            j = int(weights.argmin()) if len(row) else 0
            if math.isinf(float(weights[j])):
                continue
            pairs.append((i, j))
            used[j] += 1
            cost[i, j] = math.inf
    return pairs


def mean_by_image(index: Tensor, values: Tensor, n: int) -> Tensor:
    """Returns (N,) float32: the mean of the values that belong to an image, NaN where there are none."""
    total = torch.zeros(n).index_add_(0, index, values.float())
    return total / torch.zeros(n).index_add_(0, index, torch.ones(len(index)))
