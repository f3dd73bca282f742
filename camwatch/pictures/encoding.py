"""Pictures as bytes: PNG and JPEG."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

from torch import Tensor

from camwatch.pictures.colours import to_uint8


def to_png(image: Tensor) -> bytes:
    """Encodes a (3, H, W) uint8 image as PNG, fast rather than small.

    Example:
        >>> import torch
        >>> to_png(torch.zeros(3, 2, 2, dtype=torch.uint8))[:4]
        b'\\x89PNG'
    """
    # As fast as torchvision.io.encode_png(compression_level=1), which torchvision has deprecated; 2x level 6.
    buffer = io.BytesIO()
    _pillow(image).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def to_jpeg(image: Tensor, quality: int = 90) -> bytes:
    """Encodes a (3, H, W) uint8 image as JPEG with full colour resolution: thin coloured lines stay sharp.

    Example:
        >>> import torch
        >>> to_jpeg(torch.zeros(3, 2, 2, dtype=torch.uint8))[:2]
        b'\\xff\\xd8'
    """
    buffer = io.BytesIO()
    _pillow(image).save(buffer, "JPEG", quality=quality, subsampling=0)
    return buffer.getvalue()


def _pillow(image: Tensor) -> Any:
    from PIL import Image

    # Merged from planes: faster than bringing the bands together in torch.
    return Image.merge("RGB", [Image.fromarray(band.numpy()) for band in image.cpu().contiguous()])


def small_jpeg(image: Tensor, side: int = 256, quality: int = 85) -> bytes:
    """Encodes a (3, H, W) uint8 image as JPEG whose longer side has at most so many pixels.

    Example:
        >>> import torch
        >>> len(small_jpeg(torch.zeros(3, 512, 512, dtype=torch.uint8))) < 2000
        True
    """
    picture = _pillow(image)
    picture.thumbnail((side, side))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def panel_pictures(images: Tensor) -> Iterator[tuple[bytes, bytes]]:
    """Yields each image of (N, 3, H, W) in [0, 1] as PNG and as small JPEG."""
    for image in images:
        shown = to_uint8(image)
        yield to_png(shown), small_jpeg(shown)
