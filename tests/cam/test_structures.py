"""Every layer method at layers that run several times or return a structure, as at plain ones."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from camwatch import explain, methods
from camwatch.cam import factorize
from camwatch.cam.methods.registry import needs_layer

IMAGES = torch.rand(2, 3, 10, 12, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([[0, 1, 2], [1, 2, 0]])
LAYER_METHODS = sorted(name for name in methods() if needs_layer(name))
pytestmark = pytest.mark.filterwarnings("ignore::camwatch.errors.CamwatchWarning")


@dataclasses.dataclass
class Held:
    pooled: Tensor
    features: Tensor


class Named(NamedTuple):
    features: Tensor
    count: int


WRAPS: dict[str, Any] = {
    "tensor": (lambda t: t, lambda o: o),
    "tuple": (lambda t: (None, t), lambda o: o[1]),
    "list": (lambda t: [t.mean((2, 3)), [t]], lambda o: o[1][0]),
    "dict": (lambda t: {"pooled": t.mean((2, 3)), "features": t}, lambda o: o["features"]),
    "named tuple": (lambda t: Named(t, 2), lambda o: o.features),
    "dataclass": (lambda t: Held(t.mean((2, 3)), t), lambda o: o.features),
}


class Inner(nn.Module):
    def __init__(self, wrap: Any) -> None:
        super().__init__()
        self.conv, self.wrap = nn.Conv2d(4, 4, 3, padding=1), wrap

    def forward(self, x: Tensor) -> Any:
        return self.wrap(self.conv(x).relu())


class Net(nn.Module):
    """Its layer runs so many times, and hands its features on inside a structure."""

    def __init__(self, structure: str = "tensor", calls: int = 1) -> None:
        super().__init__()
        torch.manual_seed(0)
        wrap, self.take = WRAPS[structure]
        self.stem, self.inner, self.calls = nn.Conv2d(3, 4, 3, padding=1), Inner(wrap), calls
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu_()
        for _ in range(self.calls):
            x = self.take(self.inner(x))
        return self.head(x.mean((2, 3)))


class Unrolled(nn.Module):
    """Two calls of one layer, the last of them through a module of its own with the same weights."""

    def __init__(self) -> None:
        super().__init__()
        net = Net(calls=2)
        self.stem, self.first, self.inner, self.head = net.stem, net.inner, Inner(lambda t: t), net.head
        self.inner.conv.weight, self.inner.conv.bias = net.inner.conv.weight, net.inner.conv.bias

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.inner(self.first(self.stem(x).relu_())).mean((2, 3)))


def maps(model: nn.Module, method: str) -> Tensor:
    torch.manual_seed(0)
    return explain(model.eval(), IMAGES, target=LABELS, layer="inner", method=method).maps


@pytest.mark.parametrize("structure", sorted(WRAPS))
@pytest.mark.parametrize("method", LAYER_METHODS)
def test_method_at_a_layer_that_returns_a_structure(method: str, structure: str) -> None:
    plain = maps(Net(), method)
    assert plain.amax() > 0
    torch.testing.assert_close(maps(Net(structure), method), plain)


@pytest.mark.parametrize("structure", ["tensor", "dict"])
@pytest.mark.parametrize("method", LAYER_METHODS)
def test_method_at_a_layer_called_twice_explains_the_last_call(method: str, structure: str) -> None:
    once = maps(Unrolled(), method)
    assert once.amax() > 0
    torch.testing.assert_close(maps(Net(structure, calls=2), method), once, rtol=1e-4, atol=1e-5 * float(once.max()))


@pytest.mark.parametrize("structure", ["tensor", "dict", "dataclass"])
def test_factorize_at_a_layer_that_returns_a_structure(structure: str) -> None:
    plain = factorize(Net().eval(), IMAGES, layer="inner", concepts=2)
    found = factorize(Net(structure).eval(), IMAGES, layer="inner", concepts=2)
    torch.testing.assert_close(found.maps, plain.maps)
    torch.testing.assert_close(found.scores, plain.scores)
