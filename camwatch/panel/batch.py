"""Finding images, labels and regions in a batch, whatever its shape."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from camwatch.errors import PanelError
from camwatch.regions.annotations import ZONES
from camwatch.regions.shapes import is_tv

IMAGE_KEYS = ("image", "images", "pixel_values", "x", "img", "imgs")


LABEL_KEYS = ("label", "labels", "target", "targets", "y", "class", "classes")


REGION_KEYS = ("regions", "region", "masks", "mask", "segmentation", "boxes", "bboxes", "bbox")


def split_sample(batch: Any, unpack: Callable[[Any], Any] | None = None) -> tuple[Tensor, Tensor | None, Any | None]:
    """Finds images, labels and regions in a batch.

    Known are tuples and lists that begin with the images; dictionaries, by the usual keys; detection targets,
    that is, a dictionary with ``boxes``, ``masks`` and ``labels`` per image (an image whose objects are of
    several classes has no label); torchvision's ``Mask`` and ``BoundingBoxes``, by their type. A further
    element is a region if it looks like one, and left alone otherwise (an index, a file name). One-hot labels
    and whole numbers in floating point are turned into class indices.

    Args:
        batch: As the data loader yields it.
        unpack: Makes (images, labels[, regions]) of it first.

    Returns:
        Images (N, C, H, W), labels (N,) int64 or None, and regions as ``Regions.coerce`` takes them, or None.

    Raises:
        PanelError: No images are found; the message says what arrived.

    Example:
        >>> images, labels, regions = split_sample({"pixel_values": torch.rand(2, 3, 4, 4), "labels": [0, 1]})
        >>> tuple(images.shape), labels, regions
        ((2, 3, 4, 4), tensor([0, 1]), None)
    """
    given = batch if unpack is None else unpack(batch)
    if isinstance(given, Mapping):
        keys = {str(key).lower(): value for key, value in given.items()}
        images = _images(next((keys.pop(key) for key in IMAGE_KEYS if key in keys), None))
        rest: Sequence[Any] = [keys]
    elif isinstance(given, Tensor):
        images, rest = _images(given), ()
    elif isinstance(given, (tuple, list)) and given:
        images, rest = _images(given[0]), given[1:]
    else:
        images, rest = None, ()
    if images is None:
        source = "a batch" if unpack is None else "what unpack returned"
        raise PanelError(
            f"no images are found in {source}, {describe(given)}; valid are (images, labels[, regions]) with "
            f"images (N, C, H, W), or a dictionary with one of the keys {', '.join(IMAGE_KEYS)}. "
            "For other batches pass unpack=callable(batch) -> (images, labels[, regions])"
        )
    labels, regions = _first_found([_target(item, len(images)) for item in rest])
    return images, labels, regions


def _images(given: Any) -> Tensor | None:
    if isinstance(given, np.ndarray):
        given = torch.from_numpy(given)
    if isinstance(given, Tensor):
        return given.as_subclass(Tensor) if given.ndim == 4 else None
    if not isinstance(given, (list, tuple)) or not given:
        return None
    if not all(isinstance(image, Tensor) and image.ndim == 3 for image in given):
        return None
    sizes = {tuple(image.shape) for image in given}
    if len(sizes) > 1:
        raise PanelError(f"the images of a panel must have one size, got (C, H, W) of {sorted(sizes)}")
    return torch.stack([image.as_subclass(Tensor) for image in given])


def _target(item: Any, n: int) -> tuple[Tensor | None, Any | None]:
    """Returns the labels and the regions in what accompanies n images, each None if there are none."""
    if isinstance(item, Mapping):
        if item and set(item) <= set(ZONES):
            return None, item
        marked = [(None, item[key]) for key in REGION_KEYS if key in item]
        return _first_found(marked + [_target(item[key], n) for key in LABEL_KEYS if key in item])
    if is_tv(item, "BoundingBoxes") or is_tv(item, "Mask"):
        return None, item
    if _is_array(item) and item.ndim:
        values = torch.as_tensor(item)
        boxes = values.ndim == 2 and values.shape[1] == 4 and bool((values > 1).any())
        return (None, item) if boxes or values.ndim > 2 else (_labels(values, n), None)
    if not isinstance(item, (list, tuple)) or not item:
        return None, None
    if _begins_with_labels(item, n):
        return _first_found([_target(value, n) for value in item])
    return _per_image(item) if len(item) == n else (None, None)


def _begins_with_labels(item: Sequence[Any], n: int) -> bool:
    """Whether a list holds the labels of n images and what stands beside them, not one entry per image."""
    first, *others = item
    if not _are_numbers(first) or is_tv(first, "BoundingBoxes") or np.shape(first) not in ((n,), (n, 1)):
        return False
    # Four numbers may be a box, and a list of four, with one for each of four images, begin with one.
    boxes = n == len(item) == 4 and all(_may_be_region(value) and getattr(value, "ndim", 0) < 3 for value in others)
    return not boxes


def _per_image(item: Sequence[Any]) -> tuple[Tensor | None, Any | None]:
    """Returns the labels and the regions in a list with one entry per image."""
    objects = [isinstance(value, Mapping) and not (value and set(value) <= set(ZONES)) for value in item]
    if any(objects) and all(value is None or known for value, known in zip(item, objects, strict=True)):
        labels, regions = zip(*[_objects(value or {}) for value in item], strict=True)
        return (
            None if None in labels else torch.tensor(labels),
            None if all(region is None for region in regions) else list(regions),
        )
    if all(_is_number(value) for value in item):
        return _labels(torch.as_tensor(item), len(item)), None
    return None, (item if all(_may_be_region(value) for value in item) else None)


def _is_array(value: Any) -> bool:
    return isinstance(value, Tensor) or (isinstance(value, np.ndarray) and value.dtype.kind in "biuf")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, np.number, np.bool_)) or (_is_array(value) and value.ndim == 0)


def _are_numbers(value: Any) -> bool:
    return _is_array(value) or (isinstance(value, (list, tuple)) and all(_is_number(part) for part in value))


def _may_be_region(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return _are_numbers(value) or all(_may_be_region(part) for part in value)
    return value is None or isinstance(value, Mapping) or (_is_array(value) and value.ndim > 0)


def _first_found(pairs: Sequence[tuple[Any, Any]]) -> tuple[Any, Any]:
    """Returns the first label and the first region that is not None."""
    labels, regions = zip(*pairs, strict=True) if pairs else ((), ())
    return next((v for v in labels if v is not None), None), next((v for v in regions if v is not None), None)


def _objects(target: Mapping[str, Any]) -> tuple[int | None, Any | None]:
    """Returns the label that one image's objects share, None if they do not, and its region."""
    region = next((target[key] for key in REGION_KEYS if target.get(key) is not None), None)
    classes = next((target[key] for key in LABEL_KEYS if target.get(key) is not None), ())
    shared = set(torch.as_tensor(classes).flatten().tolist()) if _are_numbers(classes) else set()
    return (int(shared.pop()) if len(shared) == 1 else None), region


def _labels(values: Tensor, n: int) -> Tensor:
    """Returns class indices; what cannot be read as such is returned as it is, for the panel to refuse."""
    values = values.as_subclass(Tensor)
    if not bool((values == values.round()).all()) if values.is_floating_point() else values.ndim == 0:
        return values
    if values.ndim == 1:
        return values.long()
    if tuple(values.shape) == (n, 1):
        return values[:, 0].long()
    one_hot = bool(((values == 0) | (values == 1)).all()) and bool((values.sum(1) == 1).all())
    return values.argmax(1) if one_hot and len(values) == n else values


def describe(given: Any, depth: int = 3) -> str:
    """Says what something is: types, keys, shapes.

    Example:
        >>> describe((torch.rand(2, 3), {"y": 1}))
        'tuple of 2 (Tensor (2, 3) float32, dict with {y: int})'
    """
    name = type(given).__name__
    if hasattr(given, "shape") and hasattr(given, "dtype"):
        return f"{name} {tuple(given.shape)} {str(given.dtype).removeprefix('torch.')}"
    if isinstance(given, Mapping) and depth:
        return f"{name} with {{{', '.join(f'{k}: {describe(v, depth - 1)}' for k, v in given.items())}}}"
    if isinstance(given, (list, tuple)) and depth:
        more = ", …" if len(given) > 4 else ""
        return f"{name} of {len(given)} ({', '.join(describe(v, depth - 1) for v in given[:4])}{more})"
    return name
