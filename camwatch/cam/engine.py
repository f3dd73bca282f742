"""Explaining one batch of images: from a model and a method's name to maps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, overload

from torch import Tensor, nn

from camwatch.cam.blank_maps import warn_of_flaws
from camwatch.cam.explanation import Explanation, concatenate, fuse_explanations
from camwatch.cam.methods.fusion import check_fusion
from camwatch.cam.methods.method import MapFunction, Method
from camwatch.cam.methods.registry import find_method
from camwatch.cam.methods.runner import ModelRunner
from camwatch.cam.model.execution import (
    Forward,
    call_plainly,
    check_images,
    isolated_evaluation,
    prepare,
    run_detached,
    through_no_grad,
)
from camwatch.cam.model.hooks import UnreachedError
from camwatch.cam.model.layers import LayerName, layers, stages
from camwatch.cam.model.layout import Layout
from camwatch.cam.model.modules import find_module, unwrap
from camwatch.cam.model.targets import Target, check_target, select
from camwatch.cam.smoothing import augmented
from camwatch.errors import InputError, LayerError

Layers = LayerName | Sequence[LayerName] | None


@overload
def explain(  # type: ignore[overload-overlap]  # a string is a sequence of strings
    model: nn.Module,
    images: Tensor,
    *,
    target: Target = ...,
    layer: LayerName | None = ...,
    method: str | Method | MapFunction = ...,
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
    method: str | Method | MapFunction = ...,
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
    method: str | Method | MapFunction = ...,
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
    method: str | Method | MapFunction = "gradcam",
    batch_size: int | None = None,
    forward: Forward | None = None,
    fuse: str | None = None,
    smooth: bool = False,
) -> Explanation | list[Explanation]:
    """Explains a batch of images: where is the evidence for a class?

    Costs one forward pass and a short backward pass from the score to the layer; a layer that has to be found costs a
    pass of one image more, so name it, or reuse ``e.layer``. The model's parameters, buffers, ``.grad``, modes
    and hooks, and the random state, are afterwards what they were before, also after an exception.

    Models may be frozen, compiled or data-parallel, the caller under ``no_grad``, ``inference_mode`` or autocast; CNNs,
    ViT and Swin, detectors, segmentation models and Keras 3 models on torch are taken, on images, signals and volumes.
    ``torch.inference_mode()`` inside the model's own forward is refused: no gradient can be had there.

    Args:
        model: Any vision model; compiled and data-parallel ones are unwrapped.
        images: (N, C, H, W) float as the model takes them; (N, C, L) and (N, C, D, H, W) likewise.
        target: "predicted"; a class index; (N,) integers; (N, K) integers for K maps per image from one
            forward pass; (N, classes) bool or float for the mean score of the positives; or a callable
            from the model's output to scores (N,) or (N, K), such as ``Contrast`` (why this class and not that
            one), ``Similarity`` (of embeddings) and ``BoxScores`` (of a detector) in ``camwatch.cam``.
            Explained is the logit, not the probability.
        layer: A name or module, a sequence of these (one forward pass for all), or None: found by a
            pass of one image. ``camwatch.layers(model, images)`` lists them. Methods that explain the
            image itself (saliency, rollout and the like) take none; their layer is called "input".
        method: One of ``camwatch.methods()``, a function (activations, gradients) -> maps, or a ``Method``.
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
        >>> import torch
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
    chosen, model = find_method(method), unwrap(model)
    names, layouts = _layers_of(model, images, layer, chosen, fuse, forward)

    def explain_once(batch: Tensor, target: Target) -> tuple[list[Tensor], Any]:
        run = partial(forward or call_plainly, model)
        runner = ModelRunner(model, batch, target, run, names, layouts, batch_size)
        maps = chosen.maps(runner)
        return [m if runner.several else m[:, 0] for m in maps], runner.output

    shown = names if chosen.explains == "layer" else ["input"]
    size, step = tuple(images.shape[2:]), batch_size or len(images)
    parts: list[list[Explanation]] = []
    with isolated_evaluation(model):
        for start in range(0, len(images), step):
            rows = slice(start, start + step)
            once = partial(augmented, explain_once) if smooth else explain_once
            run = partial(once, prepare(model, images[rows]), select(target, rows))
            try:
                maps, output = run_detached(model, run)
            except UnreachedError:
                maps, output = run_detached(model, partial(through_no_grad, run))
            parts.append([Explanation(m, output, one, chosen.name, size) for m, one in zip(maps, shown, strict=True)])
    explanations = [replace(concatenate(list(column)), images=images) for column in zip(*parts, strict=True)]
    if fuse is not None:
        explanations = [fuse_explanations(explanations, fuse)]
    for explanation in explanations:
        warn_of_flaws(explanation.flaws(), explanation.method, explanation.layer, stacklevel=2)
    several = layer is not None and not isinstance(layer, (str, nn.Module)) and fuse is None
    return explanations if several else explanations[0]


def _layers_of(
    model: nn.Module, images: Tensor, layer: Layers, method: Method, fuse: str | None, forward: Forward | None
) -> tuple[list[str], list[Layout | None]]:
    """Returns the names of the layers that a method looks at, and how they lie on the image where that is known."""
    check_fusion(fuse)
    if method.explains != "layer" and (layer is not None or fuse is not None):
        raise InputError(
            f"the method {method.name!r} explains the image itself, no layer: leave layer= and fuse= out, got "
            f"{layer!r} and {fuse!r}"
        )
    if method.explains == "input":
        return [], []
    if layer is None:
        found = layers(model, images, forward=forward)
        one_per_grid = fuse is not None or method.explains == "stages"
        chosen = stages(found) if one_per_grid else [one for one in found if one.default]
        return [one.name for one in chosen], [one.layout for one in chosen]
    given: list[LayerName] = [layer] if isinstance(layer, (str, nn.Module)) else list(layer)
    if not given:
        raise LayerError("no layer was given: an empty sequence arrived")
    return [find_module(model, one)[0] for one in given], [None] * len(given)
