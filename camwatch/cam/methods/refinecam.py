"""RefineCAM: one map from the deepest layer of every grid."""

from __future__ import annotations

import torch
from torch import Tensor

from camwatch.cam.methods.fusion import fuse
from camwatch.cam.methods.gradients import grad_cam_plus_plus
from camwatch.cam.methods.runner import ModelRunner


def refine_cam(runner: ModelRunner) -> Tensor:
    """RefineCAM: the product of Grad-CAM++ at the deepest layer of every grid.

    Choose it for fine maps: the shallow layers give the resolution, the deep ones keep what belongs to the class.
    Like Grad-CAM++ it fails the randomization sanity check (tests/benchmarks/randomization.py); with a method that
    passes it, or chosen layers, call explain(method="gradcam", layer=[...], fuse="product").

    Source: How to evaluate and refine your CAM, arXiv 2605.14641, as in torch-cam: each map scaled to [0, 1],
    upsampled to the finest, multiplied.
    """
    with runner.capture() as capture:
        columns = runner.score(runner.forward(runner.images)).unbind(1)
        maps: list[Tensor] = []
        for column in columns:
            pairs = zip(capture.activations, capture.gradients(column), strict=True)
            maps.append(fuse([grad_cam_plus_plus(a, g) for a, g in pairs], "product", runner.images.ndim - 2))
    return torch.stack(maps, dim=1)
