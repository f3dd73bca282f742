"""Around every call of the engine: nothing of it is left in the model or the process."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from camwatch.cam.structure import channels_last
from camwatch.errors import InputError
from camwatch.isolation import eval_mode, isolate_rng, plain_execution


def call_plainly(model: Any, images: Tensor) -> Any:
    """How a model is called where nothing else is said; a Keras model takes (N, H, W, C)."""
    turned = hasattr(model, "_flatten_layers") and any(channels_last(layer) for layer in model._flatten_layers())
    return model(images.movedim(1, -1) if turned else images)


def check_images(images: Tensor) -> None:
    """Raises InputError for anything but floating images, one or more."""
    if not isinstance(images, Tensor) or images.ndim < 3 or not images.is_floating_point() or not len(images):
        arrived = (
            f"{images.dtype} of shape {tuple(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
        )
        raise InputError(f"images must be a floating tensor (N, C, H, W), N >= 1, as the model takes it; got {arrived}")


class Neutral(ExitStack):
    """A model in evaluation mode, without a trace of what runs inside: the engine's outer context."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        for context in (plain_execution(), isolate_rng(), eval_mode(model)):
            self.enter_context(context)


def prepare(model: nn.Module, images: Tensor) -> Tensor:
    """Moves images to the model's device and, outside autocast, to its dtype, as a normal tensor."""
    reference = next((p for p in model.parameters() if p.is_floating_point()), images)
    device = reference.device
    dtype = images.dtype if torch.is_autocast_enabled(device.type) else reference.dtype
    moved = images.detach().to(device=device, dtype=dtype)
    return moved.clone() if moved.is_inference() else moved
