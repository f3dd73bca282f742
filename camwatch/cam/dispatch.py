"""From a method's name to the maps of one batch: what each kind of method is given."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from camwatch.cam.capture import LayerCapture
from camwatch.cam.layout import Layout
from camwatch.cam.methods.access import Access, Site, per_image
from camwatch.cam.methods.gradients import GRADIENT_METHODS, Method
from camwatch.cam.methods.registry import IMAGE_METHODS, SITE_METHODS, STAGE_METHODS
from camwatch.cam.methods.registry import needs_layer as needs_layer
from camwatch.cam.structure import find_module, replace
from camwatch.cam.targets import Target, score, settle

Forward = Callable[[Any, Tensor], Any]


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
            return _gradient_maps(function, capture, score(output, target)), replace(output, Tensor.detach)
    sites: list[Site] = []
    if method not in IMAGE_METHODS:
        with LayerCapture(model, names, size=images.shape[2:], layouts=layouts) as capture:
            output = replace(call(images), Tensor.detach)
        modules = [find_module(model, name)[1] for name in names]
        raw = [t.detach() for t in capture.raw]
        sites = [Site(*site) for site in zip(modules, raw, capture.layouts, capture.calls, strict=True)]
    else:
        with torch.no_grad():
            output = replace(call(images), Tensor.detach)
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
