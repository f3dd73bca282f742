"""Taking regions through the same geometry as their images."""

from __future__ import annotations

import os
from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from camwatch.errors import PanelError
from camwatch.regions.annotations import drop_empty, warn_cut, zone_masks
from camwatch.regions.readers.base import FileRegions


def read_aligned(
    paths: Sequence[Any],
    transform: Callable[..., Any] | None = None,
    regions: Mapping[str, Any] | Callable[[Any], Any] | Sequence[Any] | None = None,
    labels: Any = None,
) -> tuple[Tensor, list[Any] | None]:
    """Reads images and moves their regions with them; see ``Panel.from_files``.

    Returns:
        Images (N, C, H, W), and one region per image on their pixels, or None.

    Raises:
        PanelError: The images differ in size, no file name is found, or the transform cannot move regions.
        RegionError: A region does not fit its file.
    """
    from PIL import Image

    if not len(paths):
        raise PanelError("no panel can be made of no files")
    given = [None] * len(paths) if regions is None else match_regions(paths, regions, labels)
    through = _joint(transform, regions is not None)
    images, moved, cut = [], [], list[str]()
    for path, entry in zip(paths, given, strict=True):
        with Image.open(path) as file:
            image = file.convert("RGB")
        masks = zone_masks(entry, (image.height, image.width), f"image {os.fspath(path)}", cut)
        image, zones = through(image, masks)
        images.append(image)
        moved.append(zones)
    warn_cut(cut, len(paths))
    sizes = {tuple(image.shape) for image in images}
    if len(sizes) > 1:
        raise PanelError(
            f"the images of a panel must have one size, got (C, H, W) of {sorted(sizes)}; "
            "resize or crop them with transform="
        )
    return torch.stack(images), drop_empty(moved)


def match_regions(paths: Sequence[Any], regions: Any, labels: Any) -> list[Any]:
    """Returns each file's entry among regions: in their order, from a callable, or by its name in a mapping.

    Raises:
        PanelError: There are fewer or more regions than files, or no name is found.
    """
    if callable(regions):
        return [regions(path) for path in paths]
    if not isinstance(regions, Mapping):
        if len(regions) != len(paths):
            raise PanelError(f"expected one region per file, {len(paths)} in all, got {len(regions)}")
        return list(regions)
    names = [find_name(path, regions) for path in paths]
    if not any(names):
        raise PanelError(
            f"none of {len(paths)} files, such as {os.fspath(paths[0])!r}, has a region among the "
            f"{len(regions)} file names given, such as {', '.join(map(repr, list(regions)[:3]))}"
        )
    if not isinstance(regions, FileRegions) or labels is None:
        return [None if name is None else regions[name] for name in names]
    pairs = zip(names, labels, strict=True)
    return [None if name is None else regions.of(name, int(label)) for name, label in pairs]


def find_name(path: Any, names: Container[str]) -> str | None:
    """Returns what a file goes by among names: its path with ever fewer folders, then the same without suffix.

    Example:
        >>> find_name("photos/cats/1.jpg", {"1.jpg", "cats/1"}), find_name("photos/cats/1.jpg", {"2.jpg"})
        ('1.jpg', None)
    """
    parts = os.fspath(path).replace(os.sep, "/").split("/")
    tails = ["/".join(parts[i:]) for i in range(len(parts))]
    return next((name for name in [*tails, *(os.path.splitext(tail)[0] for tail in tails)] if name in names), None)


def _joint(transform: Any, needed: bool) -> Callable[[Any, dict[str, Tensor | None]], tuple[Tensor, Any]]:
    """Returns a function from (PIL image, masks by zone) to (tensor, masks by zone or None)."""
    from torchvision import tv_tensors
    from torchvision.transforms import v2

    if transform is None:
        transform = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])
    if needed and hasattr(transform, "resize_size") and hasattr(transform, "crop_size"):
        transform = v2.Compose(
            [  # the preset of torchvision's weights, which takes an image alone
                v2.Resize(transform.resize_size, transform.interpolation, antialias=transform.antialias),
                v2.CenterCrop(transform.crop_size),
                v2.ToImage(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(transform.mean, transform.std),
            ]
        )
    if needed and not isinstance(transform, v2.Transform):
        raise PanelError(
            f"a {type(transform).__module__}.{type(transform).__name__} moves images only, so the regions "
            "cannot be aligned with them; use torchvision.transforms.v2, or pass images and regions that "
            "went through it to Panel(...)"
        )

    def through(image: Any, masks: dict[str, Tensor | None]) -> tuple[Tensor, Any]:
        zones = {zone: mask for zone, mask in masks.items() if mask is not None}
        if zones:
            stack = torch.stack(list(zones.values())).to(torch.uint8)
            result, stack = transform(image, tv_tensors.Mask(stack))
            moved = stack.as_subclass(Tensor) > 0
            return _image(result), dict(zip(zones, moved, strict=True))
        return _image(transform(image)), None

    return through


def _image(result: Any) -> Tensor:
    if not isinstance(result, Tensor) or result.ndim != 3 or not result.is_floating_point():
        shape = f"{tuple(result.shape)} {result.dtype}" if isinstance(result, Tensor) else ""
        raise PanelError(
            f"expected the transform to return a (C, H, W) floating point tensor, got {type(result).__name__} "
            f"{shape}; end it with v2.ToImage() and v2.ToDtype(torch.float32, scale=True)"
        )
    return result.as_subclass(Tensor)
