"""From a method's name to the maps of one batch: what each kind of method is given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, overload

import torch
from torch import Tensor, nn

from camwatch.cam.blank_maps import warn_of_flaws
from camwatch.cam.explanation import Explanation, concatenate, fuse_explanations
from camwatch.cam.methods.fusion import check_fusion
from camwatch.cam.methods.gradients import GRADIENT_METHODS, Method
from camwatch.cam.methods.registry import IMAGE_METHODS, SITE_METHODS, STAGE_METHODS, check_method, needs_layer
from camwatch.cam.methods.runner import Access, Site, per_image
from camwatch.cam.model.execution import (
    Forward,
    Neutral,
    call_plainly,
    check_images,
    prepare,
    run_detached,
    through_no_grad,
)
from camwatch.cam.model.hooks import LayerCapture, UnreachedError
from camwatch.cam.model.layers import LayerName, layers, stages
from camwatch.cam.model.layout import Layout
from camwatch.cam.model.modules import find_module, unwrap
from camwatch.cam.model.nested import replace_tensors
from camwatch.cam.model.targets import Target, check_target, score, select, settle
from camwatch.cam.smoothing import augmented
from camwatch.errors import InputError


def explain_batch(
    model: nn.Module,
    names: list[str],
    layouts: list[Layout | None],
    method: str | Method,
    forward: Forward,
    batch_size: int | None,
    images: Tensor,
    target: Target,
) -> tuple[list[Tensor], Any]:
    """Returns each map asked for, (N[, K], *grid), and the model's output without its graph."""
    call = partial(forward, model)
    if not isinstance(method, str) or method in GRADIENT_METHODS:
        with LayerCapture(model, names, size=images.shape[2:], layouts=layouts) as capture:
            output = call(images)
            capture.check()
            function = GRADIENT_METHODS[method] if isinstance(method, str) else method
            return _gradient_maps(function, capture, score(output, target)), replace_tensors(output, Tensor.detach)
    sites: list[Site] = []
    if method not in IMAGE_METHODS:
        with LayerCapture(model, names, size=images.shape[2:], layouts=layouts) as capture:
            output = replace_tensors(call(images), Tensor.detach)
        modules = [find_module(model, name)[1] for name in names]
        raw = [t.detach() for t in capture.raw]
        sites = [Site(*site) for site in zip(modules, raw, capture.layouts, capture.calls, strict=True)]
    else:
        with torch.no_grad():
            output = replace_tensors(call(images), Tensor.detach)
    fixed = settle(output, target)

    def rate(output: Any) -> Tensor:
        return per_image(score(output, fixed), len(images)).float()

    access = Access(model, images, output, call, rate, batch_size, _classes(fixed, images))
    if method in SITE_METHODS:
        found = [SITE_METHODS[method](access, site) for site in sites]
    elif method in STAGE_METHODS:
        found = [STAGE_METHODS[method](access, sites)]
    else:
        found = [IMAGE_METHODS[method](access)]
    several = score(output, fixed).ndim == 2
    return [maps if several else maps[:, 0] for maps in found], output


def _classes(target: Target, images: Tensor) -> Tensor | None:
    """Returns the target's class indices as (N, K), or None where it names no classes."""
    if isinstance(target, int):
        return torch.full((len(images), 1), target, device=images.device)
    if isinstance(target, Tensor) and not target.is_floating_point() and target.dtype != torch.bool:
        return target.to(images.device).long().reshape(len(images), -1)
    return None


def _gradient_maps(method: Method, capture: LayerCapture, scores: Tensor) -> list[Tensor]:
    columns = scores.unbind(1) if scores.ndim == 2 else [scores]
    maps: list[list[Tensor]] = []
    with torch.autocast(scores.device.type, enabled=False):
        activations = capture.activations
        for k, column in enumerate(columns):
            gradients = capture.gradients(column, retain_graph=k < len(columns) - 1)
            maps.append([method(a, g) for a, g in zip(activations, gradients, strict=True)])
    return [torch.stack(list(m), dim=1) if scores.ndim == 2 else m[0] for m in zip(*maps, strict=True)]


pass


Once = Callable[[Tensor, Target], tuple[list[Tensor], Any]]


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
