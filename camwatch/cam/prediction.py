"""The model's class scores, without a trace in the model."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from camwatch.cam.model.execution import (
    Forward,
    call_plainly,
    check_images,
    isolated_evaluation,
    prepare,
    run_detached,
)
from camwatch.cam.model.modules import unwrap
from camwatch.cam.model.targets import class_scores, two_sided


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
    with isolated_evaluation(model), torch.no_grad():
        for batch in torch.split(images, batch_size or len(images)):
            output = run_detached(model, partial(call, model, prepare(model, batch)))
            scores = two_sided(class_scores(output)).float()
            parts.append((scores.flatten(2).mean(2) if scores.ndim > 2 else scores).cpu())
    return torch.cat(parts)
