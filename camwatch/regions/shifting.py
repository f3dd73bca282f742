"""Where a region is rolled to when a control is needed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def roll_away(mask: Tensor, blocked: Tensor, box: Sequence[int]) -> Tensor:
    """Rolls a mask to where it covers the fewest blocked pixels.

    Among the rolls of least overlap (exact, by the circular cross-correlation) those that do not wrap the
    mask's box around the border are preferred, and of them the farthest.

    Args:
        mask: (H, W) bool.
        blocked: (H, W) bool.
        box: The mask's bounding box x1, y1, x2, y2.

    Example:
        >>> mask = torch.tensor([[1, 1, 0, 0, 0]]).bool()
        >>> roll_away(mask, mask, (0, 0, 2, 1)).int().tolist()
        [[0, 0, 1, 1, 0]]
    """
    height, width = mask.shape
    spectrum = torch.fft.rfft2(blocked.float()) * torch.fft.rfft2(mask.float()).conj()
    overlap = torch.fft.irfft2(spectrum, s=(height, width)).round()
    x1, y1, x2, y2 = box
    dy, dx = torch.arange(height)[:, None], torch.arange(width)[None, :]
    down, right = (dy + y2 <= height), (dx + x2 <= width)
    whole = (down | (height - dy <= y1)) & (right | (width - dx <= x1))
    far = torch.minimum(dy, height - dy) ** 2 + torch.minimum(dx, width - dx) ** 2
    candidates = overlap == overlap.min()
    if (candidates & whole).any():
        candidates &= whole
    best = int(far.masked_fill(~candidates, -1).argmax())
    return mask.roll((best // width, best % width), (0, 1))
