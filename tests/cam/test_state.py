"""After a call, and after an exception in the middle of one, everything is as it was, for every method."""

from __future__ import annotations

import contextlib
import random
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from camwatch import explain, layers, methods
from camwatch.cam import Contrast, factorize
from camwatch.errors import CamwatchError
from tests.support.cam_nets import TRANSFORMERS_ONLY, Staged, ViT

ACTIVATIONS = [nn.ReLU, nn.GELU, nn.SiLU, lambda: nn.ReLU(inplace=True), nn.Tanh]


class Residual(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


class Interruptible(nn.Module):
    """Raises on its n-th call, after drawing from every generator and writing to its buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.countdown = -1

    def forward(self, x: Tensor) -> Tensor:
        random.random(), np.random.rand(), torch.rand(1)
        self.calls += 1
        self.countdown -= 1
        if self.countdown == 0:
            raise ZeroDivisionError("in the middle")
        return x


@st.composite
def networks(draw: Any) -> nn.Module:
    """A small network in a random state: modes, gradients, frozen parameters."""
    torch.manual_seed(draw(st.integers(0, 99)))
    width, blocks = draw(st.integers(1, 4)), []
    channels = 3
    for _ in range(draw(st.integers(1, 3))):
        body = [nn.Conv2d(channels, width, 3, draw(st.integers(1, 2)), 1)]
        body += [nn.BatchNorm2d(width)] if draw(st.booleans()) else []
        body += [draw(st.sampled_from(ACTIVATIONS))()]
        body += [nn.Dropout(0.3)] if draw(st.booleans()) else []
        blocks += [*body, Residual(nn.Conv2d(width, width, 1))] if draw(st.booleans()) else body
        channels = width
    if draw(st.booleans()):
        way = draw(st.sampled_from(["fused", "method", "module"]))
        net = ViT(draw(st.integers(0, 2)), way, patch=2, blocks=draw(st.integers(1, 2)))
        net.head = nn.Sequential(Interruptible(), net.head)
    else:
        net = nn.Sequential(*blocks, Interruptible(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 3))
    for module in net.modules():
        module.training = draw(st.booleans())
    for parameter in net.parameters():
        parameter.requires_grad_(draw(st.booleans()))
        if draw(st.booleans()):
            parameter.grad = torch.randn_like(parameter)
    return net


def state(net: nn.Module) -> dict[str, Any]:
    """Everything that a call could leave changed; tensors by value and by identity."""
    tensors = {**dict(net.named_parameters()), **dict(net.named_buffers())}
    return {
        "modes": [m.training for m in net.modules()],
        "hooks": [
            (len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks), len(m._backward_pre_hooks))
            for m in net.modules()
        ],
        "attributes": [sorted(vars(m)) for m in net.modules()],
        "identities": {name: id(t) for name, t in tensors.items()},
        "versions": {name: t._version for name, t in tensors.items()},
        "values": {name: t.detach().clone() for name, t in tensors.items()},
        "requires_grad": {name: t.requires_grad for name, t in tensors.items()},
        "gradients": {name: None if t.grad is None else t.grad.clone() for name, t in tensors.items()},
        "tensor hooks": {name: t._backward_hooks for name, t in tensors.items()},
        "python": random.getstate(),
        "numpy": list(np.random.get_state()),
        "torch": torch.get_rng_state(),
        "process": (
            torch.is_grad_enabled(),
            torch.is_inference_mode_enabled(),
            torch.get_default_dtype(),
            torch.is_autocast_enabled("cpu"),
            torch.backends.mha.get_fastpath_enabled(),
            torch.get_num_threads(),
            dict(vars(torch.utils.checkpoint)),
        ),
    }


def assert_same(before: Any, after: Any, path: str = "") -> None:
    if isinstance(before, dict):
        assert before.keys() == after.keys(), path
        for key in before:
            assert_same(before[key], after[key], f"{path}/{key}")
    elif isinstance(before, (Tensor, np.ndarray)):
        assert (before == after).all(), path
    elif isinstance(before, (list, tuple)):
        assert len(before) == len(after), path
        for i, (one, two) in enumerate(zip(before, after, strict=True)):
            assert_same(one, two, f"{path}/{i}")
    else:
        assert before == after, path


CONTEXTS = {
    "plain": contextlib.nullcontext,
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
}


@pytest.mark.parametrize("method", methods())
@settings(deadline=None, max_examples=8, suppress_health_check=[HealthCheck.too_slow])
@given(net=networks(), interrupt=st.sampled_from([0, 1, 2, 3]), context=st.sampled_from(sorted(CONTEXTS)))
def test_explain_leaves_no_trace(method: str, net: nn.Module, interrupt: int, context: str) -> None:
    next(m for m in net.modules() if isinstance(m, Interruptible)).countdown = interrupt
    images = torch.rand(2, 3, 8, 8, requires_grad=True)
    with CONTEXTS[context](), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before = state(net)
        with contextlib.suppress(ZeroDivisionError, CamwatchError):
            explain(net, images, method=method, target=1)
        assert_same(before, state(net))
    assert images.grad is None


@pytest.mark.parametrize("options", [{"smooth": True}, {"fuse": "mean"}, {"target": Contrast(0)}], ids=str)
@settings(deadline=None, max_examples=8)
@given(net=networks(), interrupt=st.sampled_from([0, 1, 2, 3]))
def test_explain_with_options_leaves_no_trace(options: dict[str, Any], net: nn.Module, interrupt: int) -> None:
    next(m for m in net.modules() if isinstance(m, Interruptible)).countdown = interrupt
    images = torch.rand(2, 3, 8, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before = state(net)
        with contextlib.suppress(ZeroDivisionError, CamwatchError):
            explain(net, images, **{"target": 1, **options})
        assert_same(before, state(net))


@settings(deadline=None, max_examples=20, suppress_health_check=[HealthCheck.too_slow])
@given(net=networks(), interrupt=st.sampled_from([0, 1, 2, 3]))
def test_factorize_leaves_no_trace(net: nn.Module, interrupt: int) -> None:
    next(m for m in net.modules() if isinstance(m, Interruptible)).countdown = interrupt
    images = torch.rand(2, 3, 8, 8)
    before = state(net)
    with contextlib.suppress(ZeroDivisionError, CamwatchError):
        factorize(net, images, concepts=1, batch_size=1)
    assert_same(before, state(net))


@settings(deadline=None, max_examples=20)
@given(net=networks(), interrupt=st.booleans())
def test_layers_leaves_no_trace(net: nn.Module, interrupt: bool) -> None:
    next(m for m in net.modules() if isinstance(m, Interruptible)).countdown = int(interrupt)
    images = torch.rand(2, 3, 8, 8)
    before = state(net)
    with contextlib.suppress(ZeroDivisionError, CamwatchError):
        layers(net, images)
    assert_same(before, state(net))


@pytest.mark.parametrize("method", methods())
def test_explain_leaves_training_bit_for_bit(method: str) -> None:
    def train(watched: bool) -> list[Tensor]:
        torch.manual_seed(0)
        net = ViT() if method in TRANSFORMERS_ONLY else Staged(dropout=0.5)
        optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
        for _ in range(3):
            loss = nn.functional.cross_entropy(net(torch.rand(4, 3, 8, 8)), torch.tensor([0, 1, 2, 0]))
            loss.backward()  # gradients accumulate over two steps
            if watched:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    explain(net, torch.full((2, 3, 8, 8), 0.5), method=method, target=0)
            optimizer.step()
        return [*net.state_dict().values(), torch.rand(3)]

    for plain, watched in zip(train(False), train(True), strict=True):
        assert torch.equal(plain, watched)
