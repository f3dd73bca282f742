"""Outlines of masks and regions."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from camwatch.pictures.colours import Colour
from camwatch.regions.annotations import ZONES
from camwatch.regions.regions import Regions


class Line(NamedTuple):
    """How a zone is outlined: its colour, the length of its dashes in pixels (0: none), and both in words."""

    color: Colour
    dash: int
    words: str


LINES = dict(
    zip(
        ZONES,
        (Line((0, 255, 0), 0, "green"), Line((255, 0, 0), 6, "red dashes"), Line((190, 190, 190), 3, "grey dashes")),
        strict=True,
    )
)


def outline(images: Tensor, masks: Tensor, color: Colour = (0, 255, 0), width: int = 1, dash: int = 0) -> Tensor:
    """Draws the inner boundary of masks into images.

    Args:
        images: (N, 3, H, W) uint8.
        masks: (N, H, W) bool. Where a mask meets the image's border, the line runs along the border.
        color: Red, green and blue, 0 to 255.
        width: Of the line, in pixels.
        dash: Length of dashes and gaps in pixels; 0 draws an unbroken line.

    Returns:
        (N, 3, H, W) uint8, a new tensor.

    Example:
        >>> outline(torch.zeros(1, 3, 3, 3, dtype=torch.uint8), torch.ones(1, 3, 3, dtype=bool))[0, 1]
        tensor([[255, 255, 255],
                [255,   0, 255],
                [255, 255, 255]], dtype=torch.uint8)
    """
    outside = F.pad((~masks.bool()).to(torch.float32), [width] * 4, value=1.0)
    edge = masks.bool() & (F.max_pool2d(outside, 2 * width + 1, stride=1) > 0)
    if dash:
        rows, columns = (torch.arange(n, device=masks.device) for n in masks.shape[-2:])
        edge = edge & ((rows[:, None] + columns) // dash % 2 == 0)
    paint = torch.tensor(color, dtype=torch.uint8, device=images.device)[:, None, None]
    return torch.where(edge[:, None], paint, images)


def draw_regions(pictures: Tensor, regions: Regions | None, width: int) -> Tensor:
    """Draws the outlines of all zones into pictures (n, 3, h, w) uint8 of any size, dark-edged.

    Example:
        >>> draw_regions(torch.zeros(1, 3, 4, 4, dtype=torch.uint8), None, 1).sum().item()
        0
    """
    for zone, (color, dash, _) in LINES.items():
        masks = None if regions is None else getattr(regions, zone)
        if masks is None:
            continue
        # A pixel of the picture that a region only touches is drawn: small regions do not vanish.
        masks = F.adaptive_max_pool2d(masks.to(torch.float32), pictures.shape[-2:]) > 0
        pictures = outline(pictures, masks, (0, 0, 0), width if dash else width + 1)
        pictures = outline(pictures, masks, color, width, dash)
    return pictures


def legend(zones: Iterable[str]) -> list[str]:
    """Returns the line that says how zones are outlined, in a list; an empty one where there are none.

    Example:
        >>> legend(["allowed", "ignore"])
        ['outlines: allowed green, ignore grey dashes']
    """
    drawn = [f"{zone} {LINES[zone].words}" for zone in zones]
    return [f"outlines: {', '.join(drawn)}"] if drawn else []
