"""Images whose object, region and cue are known: digits, shapes, objects on photographs; the cue may tell the class."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

CLASSES = 5
COLOURS = torch.tensor([[1, 0.2, 0.2], [0.2, 0.9, 0.2], [0.3, 0.3, 1], [0.95, 0.95, 0.2], [0.95, 0.2, 0.95]])

# Cues at one place of the image, at no one place, and those that no map of regions can show.
LOCALIZED = ("corner", "border", "watermark", "object", "stamp")  # the last held back until the limits were fixed
SPREAD = ("texture",)
MISSES = ("blur", "tint", "inside")

# Side of the image, side of the object, and how far the object keeps from the edge, in pixels.
BASES = {"digits": (48, 14, 13), "shapes": (48, 14, 13), "canvas": (64, 32, 12), "photos": (64, 26, 14)}


@dataclass(frozen=True)
class Scenes:
    """Images without a cue: (N, 3, S, S) in [0, 1], labels (N,), masks (N, S, S), boxes (N, 4) of the objects."""

    images: Tensor
    labels: Tensor
    masks: Tensor
    boxes: Tensor

    def __getitem__(self, index: Tensor | slice) -> Scenes:
        return Scenes(self.images[index], self.labels[index], self.masks[index], self.boxes[index])


def scenes(base: str, count: int, seed: int, pretraining: bool = False) -> Scenes:
    """Draws scenes of a base, one of ``BASES``; for pretraining, of five other classes."""
    g = torch.Generator().manual_seed(1000 * seed + 7 * pretraining)
    size, side, margin = BASES[base]
    if base in ("digits", "canvas"):
        labels, alphas, masks = _digits(count, g, pretraining, side)
    else:
        labels, alphas = _shapes(count, g, pretraining, side)
        masks = alphas > 0.5
    if base == "photos":  # textured objects that stand out: bright ones on dark backgrounds, dark ones on bright
        backgrounds = _crops(count, size, g, 0.3, 0.45)
        fills = 0.4 * _crops(count, side, g, 0.8, 1.0) + 0.6 * torch.rand(count, 3, 1, 1, generator=g)
        dark = backgrounds.mean((1, 2, 3), keepdim=True) < 0.5
        fills = torch.where(dark, 0.5 + 0.5 * fills, 0.5 * fills)
    else:
        grey = 0.15 + 0.25 * torch.rand(count, 1, 1, 1, generator=g)
        backgrounds = (grey + 0.08 * torch.randn(count, 3, size, size, generator=g)).clamp(0, 1)
        fills = 0.65 + 0.35 * torch.rand(count, 3, 1, 1, generator=g).expand(-1, -1, side, side)
    images, full = backgrounds.clone(), torch.zeros(count, size, size, dtype=torch.bool)
    places = torch.randint(margin, size - side - margin + 1, (count, 2), generator=g)
    for i, (x, y) in enumerate(places.tolist()):
        patch = images[i, :, y : y + side, x : x + side]
        images[i, :, y : y + side, x : x + side] = patch + alphas[i] * (fills[i] - patch)
        full[i, y : y + side, x : x + side] = masks[i]
    return Scenes(images, labels, full, torch.cat([places, places + side], 1))


def _digits(count: int, g: torch.Generator, pretraining: bool, side: int) -> tuple[Tensor, Tensor, Tensor]:
    from sklearn.datasets import load_digits

    source = load_digits()
    labels = torch.tensor(source.target) - (0 if pretraining else CLASSES)
    chosen = ((labels >= 0) & (labels < CLASSES)).nonzero().flatten()
    chosen = chosen[torch.randperm(len(chosen), generator=g)][:count]
    pictures = torch.tensor(source.images, dtype=torch.float32)[chosen, None] / 16
    alphas = functional.interpolate(pictures, size=side, mode="bilinear")[:, 0]
    return labels[chosen], alphas, torch.ones_like(alphas, dtype=torch.bool)


def _shapes(count: int, g: torch.Generator, pretraining: bool, side: int) -> tuple[Tensor, Tensor]:
    labels = torch.randint(CLASSES, (count,), generator=g)
    turn, scale = torch.rand(2, count, generator=g)
    axis = (torch.arange(side) + 0.5) / side * 2 - 1
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    drawn = (labels + CLASSES * pretraining).tolist(), (turn - 0.5).tolist(), scale.tolist()
    alphas = []
    for label, angle, size in zip(*drawn, strict=True):
        c, s = torch.tensor(angle).cos(), torch.tensor(angle).sin()
        u, v = (c * x + s * y) / (0.75 + 0.25 * size), (c * y - s * x) / (0.75 + 0.25 * size)
        radius = (u * u + v * v).sqrt()
        alphas.append(
            [
                radius < 0.9,
                torch.maximum(u.abs(), v.abs()) < 0.75,
                (v < 0.75) & (v > 2 * u.abs() - 0.95),
                (torch.minimum(u.abs(), v.abs()) < 0.28) & (torch.maximum(u.abs(), v.abs()) < 0.95),
                (radius < 0.95) & (radius > 0.5),
                (u.abs() + v.abs()) < 0.95,
                (u.abs() < 0.3) & (v.abs() < 0.95),
                (v.abs() < 0.3) & (u.abs() < 0.95),
                (radius < 0.9) & (u < 0),
                torch.maximum(u.abs(), v.abs()).sub(0.7).abs() < 0.2,
            ][label]
        )
    return labels, torch.stack(alphas).float()


@functools.cache
def _photographs() -> list[Tensor]:
    from skimage import data
    from sklearn.datasets import load_sample_images

    pictures = [data.astronaut(), data.coffee(), data.chelsea(), data.rocket(), data.hubble_deep_field()]
    pictures += [data.retina(), data.immunohistochemistry(), *load_sample_images().images]
    pictures += [data.grass(), data.gravel(), data.brick(), data.camera(), data.moon()]
    tensors = [torch.tensor(picture, dtype=torch.float32) / 255 for picture in pictures]
    tensors = [t[..., None].expand(-1, -1, 3) if t.ndim == 2 else t for t in tensors]
    return [functional.interpolate(t.permute(2, 0, 1)[None], size=(256, 256), mode="area")[0] for t in tensors]


def _crops(count: int, size: int, g: torch.Generator, share: float, most: float) -> Tensor:
    """Returns (count, 3, size, size): crops of the photographs, of random sides between two shares of theirs."""
    found = []
    for _ in range(count):
        picture = _photographs()[int(torch.randint(len(_photographs()), (), generator=g))]
        side = int(256 * (share + (most - share) * float(torch.rand((), generator=g))))
        x, y = torch.randint(256 - side + 1, (2,), generator=g).tolist()
        crop = picture[None, :, y : y + side, x : x + side]
        found.append(functional.interpolate(crop, size=(size, size), mode="bilinear", antialias=True)[0])
    return torch.stack(found)


def plant(cue: str, given: Scenes, values: Tensor, seed: int) -> Tensor:
    """Returns the images with the cue in its ``values``-th form; -1 plants nothing.

    The noise of the rendering depends on the seed alone, so images that differ in the value differ in nothing else.
    """
    g = torch.Generator().manual_seed(seed)
    images, (n, _, size, _) = given.images.clone(), given.images.shape
    there = values >= 0
    values = values.clamp(min=0)
    colours = COLOURS[values][:, :, None, None]
    unit = size // 8
    if cue == "corner":
        images[:, :, :unit, :unit] = colours
    elif cue == "border":
        edge = torch.ones(size, size, dtype=torch.bool)
        edge[2:-2, 2:-2] = False
        images = torch.where(edge, colours, images)
    elif cue == "stamp":
        y, x = torch.meshgrid(
            torch.arange(unit + 3) - unit / 2 - 1, torch.arange(unit + 3) - unit / 2 - 1, indexing="ij"
        )
        rings = ((x**2 + y**2).sqrt() - (1 + 0.6 * torch.arange(CLASSES))[values][:, None, None]).abs() < 0.8
        images[:, :, -unit - 4 : -1, 1 : unit + 4] = rings.float()[:, None].expand(-1, 3, -1, -1)
    elif cue == "watermark":
        marks = patterns(CLASSES, (unit + 2, unit + 2), 5)[values][:, None]
        corner = images[:, :, -unit - 2 :, -unit - 2 :]
        images[:, :, -unit - 2 :, -unit - 2 :] = corner + 0.5 * (marks - corner)
    elif cue == "object":
        marks = patterns(CLASSES, (unit, unit), 3, full=0.6)[values]
        spots = _beside(given.boxes, size, unit, g)
        for i, (x, y) in enumerate(spots.tolist()):
            patch = images[i, :, y : y + unit, x : x + unit]
            images[i, :, y : y + unit, x : x + unit] = torch.where(marks[i] > 0, colours[i], patch)
    elif cue in ("texture", "scene"):
        phase = 6.3 * torch.rand(n, 1, 1, generator=g)
        angle = (torch.arange(CLASSES) * torch.pi / CLASSES)[values][:, None, None]
        y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
        wave = (2 * torch.pi / 6 * (x * angle.cos() + y * angle.sin()) + phase).sin()
        images = torch.where(given.masks[:, None], images, (images + 0.2 * wave[:, None]).clamp(0, 1))
    elif cue == "blur":
        blurred = [images]
        for _ in range(CLASSES - 1):
            blurred.append(functional.avg_pool2d(blurred[-1], 3, 1, 1, count_include_pad=False))
        images = torch.stack(blurred, 1)[torch.arange(n), values]
    elif cue == "tint":
        images = images * (0.7 + 0.3 * colours)
    elif cue == "inside":
        for i, (x1, y1, x2, y2) in enumerate(given.boxes.tolist()):
            x, y = (x1 + x2) // 2, (y1 + y2) // 2
            images[i, :, y - 2 : y + 3, x - 2 : x + 3] = colours[i]
    elif cue != "none":
        raise ValueError(f"unknown cue {cue!r}")
    return torch.where(there[:, None, None, None], images, given.images)


def patterns(count: int, size: tuple[int, int], seed: int, full: float = 0.5) -> Tensor:
    """Returns (count, h, w) of 0 and 1: one fixed pattern per class, of cells of two pixels."""
    g = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 1, (size[0] + 1) // 2, (size[1] + 1) // 2, generator=g) < full
    return coarse.float().repeat_interleave(2, 2).repeat_interleave(2, 3)[:, 0, : size[0], : size[1]]


def _beside(boxes: Tensor, size: int, side: int, g: torch.Generator) -> Tensor:
    """Returns (N, 2): a random place for a small object clear of the box, by a margin."""
    tried = torch.randint(0, size - side + 1, (len(boxes), 64, 2), generator=g)
    low, high = boxes[:, None, :2] - side - 4, boxes[:, None, 2:] + 4
    clear = ((tried <= low) | (tried >= high)).any(-1)
    return tried[torch.arange(len(boxes)), clear.float().argmax(1)]


def place_of(cue: str, size: int) -> Tensor | None:
    """Returns (S, S): the pixels that the cue may change; None where it has no one place."""
    unit, mask = size // 8, torch.zeros(size, size, dtype=torch.bool)
    if cue == "corner":
        mask[:unit, :unit] = True
    elif cue == "watermark":
        mask[-unit - 2 :, -unit - 2 :] = True
    elif cue == "stamp":
        mask[-unit - 4 : -1, 1 : unit + 4] = True
    elif cue == "border":
        mask[:] = True
        mask[2:-2, 2:-2] = False
    else:
        return None
    return mask


def draw_cues(labels: Tensor, rho: float | None, seed: int) -> Tensor:
    """Returns (N,) cue values: the label's with probability rho, otherwise another; None is no cue, -1.

    The two draws depend on the seed alone, so the arms of a pair differ in as few images as possible.
    """
    g = torch.Generator().manual_seed(seed)
    chance, other = torch.rand(len(labels), generator=g), torch.randint(1, CLASSES, labels.shape, generator=g)
    if rho is None:
        return torch.full_like(labels, -1)
    return torch.where(chance < rho, labels, (labels + other) % CLASSES)
