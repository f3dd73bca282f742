"""The original CAM: the head's own weights, where the head is a global average and one linear layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from camwatch.cam.methods.gradients import weighted_sum
from camwatch.cam.methods.runner import LayerOutput, ModelRunner
from camwatch.cam.model.hooks import on_output
from camwatch.cam.model.modules import named_modules
from camwatch.cam.model.nested import replace_tensors
from camwatch.cam.model.targets import class_scores
from camwatch.errors import UnsupportedError


def cam(runner: ModelRunner, layer: LayerOutput) -> Tensor:
    """CAM: channels weighted by what the linear layer behind their global average gives them.

    Choose it to see exactly what such a head sums up, without any gradient; Grad-CAM and HiResCAM have the same
    map there, but for a factor, and work elsewhere too.

    Source: Zhou et al., Learning deep features for discriminative localization, CVPR 2016, equations 1 and 2. The
    weights of a target that mixes classes are mixed alike.

    Raises:
        UnsupportedError: The layer's global average is not what the last linear layer reads.
    """
    weight, output = _linear_head(runner, layer)
    logits = class_scores(output)
    scores = logits.float().clone().requires_grad_()
    output = replace_tensors(output, lambda t: scores.view_as(t) if t.data_ptr() == logits.data_ptr() else t)
    maps = []
    for column in runner.score(output).unbind(1):
        [shares] = torch.autograd.grad(column.sum(), scores, retain_graph=True)
        maps.append(weighted_sum(layer.activations, shares.flatten(1) @ weight))
    return torch.stack(maps, dim=1)


def _linear_head(runner: ModelRunner, layer: LayerOutput) -> tuple[Tensor, Any]:
    """Returns the weights (classes, C) that turn the layer's average into the scores, and the model's output."""
    average = layer.activations.flatten(2).mean(2)
    found: list[Tensor] = []

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        given, weight = args[0] if args else None, module.weight
        if isinstance(given, Tensor) and given.numel() == average.numel() and isinstance(weight, Tensor):
            read = given.reshape_as(average).float()
            if bool((read - average).abs().amax() <= 1e-2 * average.abs().amax()):  # bf16 rounds
                found.append(weight.flatten(1).float())

    heads = [module for _, module in named_modules(runner.model) if isinstance(module, (nn.Linear, _ConvNd))]
    with torch.no_grad(), on_output(heads, leave):
        output = replace_tensors(runner.forward(runner.images), Tensor.detach)
    classes = class_scores(output).shape[1]
    if not found or class_scores(output).ndim != 2 or len(found[-1]) != classes:
        raise UnsupportedError(
            "the original CAM needs a layer whose global average is all that the last linear layer reads, and this "
            "one is not; name the layer before the pooling, or take 'gradcam', which has the same map there"
        )
    return found[-1], output
