"""explain(): the one entry. Everything is put back as it was when it returns or raises."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, overload

import torch
from torch import Tensor, nn

from camwatch.cam.capture import UnreachedError
from camwatch.cam.degenerate import BlankMapWarning as BlankMapWarning
from camwatch.cam.degenerate import warn_of_flaws
from camwatch.cam.detach import run_detached, through_no_grad
from camwatch.cam.dispatch import Forward as Forward
from camwatch.cam.dispatch import explain_batch
from camwatch.cam.explanation import Explanation, concatenate
from camwatch.cam.fusion import check_fusion, fuse_explanations, stages
from camwatch.cam.layers import Layer, find_layers, without_zero_weights
from camwatch.cam.layout import Layout
from camwatch.cam.methods.gradients import Method
from camwatch.cam.methods.registry import STAGE_METHODS, needs_layer
from camwatch.cam.methods.registry import check_method as check_method
from camwatch.cam.methods.registry import methods as methods
from camwatch.cam.neutral import Neutral, call_plainly, check_images, prepare
from camwatch.cam.smoothing import augmented
from camwatch.cam.structure import find_module, unwrap
from camwatch.cam.targets import Target, check_target, class_scores, select, two_sided
from camwatch.errors import InputError

LayerName = str | nn.Module
Once = Callable[[Tensor, Target], tuple[list[Tensor], Any]]


def layers(model: nn.Module, images: Tensor, *, forward: Forward | None = None) -> list[Layer]:
    """Lists the layers that can be explained, in the order in which they run, the default one marked.

    Args:
        model: Any vision model.
        images: (N, C, H, W) as the model takes them; the first one is used.
        forward: Callable (model, images) -> output, where ``model(images)`` is not the way.

    Raises:
        LayerError: No layer has a spatial grid.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(392, 5))
        >>> layers(net, torch.rand(1, 3, 16, 16))[-1]
        Layer(name='1', grid=(7, 7), channels=8, default=True)
    """
    check_images(images)
    model = unwrap(model)
    with Neutral(model):
        sample = prepare(model, images[:1])
        found: list[Layer] = run_detached(
            model, lambda: find_layers(model, sample, forward or call_plainly), change=without_zero_weights
        )
        return found


def predict(
    model: nn.Module, images: Tensor, *, batch_size: int | None = None, forward: Forward | None = None
) -> Tensor:
    """Returns the model's class scores, (N, C) float32 on the CPU, without a trace in the model.

    The scores of a dense output are averaged over its pixels; a one-logit head has two sides.

    Example:
        >>> predict(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), torch.rand(2, 1, 2, 2)).shape
        torch.Size([2, 3])
    """
    check_images(images)
    model = unwrap(model)
    call = forward or call_plainly
    parts = []
    with Neutral(model), torch.no_grad():
        for batch in torch.split(images, batch_size or len(images)):
            output = run_detached(model, partial(call, model, prepare(model, batch)))
            scores = two_sided(class_scores(output)).float()
            parts.append((scores.flatten(2).mean(2) if scores.ndim > 2 else scores).cpu())
    return torch.cat(parts)


@overload
def explain(  # type: ignore[overload-overlap]  # a string is a sequence of strings
    model: nn.Module,
    images: Tensor,
    *,
    target: Target = ...,
    layer: LayerName | None = ...,
    method: str | Method = ...,
    batch_size: int | None = ...,
    forward: Forward | None = ...,
    fuse: str | None = ...,
    smooth: bool = ...,
) -> Explanation: ...


@overload
def explain(
    model: nn.Module,
    images: Tensor,
    *,
    target: Target = ...,
    layer: Sequence[LayerName],
    method: str | Method = ...,
    batch_size: int | None = ...,
    forward: Forward | None = ...,
    fuse: None = ...,
    smooth: bool = ...,
) -> list[Explanation]: ...


@overload
def explain(
    model: nn.Module,
    images: Tensor,
    *,
    target: Target = ...,
    layer: Sequence[LayerName],
    method: str | Method = ...,
    batch_size: int | None = ...,
    forward: Forward | None = ...,
    fuse: str,
    smooth: bool = ...,
) -> Explanation: ...


def explain(
    model: nn.Module,
    images: Tensor,
    *,
    target: Target = "predicted",
    layer: LayerName | Sequence[LayerName] | None = None,
    method: str | Method = "gradcam",
    batch_size: int | None = None,
    forward: Forward | None = None,
    fuse: str | None = None,
    smooth: bool = False,
) -> Explanation | list[Explanation]:
    """Explains a batch of images: where is the evidence for a class?

    Costs one forward pass and a short backward pass from the score to the layer. The model's parameters,
    buffers, ``.grad``, modes and hooks, and the random state, are afterwards what they were before.

    Args:
        model: Any vision model; compiled and data-parallel ones are unwrapped.
        images: (N, C, H, W) float as the model takes them; (N, C, L) and (N, C, D, H, W) likewise.
        target: "predicted"; a class index; (N,) integers; (N, K) integers for K maps per image from one
            forward pass; (N, classes) bool or float for the mean score of the positives; or a callable
            from the model's output to scores (N,) or (N, K), such as ``Contrast`` (why this class and not that
            one), ``Similarity`` (of embeddings) and ``BoxScores`` (of a detector) in ``camwatch.cam``.
            Explained is the logit, not the probability.
        layer: A name or module, a sequence of these (one forward pass for all), or None: found by a dry
            pass over one image. ``camwatch.layers(model, images)`` lists them. Methods that explain the
            image itself (saliency, rollout and the like) take none; their layer is called "input".
        method: One of ``camwatch.methods()``, or a function (activations, gradients) -> maps.
        batch_size: Images per forward pass; all at once by default. A callable target sees one such batch.
            Methods that run the model again count their variants of the images too.
        forward: Callable (model, images) -> output, where ``model(images)`` is not the way.
        fuse: "mean", "max" or "product": one map from several layers, each scaled to [0, 1] and upsampled to the
            finest; without layer= the deepest layer of every grid.
        smooth: Average the maps over six copies of the images: mirrored or not, times 0.9, 1 and 1.1.

    Returns:
        An Explanation, or a list of these where a sequence of layers was given and not fused.

    Raises:
        InputError: Unusable images or method.
        LayerError: A layer that does not exist, did not run, or has no spatial grid or gradient.
        TargetError: A target that does not fit the model's output.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
        >>> e = explain(net, torch.rand(2, 3, 16, 16), target=torch.tensor([3, 1]))
        >>> e.layer, e.maps.shape, e.heatmaps().shape
        ('1', torch.Size([2, 14, 14]), torch.Size([2, 16, 16]))
    """
    check_images(images)
    check_target(target, len(images))
    if batch_size is not None and batch_size < 1:
        raise InputError(f"batch_size must be 1 or more, got {batch_size}")
    check_method(method)
    name = method if isinstance(method, str) else getattr(method, "__name__", type(method).__name__)
    model = unwrap(model)
    several = layer is not None and not isinstance(layer, (str, nn.Module)) and fuse is None
    call = forward or call_plainly

    names, layouts = _places(model, images, layer, method, fuse, forward)
    labels = names if needs_layer(method) else ["input"]
    step = batch_size or len(images)
    parts: list[list[Explanation]] = []
    with Neutral(model):
        for start in range(0, len(images), step):
            rows = slice(start, start + step)
            batch = prepare(model, images[rows])
            once = partial(explain_batch, model, names, layouts, method, call, batch_size)
            run = partial(augmented if smooth else _plainly, once, batch, select(target, rows))
            try:
                maps, output = run_detached(model, run)
            except UnreachedError:
                maps, output = run_detached(model, partial(through_no_grad, run))
            size = tuple(images.shape[2:])
            parts.append([Explanation(m, output, n, name, size) for m, n in zip(maps, labels, strict=True)])
    explanations = [replace(concatenate(list(column)), images=images) for column in zip(*parts, strict=True)]
    if fuse is not None:
        explanations = [fuse_explanations(explanations, fuse)]
    for explanation in explanations:
        warn_of_flaws(explanation.flaws(), explanation.method, explanation.layer, stacklevel=2)
    return explanations if several else explanations[0]


def _plainly(once: Once, images: Tensor, target: Target) -> tuple[list[Tensor], Any]:
    return once(images, target)


def _places(
    model: nn.Module,
    images: Tensor,
    layer: LayerName | Sequence[LayerName] | None,
    method: str | Method,
    fuse: str | None,
    forward: Forward | None,
) -> tuple[list[str], list[Layout | None]]:
    """Returns the names of the layers that a method looks at, and how they lie on the image where that is known."""
    check_fusion(fuse)
    if not needs_layer(method):
        if layer is not None or fuse is not None:
            raise InputError(
                f"the method {method!r} explains the image itself, no layer: leave layer= and fuse= out, got "
                f"{layer!r} and {fuse!r}"
            )
        if method not in STAGE_METHODS:
            return [], []
    if layer is None:
        found = layers(model, images, forward=forward)
        one_per_grid = fuse is not None or method in STAGE_METHODS
        chosen = stages(found) if one_per_grid else [one for one in found if one.default]
        return [one.name for one in chosen], [one.layout for one in chosen]
    given: list[LayerName] = [layer] if isinstance(layer, (str, nn.Module)) else list(layer)
    return [find_module(model, one)[0] for one in given], [None] * len(given)
