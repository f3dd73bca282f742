"""FullGrad: what the input and every bias contribute to the score."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from camwatch.cam.methods.fusion import INTERPOLATION, unit
from camwatch.cam.methods.runner import ModelRunner
from camwatch.cam.model.hooks import UnreachedError, record_calls
from camwatch.cam.model.layout import lay_out
from camwatch.cam.model.modules import named_modules
from camwatch.errors import UnsupportedError


def fullgrad(runner: ModelRunner) -> Tensor:
    """FullGrad: the input's and every bias's share of the score, summed at the image's resolution.

    Choose it where the shares should add up to the score and no layer should be named. Sharp, but it shows what
    mattered for or against, and a network without biases is explained by its input alone. Each share is scaled alike,
    so that maps hardly change when the head is drawn anew: it fails the randomization sanity check
    (tests/benchmarks/randomization.py). Costs a whole backward pass, with the graph of every layer.

    Shares behind global pooling lie on no place of the image and are left out.

    Source: Srinivas and Fleuret, Full-gradient representation, NeurIPS 2019, equations 4 and 8, each map's
    magnitude scaled to [0, 1] before it is upsampled. A batch norm's bias includes its running mean.

    Raises:
        UnreachedError: The model cuts the graph between pixels and score.
        UnsupportedError: The biases are in no layer of torch.
    """
    size = tuple(runner.images.shape[2:])
    maps = []
    for pixels, biases in full_gradients(runner):
        total = unit(pixels.abs()).sum(1)
        for share in biases:
            if share.ndim == pixels.ndim:
                coarse = unit(share.abs()).sum(1, keepdim=True)  # upsampling is linear: once, behind the sum
                total = total + functional.interpolate(coarse, size, mode=INTERPOLATION[len(size)])[:, 0]
        maps.append(total)
    return torch.stack(maps, dim=1)


def full_gradients(runner: ModelRunner) -> list[tuple[Tensor, list[Tensor]]]:
    """Returns, for each of K targets, the pixels' shares (N, C, *size) and each bias's (N, c, *grid) or (N, c).

    They add up to the score of a network that is piecewise linear (equation 4).
    """
    size, n = tuple(runner.images.shape[2:]), len(runner.images)
    modules = [module for _, module in named_modules(runner.model) if added_bias(module) is not None]
    if not modules and any(name.endswith("bias") for name, _ in runner.model.named_parameters()):
        raise UnsupportedError(
            f"FullGrad knows the biases of torch's own layers, and {type(runner.model).__name__} has others; "
            f"take 'gradcam' or 'saliency'"
        )
    leaf = runner.images.detach().clone().requires_grad_()
    found = []
    with record_calls(modules, lambda tensor: tensor.ndim >= 2 and tensor.shape[0] == n) as calls:
        columns = runner.score(runner.forward(leaf)).unbind(1)
        recorded = list(calls)  # gradient checkpointing runs the modules again below
        for column in columns:
            wanted = [leaf, *(tensor for _, tensor in recorded)]
            gradients: list[Tensor | None] = [None] * len(wanted)
            if column.requires_grad:
                gradients = list(torch.autograd.grad(column.sum(), wanted, retain_graph=True, allow_unused=True))
            if gradients[0] is None:
                raise UnreachedError(
                    "the score does not depend on the pixels through a differentiable path; take a method that "
                    "explains a layer, such as 'gradcam'"
                )
            shares = [
                share
                for (module, _), gradient in zip(recorded, gradients[1:], strict=True)
                if gradient is not None
                for share in _shares(module, gradient.float(), size)
            ]
            found.append((gradients[0].float() * runner.images.float(), shares))
    return found


def _shares(module: nn.Module, gradient: Tensor, size: tuple[int, ...]) -> list[Tensor]:
    """A bias times the gradient of where it is added: on the image's places (N, c, *grid), and elsewhere (N, c)."""
    bias = added_bias(module)
    assert bias is not None
    bias, last = bias.float(), isinstance(module, (nn.Linear, nn.LayerNorm))
    if gradient.shape[-1] != len(bias):
        last = False
    whole = (gradient.movedim(-1, 1) if last else gradient).reshape(len(gradient), len(bias), -1).sum(2)
    layout = lay_out(tuple(gradient.shape), size, len(gradient), channels_last=last)
    if layout is None or layout.channels != len(bias):
        return [whole * bias]
    placed = layout.apply(gradient)
    shares = [placed * bias.view(-1, *[1] * len(layout.grid))]
    return shares if layout.prefix is None else [*shares, (whole - placed.flatten(2).sum(2)) * bias]


def added_bias(module: nn.Module) -> Tensor | None:
    """What a module adds to each channel, or None."""
    bias = getattr(module, "bias", None)
    if isinstance(module, _BatchNorm) and module.running_mean is not None and module.running_var is not None:
        weight = 1.0 if module.weight is None else module.weight
        shift: Tensor = -module.running_mean * weight / (module.running_var + module.eps).sqrt()
        return shift if bias is None else shift + bias
    if isinstance(module, (_ConvNd, nn.Linear, nn.LayerNorm, nn.GroupNorm)):
        return bias if isinstance(bias, Tensor) and bias.ndim == 1 else None
    return None
