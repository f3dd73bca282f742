"""Short lines of text in a picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from camwatch.pictures.colours import Colour

MARGIN = 4  # pixels around a written line


def text(
    image: Tensor,
    lines: Sequence[str],
    at: tuple[int, int] = (0, 0),
    size: int = 12,
    color: Colour = (0, 0, 0),
) -> Tensor:
    """Writes short lines of text into an image.

    A line that is too long for the image ends in an ellipsis; what falls below the image is cut. Characters
    outside the font show as boxes.

    Args:
        image: (3, H, W) uint8.
        lines: One string each.
        at: (x, y) of the upper left corner, in pixels.
        size: Of the font, in pixels; lines are :func:`line_height` apart.
        color: Red, green and blue, 0 to 255.

    Returns:
        (3, H, W) uint8, a new tensor.

    Example:
        >>> written = text(torch.full((3, 16, 64), 255, dtype=torch.uint8), ["label 7"])
        >>> bool((written < 128).any())
        True
    """
    written, (height, width) = image.cpu().clone(), image.shape[1:]
    ink = torch.tensor(color, dtype=torch.int32)[:, None, None]
    for row, line in enumerate(lines):
        x, y = at[0] - MARGIN, at[1] + row * line_height(size) - MARGIN
        mask = _written(line, size, width - at[0])[max(0, -y) : max(0, height - y), max(0, -x) : max(0, width - x)]
        x, y = max(0, x), max(0, y)
        place = written[:, y : y + mask.shape[0], x : x + mask.shape[1]]
        mask = mask.to(torch.int32)
        mixed = ink * mask + place.to(torch.int32) * (255 - mask) + 128  # as Pillow mixes them
        place.copy_((mixed + (mixed >> 8)) >> 8)
    return written


@lru_cache(maxsize=256)  # a megabyte or two
def _written(line: str, size: int, width: int) -> Tensor:
    """Returns how much of each pixel (h, w) a line covers, 0 to 255, with a margin for accents and tails.

    Most lines stand on every sheet of a run.
    """
    import numpy as np
    from PIL import Image, ImageDraw

    font = font_of(size)
    fitted = fit(line, font, width)
    right, bottom = (math.ceil(v) for v in font.getbbox(fitted)[2:])
    canvas = Image.new("L", (right + 2 * MARGIN, bottom + 2 * MARGIN))
    ImageDraw.Draw(canvas).text((MARGIN, MARGIN), fitted, fill=255, font=font)
    return torch.from_numpy(np.array(canvas))


def line_height(size: int) -> int:
    """Returns the distance between two lines of text of a font size, in pixels.

    Example:
        >>> line_height(12)
        15
    """
    return round(size * 1.25)


@lru_cache(maxsize=8)
def font_of(size: int) -> Any:
    """Returns the font of a size in pixels."""
    import matplotlib
    from PIL import ImageFont

    # matplotlib's own font: unlike Pillow's default it has accents, Greek, Cyrillic and the marks ✓ and ✗.
    try:
        return ImageFont.truetype(f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf", size)
    except (OSError, ImportError):
        return ImageFont.load_default(size)


def fit(line: str, font: Any, width: float) -> str:
    """Returns as much of a line as fits into a width in pixels, an ellipsis for the rest."""
    line = " ".join(line.split())
    if font.getlength(line) <= width:
        return line
    low, high = 0, len(line)
    while low < high:
        middle = (low + high + 1) // 2
        fits = font.getlength(line[:middle].rstrip() + "…") <= width
        low, high = (middle, high) if fits else (low, middle - 1)
    return line[:low].rstrip() + "…"


def shorten(line: str, width: int) -> str:
    """Leaves out the middle of a line that is too long for a width in pixels: names of files differ at their ends.

    Example:
        >>> shorten("index 3 · IMG_2024_03_0014.jpg", 150)
        'index 3 · I…_0014.jpg'
    """
    most = round(width / 7.3)  # the mean width of a letter of the captions' font
    if len(line) <= most:
        return line
    end = min(9, most // 2)
    return f"{line[: most - end - 1]}…{line[-end:]}"
