"""Hooks on many modules at once, or on one whose output is exchanged; each lives as long as its block."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from camwatch.cam.capture import Recorder
from camwatch.cam.structure import replace, tensors


@contextmanager
def around(
    modules: Iterable[nn.Module],
    leave: Callable[[nn.Module, Any, Any], Any],
    enter: Callable[[nn.Module], None] | None = None,
) -> Iterator[None]:
    """Calls a function whenever one of the modules has run; what it returns takes the output's place.

    Args:
        modules: The modules.
        leave: Callable (module, args, output) -> another output, or None for the same one.
        enter: Callable (module) before the module runs.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Identity(), nn.Flatten())
        >>> with around([net[0]], lambda module, args, output: 2 * output):
        ...     net(torch.ones(1, 1, 2))
        tensor([[2., 2.]])
    """
    with ExitStack() as stack:
        for module in modules:
            if enter is not None:
                before = module.register_forward_pre_hook(lambda m, args: enter(m))
                stack.callback(before.remove)
            stack.callback(module.register_forward_hook(leave).remove)
        yield


@contextmanager
def record_calls(
    modules: Iterable[nn.Module], accepts: Callable[[Tensor], bool]
) -> Iterator[list[tuple[nn.Module, Tensor]]]:
    """Yields a list that gains each call's module and first accepted tensor, to take gradients of.

    The calls are in one graph, together with what requires a gradient below them.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
        >>> with record_calls(net, lambda tensor: True) as calls:
        ...     score = net(torch.ones(1, 2)).sum()
        >>> torch.equal(torch.autograd.grad(score, calls[0][1])[0], net[1].weight)
        True
    """
    calls: list[tuple[nn.Module, Tensor]] = []

    def leave(module: nn.Module, args: Any, output: Any) -> Any:
        recorder = Recorder()
        handed_on = recorder.record(output, accepts, detach=False)
        if recorder.recorded is not None:
            calls.append((module, recorder.recorded))
        return handed_on

    with around(modules, leave):
        yield calls


@contextmanager
def substitute(module: nn.Module, value: Tensor, call: int = 1) -> Iterator[None]:
    """Hands on a value in the place of the tensor of its form that the module returns on its n-th call.

    The value's batch may be larger than the module's: what follows then runs on the larger one.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Flatten())
        >>> with substitute(net[0], torch.zeros(5, 2, 3, 3)):
        ...     net(torch.rand(1, 1, 3, 3)).shape
        torch.Size([5, 18])
    """
    calls = 0

    def leave(module: nn.Module, args: Any, output: Any) -> Any:
        nonlocal calls
        chosen = next((t for t in tensors(output) if t.is_floating_point() and t.shape[1:] == value.shape[1:]), None)
        calls += chosen is not None
        return replace(output, lambda t: value if t is chosen else t) if calls == call else output

    with around([module], leave):
        yield
