"""Deep feature factorization: the concepts that a layer's activations consist of, whatever the class."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from camwatch.cam.model.execution import Forward, call_plainly, check_images, isolated_evaluation, prepare, run_detached
from camwatch.cam.model.hooks import LayerCapture, replace_output
from camwatch.cam.model.layers import LayerName, layers
from camwatch.cam.model.layout import Layout
from camwatch.cam.model.modules import find_module, unwrap
from camwatch.cam.model.targets import class_scores
from camwatch.errors import InputError

STEPS = 200


@dataclass(frozen=True, eq=False)
class Factorization:
    """The concepts of one layer over a batch of images.

    Attributes:
        maps: (N, K, *grid) float32, where each concept lies; its strongest cell over all images is 1.
        concepts: (K, C), the channels of that cell. The largest concept goes first.
        scores: (K, classes), what the layers behind say to a map full of each concept.
        residue: Share of the activations' sum of squares that the concepts leave over, 0 to 1.
        layer: The layer's name.
    """

    maps: Tensor
    concepts: Tensor
    scores: Tensor = field(repr=False)
    residue: float
    layer: str


def factorize(
    model: nn.Module,
    images: Tensor,
    *,
    concepts: int = 5,
    layer: LayerName | None = None,
    batch_size: int | None = None,
    forward: Forward | None = None,
) -> Factorization:
    """Takes a layer's activations over a batch of images apart into a few non-negative concepts.

    Choose it to see what a network tells apart over many images at once: parts and objects that no label names.
    Where activations are negative, each channel is first raised by its minimum. The same input gives the same result.

    Args:
        model: Any vision model.
        images: (N, C, H, W) as the model takes them, best of one or a few classes.
        concepts: K, their number.
        layer: A name or module; found by a pass of one image where None.
        batch_size: Images per forward pass.
        forward: Callable (model, images) -> output, where ``model(images)`` is not the way.

    Raises:
        InputError: More concepts than channels or cells.

    Source: Collins et al., Deep feature factorization for concept discovery, ECCV 2018, equation 3.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
        >>> found = factorize(net, torch.rand(2, 3, 16, 16), concepts=3)
        >>> found.maps.shape, found.scores.shape
        (torch.Size([2, 3, 14, 14]), torch.Size([3, 5]))
    """
    check_images(images)
    model, call = unwrap(model), forward or call_plainly
    layout: Layout | None = None
    if layer is None:
        default = next(found for found in layers(model, images, forward=forward) if found.default)
        layer, layout = default.name, default.layout
    name, module = find_module(model, layer)

    def look(batch: Tensor) -> tuple[Tensor, Tensor, Layout, int]:
        with LayerCapture(model, name, size=batch.shape[2:], layouts=[layout]) as capture:
            call(model, batch)
        return capture.activations, capture.raw[0][:1].detach(), capture.layouts[0], capture.calls[0]

    def judge(vectors: Tensor, raw: Tensor, found: Layout, calls: int) -> Tensor:
        cells = vectors.view(*vectors.shape, *[1] * len(found.grid)).expand(-1, -1, *found.grid).to(raw)
        value = found.invert(cells, raw.expand(len(cells), *raw.shape[1:]))
        with torch.no_grad(), replace_output(module, value, calls):
            image = prepare(model, images[:1])
            return class_scores(call(model, image.expand(len(cells), *image.shape[1:]))).float()

    with isolated_evaluation(model):
        seen = [
            run_detached(model, partial(look, prepare(model, b)))
            for b in torch.split(images, batch_size or len(images))
        ]
        activations, (_, raw, found, calls) = torch.cat([one[0] for one in seen]), seen[0]
        points = activations.movedim(1, -1).flatten(0, -2).double()
        if not 1 <= concepts <= min(points.shape):
            raise InputError(f"concepts must be 1 to {min(points.shape)} for {tuple(points.shape)} cells and channels")
        floor = points.amin(0).clamp(max=0)
        places, vectors = nonnegative_factors(points - floor, concepts)
        left = points - floor - places @ vectors
        strongest = places.amax(0)
        order = (places.sum(0) * vectors.sum(1)).argsort(descending=True)
        places, vectors = (places / strongest.clamp(min=1e-300))[:, order], (vectors * strongest[:, None])[order]
        judged = run_detached(model, partial(judge, (vectors + floor).float(), raw, found, calls))
    grid = activations.shape[2:]
    maps = places.float().reshape(len(images), *grid, concepts).movedim(-1, 1)
    total = (points - floor).square().sum()
    residue = float(left.square().sum() / total) if float(total) > 0 else 0.0
    return Factorization(maps, vectors.float(), judged, residue, name)


def nonnegative_factors(values: Tensor, rank: int, steps: int = STEPS) -> tuple[Tensor, Tensor]:
    """Returns (P, K) and (K, C), non-negative, whose product is near the non-negative values (P, C).

    Hierarchical alternating least squares (Cichocki and Phan 2009) from the singular vectors' positive parts
    (Boutsidis and Gallopoulos 2008), which are the same for the same values.

    Example:
        >>> places, vectors = nonnegative_factors(torch.tensor([[1.0, 2.0], [2.0, 4.0]]), 1)
        >>> torch.allclose(places @ vectors, torch.tensor([[1.0, 2.0], [2.0, 4.0]]))
        True
    """
    left, singular, right = torch.linalg.svd(values, full_matrices=False)
    places, vectors = [], []
    for u, s, v in zip(left.T[:rank], singular[:rank], right[:rank], strict=True):
        sides = [(u.clamp(min=0), v.clamp(min=0)), ((-u).clamp(min=0), (-v).clamp(min=0))]
        one, two = max(sides, key=lambda side: float(side[0].norm() * side[1].norm()))
        scale = (s * one.norm() * two.norm()).sqrt()
        places.append(scale * one / one.norm().clamp(min=1e-300))
        vectors.append(scale * two / two.norm().clamp(min=1e-300))
    p, v = torch.stack(places, 1), torch.stack(vectors)
    for _ in range(steps):
        p = _improved(p, v @ v.T, values @ v.T)
        v = _improved(v.T, p.T @ p, values.T @ p).T
    return p, v


def _improved(factor: Tensor, gram: Tensor, target: Tensor) -> Tensor:
    """One round over the columns of a factor, each set to its best non-negative value with the others fixed."""
    columns = factor.clone()
    for k in range(columns.shape[1]):
        if float(gram[k, k]) > 0:
            columns[:, k] = (columns[:, k] + (target[:, k] - columns @ gram[:, k]) / gram[k, k]).clamp(min=0)
    return columns
