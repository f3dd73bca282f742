"""What a method is: one argument in, one map per explained place out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Literal

import torch
from torch import Tensor

from camwatch.cam.methods.runner import LayerOutput, ModelRunner

MapFunction = Callable[[Tensor, Tensor], Tensor]  # (activations, gradients) (N, C, *grid) -> maps (N, *grid)


@dataclass(frozen=True)
class Method:
    """A way to explain a batch of images.

    Attributes:
        name: As ``explain(method=...)`` takes it.
        maps: Callable (runner) -> maps (N, K, *grid), one of each layer, or one alone.
        explains: "layer", each of those given; "stages", the deepest layer of every grid together; or "input", the
            image itself.
        needs_gradient: Whether the score has to depend on what is explained through a differentiable path; where it
            does not, the model is refused.

    Example:
        >>> Method("mine", from_gradients(lambda activations, gradients: (activations * gradients).sum(1))).explains
        'layer'
    """

    name: str
    maps: Callable[[ModelRunner], list[Tensor]]
    explains: Literal["layer", "stages", "input"] = "layer"
    needs_gradient: bool = True


def from_gradients(function: MapFunction) -> Callable[[ModelRunner], list[Tensor]]:
    """Returns the maps of a function of each layer's activations and gradients, from one forward pass."""

    @wraps(function, updated=())
    def maps(runner: ModelRunner) -> list[Tensor]:
        with runner.gradients() as targets:
            found = [[function(a, g) for a, g in layers] for layers in targets]
        return [torch.stack(columns, dim=1) for columns in zip(*found, strict=True)]

    return maps


def per_layer(function: Callable[[ModelRunner, LayerOutput], Tensor]) -> Callable[[ModelRunner], list[Tensor]]:
    """Returns the maps of a function of one layer, layer by layer."""

    @wraps(function, updated=())
    def maps(runner: ModelRunner) -> list[Tensor]:
        return [function(runner, layer) for layer in runner.layers]

    return maps


def whole(function: Callable[[ModelRunner], Tensor]) -> Callable[[ModelRunner], list[Tensor]]:
    """Returns the one map of a function of the whole model."""

    @wraps(function, updated=())
    def maps(runner: ModelRunner) -> list[Tensor]:
        runner.fix_target()
        return [function(runner)]

    return maps
