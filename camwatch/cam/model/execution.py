"""Running a model without a trace: nothing of it is left in the model or the process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from camwatch.cam.model.modules import channels_last
from camwatch.errors import InputError
from camwatch.isolation import eval_mode, isolate_rng, plain_execution

Forward = Callable[[Any, Tensor], Any]


def check_images(images: Tensor) -> None:
    """Raises InputError for anything but floating images, one or more."""
    if not isinstance(images, Tensor) or images.ndim < 3 or not images.is_floating_point() or not len(images):
        arrived = (
            f"{images.dtype} of shape {tuple(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
        )
        raise InputError(f"images must be a floating tensor (N, C, H, W), N >= 1, as the model takes it; got {arrived}")


@contextmanager
def isolated_evaluation(model: nn.Module) -> Iterator[None]:
    """Puts a model into evaluation mode, run eagerly, the random states put back: the outermost context of a call.

    Example:
        >>> net = nn.Dropout()
        >>> with isolated_evaluation(net):
        ...     net.training
        False
    """
    with plain_execution(), isolate_rng(), eval_mode(model):
        yield


def prepare(model: nn.Module, images: Tensor) -> Tensor:
    """Moves images to the model's device and, outside autocast, to its dtype, as a normal tensor."""
    reference = next((p for p in model.parameters() if p.is_floating_point()), images)
    device = reference.device
    dtype = images.dtype if torch.is_autocast_enabled(device.type) else reference.dtype
    moved = images.detach().to(device=device, dtype=dtype)
    return moved.clone() if moved.is_inference() else moved


def call_plainly(model: Any, images: Tensor) -> Any:
    """How a model is called where nothing else is said; a Keras model takes (N, H, W, C)."""
    turned = hasattr(model, "_flatten_layers") and any(channels_last(layer) for layer in model._flatten_layers())
    return model(images.movedim(1, -1) if turned else images)


def run_detached(
    model: nn.Module, function: Callable[[], Any], change: Callable[[Tensor], Tensor] | None = None
) -> Any:
    """Calls a function while the model's parameters are detached and its buffers are copies.

    No forward pass inside keeps a graph for a parameter or writes to a buffer, however the function
    reaches the model. Sharded parameters (DTensor) are left in place: swapping them breaks FSDP2's next
    training step.

    Args:
        model: The model that the function calls.
        function: What is run.
        change: Applied to every detached parameter; the model's own are untouched.

    Example:
        >>> net = nn.Linear(2, 1)
        >>> run_detached(net, lambda: net(torch.ones(1, 2)).requires_grad)
        False
    """
    if any(hasattr(p, "device_mesh") for p in model.parameters()):
        return function()
    swapped: dict[str, Tensor] = {}
    detached: dict[int, Tensor] = {}  # by the parameter's identity, so that shared weights stay shared
    # Each module once: functional_call puts a module that has two names back wrongly.
    for prefix, module in _Call(model).named_modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                if id(parameter) not in detached:
                    plain = _usable(parameter)
                    detached[id(parameter)] = plain if change is None else change(plain)
                swapped[f"{prefix}.{name}"] = detached[id(parameter)]
        for name, buffer in module._buffers.items():
            if buffer is not None:
                swapped[f"{prefix}.{name}"] = buffer.detach().clone()
    with _without_checkpointing():
        return torch.func.functional_call(_Call(model), swapped, (function,), tie_weights=False)


class _Call(nn.Module):
    """Runs a function while ``functional_call`` holds other tensors in the model's parameters."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, function: Callable[[], Any]) -> Any:
        return function()


def _usable(tensor: Tensor) -> Tensor:
    """The tensor without a graph; cloned in inference mode, whose tensors no backward pass can save."""
    return tensor.clone() if tensor.is_inference() else tensor.detach()


def through_no_grad(function: Callable[[], Any]) -> Any:
    """Calls a function in which ``torch.no_grad`` blocks do not cut the graph.

    A layer under ``no_grad`` switches gradients on itself; this is for the layers that stand before one
    more such block. It is no default, because what runs there may rely on tensors without a graph.
    """
    with _KeepGradients():
        return function()


class _KeepGradients(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch._C._set_grad_enabled:
            args = (True,)
        return func(*args, **(kwargs or {}))


@contextmanager
def _without_checkpointing() -> Iterator[None]:
    """Runs reentrant checkpoints as plain calls: they would cut the graph of what is recorded inside."""
    from torch.utils import checkpoint

    class Plain:
        @staticmethod
        def apply(function: Callable[..., Any], preserve: bool, *args: Any) -> Any:
            return function(*args)

    original = checkpoint.CheckpointFunction
    checkpoint.CheckpointFunction = Plain  # type: ignore[assignment, misc]
    try:
        yield
    finally:
        checkpoint.CheckpointFunction = original  # type: ignore[misc]


@contextmanager
def without_recomputation() -> Iterator[None]:
    """Runs non-reentrant checkpoints as plain calls.

    For methods that exchange what modules hand on: the second run, in the backward pass, would differ from the first.
    """
    from torch.utils import checkpoint

    def plain(*args: Any, **kwargs: Any) -> Iterator[None]:
        yield

    names = [name for name in vars(checkpoint) if name.startswith("_checkpoint_without_reentrant_generator")]
    originals = {name: getattr(checkpoint, name) for name in names}  # torch 2.14 has two
    try:
        for name in names:
            setattr(checkpoint, name, plain)
        yield
    finally:
        for name, original in originals.items():
            setattr(checkpoint, name, original)
