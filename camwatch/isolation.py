"""Contexts that leave the process as they found it, also after an exception."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn


@contextmanager
def isolate_rng() -> Iterator[None]:
    """Restores the random states of Python, NumPy, torch and every initialized CUDA device.

    Lightning's context of the same name does not restore after an exception.

    Example:
        >>> state = torch.get_rng_state()
        >>> with isolate_rng():
        ...     noise = torch.rand(3)
        >>> torch.equal(state, torch.get_rng_state())
        True
    """
    python, numpy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(cpu)
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Puts every submodule into evaluation mode and restores each one's own flag.

    The flags are set directly: a user's ``train()`` may do more than set them, and calling it on the
    root would undo layers kept in evaluation mode on purpose.

    Example:
        >>> net = nn.Sequential(nn.Dropout(), nn.Dropout().eval())
        >>> with eval_mode(net):
        ...     net[0].training
        False
        >>> net.training, net[0].training, net[1].training
        (True, True, False)
    """
    flags = [(module, module.training) for module in model.modules()]
    try:
        for module, _ in flags:
            module.training = False
        yield
    finally:
        for module, training in flags:
            module.training = training


@contextmanager
def plain_execution() -> Iterator[None]:
    """Leaves inference mode, switches gradients on, and runs compiled and fused modules eagerly.

    Compiled code ignores hooks added after its first call, and fused attention kernels bypass the hooks
    of the modules that they replace.
    """
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        if "torch._dynamo" in sys.modules:  # else nothing can have been compiled, and importing it is slow
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        fastpath = torch.backends.mha.get_fastpath_enabled()
        stack.callback(torch.backends.mha.set_fastpath_enabled, fastpath)
        torch.backends.mha.set_fastpath_enabled(False)
        yield


@contextmanager
def isolate_generators(*holders: Any) -> Iterator[None]:
    """Restores the random generators that objects, such as data sets, hold themselves.

    They are looked for in attributes, and in what these hold, through lists and dictionaries of up to 100 entries.

    Example:
        >>> class Noise:
        ...     def __init__(self):
        ...         self.rng = np.random.default_rng(0)
        >>> noise = Noise()
        >>> with isolate_generators(noise):
        ...     first = noise.rng.random()
        >>> first == noise.rng.random()
        True
    """
    with ExitStack() as stack:
        seen: set[int] = set()
        waiting = [(holder, 8) for holder in holders]
        while waiting:
            held, depth = waiting.pop()
            if depth == 0 or id(held) in seen:
                continue
            seen.add(id(held))
            if isinstance(held, random.Random):
                stack.callback(held.setstate, held.getstate())
            elif isinstance(held, np.random.RandomState):
                stack.callback(held.set_state, held.get_state())
            elif isinstance(held, np.random.Generator):
                stack.callback(setattr, held.bit_generator, "state", held.bit_generator.state)
            elif isinstance(held, torch.Generator):
                stack.callback(held.set_state, held.get_state())
            elif isinstance(held, (list, tuple, dict)):
                inside = held.values() if isinstance(held, dict) else held
                waiting += [(one, depth - 1) for one in inside] if len(held) <= 100 else []
            elif not isinstance(held, (type, torch.Tensor)):
                waiting += [(one, depth - 1) for one in getattr(held, "__dict__", {}).values()]
        yield
