"""By which mean and standard deviation images were normalized, found where the transforms say so."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch


def find_normalization(source: Any) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Finds by which mean and standard deviation a data set, or a transform, normalizes its images.

    Looks for anything that carries ``mean`` and ``std``, or ``image_mean`` and ``image_std``, among the
    transforms: torchvision's (both versions, nested, and the presets of its weights), albumentations',
    the image processors of transformers. Statistics on the scale 0 to 255 are brought to 0 to 1.

    Returns:
        (mean, std) for images in [0, 1]; None if there is none to be found.

    Example:
        >>> from torchvision.transforms import v2
        >>> find_normalization(v2.Compose([v2.RandomCrop(8), v2.Normalize([0.5], [0.25])]))
        ((0.5,), (0.25,))
    """
    inside = ("transforms", "transform", "image_processor", "processor", "dataset", "datasets")
    for part in walk(source, inside):
        for mean, std in (("mean", "std"), ("image_mean", "image_std")):
            found = numbers(getattr(part, mean, None)), numbers(getattr(part, std, None))
            if found[0] and found[1] and min(found[1]) > 0 and getattr(part, "do_normalize", True):
                scale = 255.0 if max(found[0]) > 1 else 1.0
                return tuple(v / scale for v in found[0]), tuple(v / scale for v in found[1])
    return None


def numbers(given: Any) -> list[float]:
    """Returns what may be statistics as a flat list; empty where it holds no numbers.

    Example:
        >>> numbers((0.5, 1)), numbers("mean")
        ([0.5, 1.0], [])
    """
    if given is None or callable(given):
        return []
    try:
        return [float(v) for v in torch.as_tensor(given, dtype=torch.float64).flatten()]
    except (TypeError, ValueError, RuntimeError):
        return []


def walk(source: Any, names: Sequence[str], depth: int = 8) -> Iterator[Any]:
    """Yields an object and, outermost first, what it holds under the given attributes."""
    if source is None or isinstance(source, (str, bytes, torch.Tensor)) or depth == 0:
        return
    if isinstance(source, Mapping):
        source = list(source.values())
    if isinstance(source, (list, tuple, torch.nn.Sequential)):
        for item in source:
            yield from walk(item, names, depth - 1)
        return
    yield source
    for name in names:
        inner = getattr(source, name, None)
        if inner is not None and inner is not source:
            yield from walk(inner, names, depth - 1)
