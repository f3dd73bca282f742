"""One map from several layers."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from camwatch.cam.capture import LayerCapture
from camwatch.cam.explanation import Explanation
from camwatch.cam.layers import Layer
from camwatch.cam.methods.access import Access, Site
from camwatch.cam.methods.gradients import grad_cam_plus_plus
from camwatch.cam.methods.perturbation import INTERPOLATION, unit
from camwatch.errors import InputError, LayerError, unknown

FUSIONS = ("max", "mean", "product")


def check_fusion(how: str | None) -> None:
    """Raises InputError for an unknown way to fuse."""
    if how is not None and how not in FUSIONS:
        raise InputError(unknown("fusion", how, FUSIONS))


def fuse(maps: list[Tensor], how: str, axes: int = 2) -> Tensor:
    """Scales each layer's maps to [0, 1], upsamples them to the finest grid, and takes their mean, max or product.

    The mean shows what any layer sees, the max the strongest, the product what all agree on. A blank map counts 0;
    one that is not finite stays so.

    Args:
        maps: (N[, K], *grid) for each layer.
        how: "mean", "max" or "product".
        axes: Number of the grid's axes.

    Example:
        >>> fuse([torch.tensor([[0.0, 2.0]]), torch.tensor([[4.0, 0.0]])], "mean", axes=1)
        tensor([[0.5000, 0.5000]])
    """
    check_fusion(how)
    finest = tuple(max(extents) for extents in zip(*(m.shape[-axes:] for m in maps), strict=True))
    leading = maps[0].shape[:-axes]
    scaled = [unit(m.reshape(-1, 1, *m.shape[-axes:])) for m in maps]
    mode = INTERPOLATION[axes]
    layers = torch.stack([functional.interpolate(m, finest, mode=mode, align_corners=False) for m in scaled])
    fused = {"mean": layers.mean(0), "max": layers.amax(0), "product": layers.prod(0)}[how]
    return fused.reshape(*leading, *finest)


def fuse_explanations(parts: list[Explanation], how: str) -> Explanation:
    """Returns one explanation from those of several layers, whose names it carries."""
    maps = fuse([part.maps for part in parts], how, len(parts[0].size))
    return replace(parts[0], maps=maps, layer="+".join(part.layer for part in parts))


def refine_cam(access: Access, sites: list[Site]) -> Tensor:
    """RefineCAM: the product of Grad-CAM++ at the deepest layer of every grid.

    Choose it for fine maps: the shallow layers give the resolution, the deep ones keep what belongs to the class.
    Like Grad-CAM++ it fails the randomization sanity check (tests/benchmarks/randomization.py); with a method that
    passes it, or chosen layers, call explain(method="gradcam", layer=[...], fuse="product").

    Source: How to evaluate and refine your CAM, arXiv 2605.14641, as in torch-cam: each map scaled to [0, 1],
    upsampled to the finest, multiplied.
    """
    modules, layouts = [site.module for site in sites], [site.layout for site in sites]
    with LayerCapture(access.model, modules, size=access.images.shape[2:], layouts=layouts) as capture:
        columns = access.rate(access.forward(access.images)).unbind(1)
        maps: list[Tensor] = []
        for column in columns:
            pairs = zip(capture.activations, capture.gradients(column), strict=True)
            maps.append(fuse([grad_cam_plus_plus(a, g) for a, g in pairs], "product", access.images.ndim - 2))
    return torch.stack(maps, dim=1)


def stages(found: list[Layer]) -> list[Layer]:
    """Returns the deepest layer of every grid, the finest first, down to the default layer's.

    Raises:
        LayerError: All layers have one grid.
    """
    default = next(layer for layer in found if layer.default)
    upto = found[: found.index(default) + 1]
    last = {layer.grid: layer for layer in upto}
    chosen = sorted(last.values(), key=upto.index)
    if len(chosen) < 2:
        raise LayerError(
            f"all layers down to {default.name!r} have the grid {default.grid}, so that there are no stages to fuse; "
            f"name several layers: layer=[...], fuse='product'"
        )
    return chosen
