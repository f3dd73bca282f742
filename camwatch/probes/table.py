"""Behavioural tests beside the map: what the model answers when a region is hidden, or moved elsewhere.

Each test runs forwards through ``predict(images (N, C, H, W)) -> scores (N, classes)`` and returns one number
per image, NaN where it cannot be asked. Boxes are (N, 4) x1, y1, x2, y2 in pixels, half-open, as
``Regions.boxes(margin)`` gives them; an empty box stands for an image without annotation. Nothing is drawn
from the global random number generators.

What such a test cannot tell: whether the context is legitimate (water under a boat also scores), and anything
about a cue that lies inside the region. A filled box is no natural image, so two fills have to agree.
"""

from __future__ import annotations

import math

from torch import Tensor

from camwatch.probes.composing import Predict
from camwatch.probes.hiding import hide, hide_elsewhere
from camwatch.probes.swapping import swap
from camwatch.regions.regions import Regions


def measure(
    predict: Predict,
    images: Tensor,
    labels: Tensor,
    regions: Regions,
    grid: tuple[int, int],
    right: Tensor | None = None,
    batch_size: int = 64,
) -> dict[str, Tensor]:
    """Runs every test that needs regions, on their bounding boxes dilated by one cell of the map's grid.

    Args:
        predict: As elsewhere.
        images: (N, C, H, W).
        labels: (N,) int.
        regions: Of the images.
        grid: (rows, columns) of the map.
        right: (N,) bool, the images answered rightly, whose regions alone are worth a swap; None: all.
        batch_size: How many images ``predict`` is given at once.

    Returns:
        ``hide``, ``hide_elsewhere``, ``swap_region``, ``swap_context``, ``swap_confusion`` and ``swaps`` as (N,)
        float32; what could not be asked of any image is left out.

    Example:
        >>> import torch
        >>> images = torch.zeros(4, 1, 8, 8)
        >>> images[2:, :, 3:5, 3:5] = 1  # the object
        >>> regions = Regions.coerce([[(3, 3, 5, 5)]] * 4, n=4, size=(8, 8))
        >>> def predict(x):
        ...     return torch.stack([-x[:, 0, 3, 3] + 0.5, x[:, 0, 3, 3] - 0.5], 1)
        >>> found = measure(predict, images, torch.tensor([0, 0, 1, 1]), regions, grid=(8, 8))
        >>> found["hide"].tolist(), found["swap_region"].tolist(), found["swap_context"].tolist()
        ([1.0, 1.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0])
    """
    height, width = images.shape[-2:]
    boxes = regions.boxes((math.ceil(height / grid[0]), math.ceil(width / grid[1])))
    swapped = swap(predict, images, labels, boxes, right, batch_size=batch_size)
    found = {
        "hide": hide(predict, images, labels, boxes, batch_size=batch_size),
        "hide_elsewhere": hide_elsewhere(predict, images, labels, boxes, batch_size=batch_size),
        "swap_region": swapped.region,
        "swap_context": swapped.context,
        "swap_confusion": swapped.confusion,
        "swaps": swapped.asked,
    }
    return {name: values for name, values in found.items() if not values.isnan().all()}
