"""explain(): the one entry. Everything is put back as it was when it returns or raises."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any, overload

import torch
from torch import Tensor, nn

from camwatch.cam.capture import UnreachedError
from camwatch.cam.detach import run_detached, through_no_grad
from camwatch.cam.dispatch import Forward as Forward
from camwatch.cam.dispatch import check_method as check_method
from camwatch.cam.dispatch import explain_batch, needs_layer
from camwatch.cam.dispatch import methods as methods
from camwatch.cam.explanation import Explanation, concatenate
from camwatch.cam.layers import Layer, find_layers, without_zero_weights
from camwatch.cam.layout import Layout
from camwatch.cam.methods import Method
from camwatch.cam.structure import find_module, unwrap
from camwatch.cam.targets import Target, check_target, class_scores, two_sided
from camwatch.errors import CamwatchWarning, InputError
from camwatch.isolation import eval_mode, isolate_rng, plain_execution

LayerName = str | nn.Module


class BlankMapWarning(CamwatchWarning):
    """A map shows nothing: all zero, not finite, or the same everywhere."""


def _call(model: Any, images: Tensor) -> Any:
    return model(images)


def _check_images(images: Tensor) -> None:
    if not isinstance(images, Tensor) or images.ndim < 3 or not images.is_floating_point() or not len(images):
        arrived = (
            f"{images.dtype} of shape {tuple(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
        )
        raise InputError(f"images must be a floating tensor (N, C, H, W), N >= 1, as the model takes it; got {arrived}")


class _Neutral(ExitStack):
    """A model in evaluation mode, without a trace of what runs inside: the engine's outer context."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        for context in (plain_execution(), isolate_rng(), eval_mode(model)):
            self.enter_context(context)


def _prepare(model: nn.Module, images: Tensor) -> Tensor:
    """Moves images to the model's device and, outside autocast, to its dtype, as a normal tensor."""
    reference = next((p for p in model.parameters() if p.is_floating_point()), images)
    device = reference.device
    dtype = images.dtype if torch.is_autocast_enabled(device.type) else reference.dtype
    moved = images.detach().to(device=device, dtype=dtype)
    return moved.clone() if moved.is_inference() else moved


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
    _check_images(images)
    model = unwrap(model)
    with _Neutral(model):
        sample = _prepare(model, images[:1])
        found: list[Layer] = run_detached(
            model, lambda: find_layers(model, sample, forward or _call), change=without_zero_weights
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
    _check_images(images)
    model = unwrap(model)
    call = forward or _call
    parts = []
    with _Neutral(model), torch.no_grad():
        for batch in torch.split(images, batch_size or len(images)):
            output = run_detached(model, partial(call, model, _prepare(model, batch)))
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
) -> list[Explanation]: ...


def explain(
    model: nn.Module,
    images: Tensor,
    *,
    target: Target = "predicted",
    layer: LayerName | Sequence[LayerName] | None = None,
    method: str | Method = "gradcam",
    batch_size: int | None = None,
    forward: Forward | None = None,
) -> Explanation | list[Explanation]:
    """Explains a batch of images: where is the evidence for a class?

    Costs one forward pass and a short backward pass from the score to the layer. The model's parameters,
    buffers, ``.grad``, modes and hooks, and the random state, are afterwards what they were before.

    Args:
        model: Any vision model; compiled and data-parallel ones are unwrapped.
        images: (N, C, H, W) float as the model takes them; (N, C, L) and (N, C, D, H, W) likewise.
        target: "predicted"; a class index; (N,) integers; (N, K) integers for K maps per image from one
            forward pass; (N, classes) bool or float for the mean score of the positives; or a callable
            from the model's output to scores (N,) or (N, K). Explained is the logit, not the probability.
        layer: A name or module, a sequence of these (one forward pass for all), or None: found by a dry
            pass over one image. ``camwatch.layers(model, images)`` lists them. Methods that explain the
            image itself (saliency, occlusion and the like) take none; their layer is called "input".
        method: One of ``camwatch.methods()``, or a function (activations, gradients) -> maps.
        batch_size: Images per forward pass; all at once by default. A callable target sees one such batch.
            Methods that run the model again count their variants of the images too.
        forward: Callable (model, images) -> output, where ``model(images)`` is not the way.

    Returns:
        An Explanation, or a list of these where a sequence of layers was given.

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
    _check_images(images)
    check_target(target, len(images))
    if batch_size is not None and batch_size < 1:
        raise InputError(f"batch_size must be 1 or more, got {batch_size}")
    check_method(method)
    name = method if isinstance(method, str) else getattr(method, "__name__", type(method).__name__)
    model = unwrap(model)
    several = layer is not None and not isinstance(layer, (str, nn.Module))
    call = forward or _call

    layouts: list[Layout | None]
    if not needs_layer(method):
        if layer is not None:
            raise InputError(
                f"the method {name!r} explains the image itself, no layer: leave layer= out, got {layer!r}"
            )
        names, layouts = ["input"], []
    elif layer is None:
        default = next(found for found in layers(model, images, forward=forward) if found.default)
        names, layouts = [default.name], [default.layout]
    else:
        chosen: list[LayerName] = list(layer) if several else [layer]  # type: ignore[arg-type, list-item]
        names, layouts = [find_module(model, one)[0] for one in chosen], [None] * len(chosen)

    step = batch_size or len(images)
    parts: list[list[Explanation]] = []
    with _Neutral(model):
        for start in range(0, len(images), step):
            rows = slice(start, start + step)
            batch = _prepare(model, images[rows])
            wanted = target[rows] if isinstance(target, Tensor) else target
            run = partial(explain_batch, model, batch, wanted, names, layouts, method, call, batch_size)
            try:
                maps, output = run_detached(model, run)
            except UnreachedError:
                maps, output = run_detached(model, partial(through_no_grad, run))
            size = tuple(images.shape[2:])
            parts.append([Explanation(m, output, n, name, size) for m, n in zip(maps, names, strict=True)])
    explanations = [replace(concatenate(list(column)), images=images) for column in zip(*parts, strict=True)]
    for explanation in explanations:
        _warn_of_blank_maps(explanation)
    return explanations if several else explanations[0]


def _warn_of_blank_maps(explanation: Explanation) -> None:
    blank = explanation.blank()
    if bool(blank.any()):
        warnings.warn(
            BlankMapWarning(
                f"{int(blank.sum())} of {blank.numel()} maps of {explanation.method} at {explanation.layer!r} show "
                f"nothing (all zero, not finite, or the same everywhere): no evidence for the target was found "
                f"there; try a shallower layer or another method, and check that the weights are finite"
            ),
            stacklevel=3,
        )
