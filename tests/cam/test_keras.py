"""Keras 3 models on their torch backend: channels last, layers that torch does not register."""

from __future__ import annotations

import os

os.environ.setdefault("KERAS_BACKEND", "torch")

import pytest
import torch
from torch import Tensor, nn

from camwatch import explain, layers, methods
from camwatch.errors import UnsupportedError

keras = pytest.importorskip("keras")
pytestmark = [
    pytest.mark.skipif(keras.backend.backend() != "torch", reason="Keras runs on another backend"),
    pytest.mark.filterwarnings("ignore::camwatch.errors.CamwatchWarning"),
]
IMAGES = torch.rand(2, 3, 16, 20, generator=torch.Generator().manual_seed(0))
REFUSED = {"cam", "fullgrad", "legrad", "rollout"}


def pair() -> tuple[nn.Module, nn.Sequential]:
    """The same network in Keras and in torch."""
    torch.manual_seed(0)
    twin = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.BatchNorm2d(8), nn.MaxPool2d(2), nn.Conv2d(8, 12, 3, padding=1),
        nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 5),
    ).eval()  # fmt: skip
    kl = keras.layers
    model = keras.Sequential(
        [
            keras.Input((16, 20, 3)),
            kl.Conv2D(8, 3, padding="same", activation="relu", name="first"),
            kl.BatchNormalization(epsilon=1e-5, name="norm"),
            kl.MaxPooling2D(),
            kl.Conv2D(12, 3, padding="same", activation="relu", name="second"),
            kl.GlobalAveragePooling2D(),
            kl.Dense(5),
        ]
    )
    values = [p.detach() for p in twin.parameters()]
    turned = [v.permute(2, 3, 1, 0) if v.ndim == 4 else v.T if v.ndim == 2 else v for v in values]
    for variable, value in zip(model.trainable_variables, turned, strict=True):
        variable.assign(value.numpy())
    return model, twin


def test_keras_layers_are_listed_with_their_grids() -> None:
    found = {layer.name: layer for layer in layers(pair()[0], IMAGES)}
    assert found["first"].grid == (16, 20) and found["first"].channels == 8
    assert found["second"].default and found["second"].grid == (8, 10)


@pytest.mark.parametrize("method", sorted({*methods()} - REFUSED - {"random"}))
def test_keras_equals_the_same_network_in_torch(method: str) -> None:
    model, twin = pair()
    with torch.no_grad():
        torch.testing.assert_close(model(IMAGES.movedim(1, -1)), twin(IMAGES), rtol=1e-4, atol=1e-5)
    target = torch.tensor([[0, 3], [2, 1]])
    plain = explain(twin, IMAGES, target=target, method=method).maps
    found = explain(model, IMAGES, target=target, method=method).maps
    assert plain.amax() > 0
    torch.testing.assert_close(found, plain, rtol=1e-3, atol=1e-4 * float(plain.max()))


@pytest.mark.parametrize("method", sorted(REFUSED))
def test_keras_is_refused_where_modules_of_torch_are_read(method: str) -> None:
    with pytest.raises(UnsupportedError, match="take 'gradcam'"):
        explain(pair()[0], IMAGES, method=method)


def state(model: nn.Module) -> list[Tensor]:
    return [variable.value.detach().clone() for variable in model.variables]


def test_keras_model_is_left_as_it_was() -> None:
    model, _ = pair()
    before, flags = state(model), [p.requires_grad for p in model.parameters()]
    explain(model, IMAGES, layer=["first", "second"])
    assert all(torch.equal(one, two) for one, two in zip(before, state(model), strict=True))
    assert [p.requires_grad for p in model.parameters()] == flags
    assert all(p.grad is None for p in model.parameters())
    assert all(not layer._forward_hooks and not layer._forward_pre_hooks for layer in model._flatten_layers())
