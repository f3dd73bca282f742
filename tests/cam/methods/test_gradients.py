"""Gradient methods: exact on integers, equal to hand evaluations in float64 and to the peers."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from camwatch.cam.engine import explain
from camwatch.cam.methods.gradients import xgrad_cam
from camwatch.cam.methods.registry import METHODS
from camwatch.cam.model.hooks import LayerCapture

FUNCTIONS = {  # of activations and gradients
    name: function
    for name, method in METHODS.items()
    if (function := inspect.unwrap(method.maps)).__module__ == "camwatch.cam.methods.gradients"
}
LAYERS = {"resnet18": "layer4", "vgg16_bn": "features.42", "mobilenet_v3_small": "features.12"}
PIXELS = {"resnet18": 96, "vgg16_bn": 64, "mobilenet_v3_small": 128}


def build(name: str) -> tuple[nn.Module, Tensor]:
    """A random network whose normalization has seen data once: fresh, deep activations are almost constant."""
    torchvision = pytest.importorskip("torchvision")
    torch.manual_seed(3)
    model = torchvision.models.get_model(name, num_classes=10)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        model.train()(torch.randn(8, 3, PIXELS[name], PIXELS[name]))
    return model.eval(), torch.randn(2, 3, PIXELS[name], PIXELS[name])


@pytest.fixture(scope="module", params=sorted(LAYERS))
def zoo(request: pytest.FixtureRequest) -> tuple[nn.Module, Tensor, str]:
    model, images = build(request.param)
    return model, images, LAYERS[request.param]


def assert_same(ours: Tensor, theirs: Tensor) -> None:
    peak = theirs.abs().amax()
    assert peak > 0
    assert (ours - theirs).abs().amax() <= 1e-4 * peak


def test_gradcam_equals_a_hand_computation_in_integers() -> None:
    # Two channels: the image itself, and twice it. The score of class 1 is 3 x (sum of channel 0) - (sum of channel 1).
    net = nn.Sequential(nn.Conv2d(1, 2, 1, bias=False), nn.Flatten(), nn.Linear(8, 2, bias=False))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([1.0, 2.0]).view(2, 1, 1, 1))
        net[2].weight.copy_(torch.tensor([[-1.0] * 4 + [0.0] * 4, [3.0] * 4 + [-1.0] * 4]))
    image = torch.tensor([[[[1.0, -2.0], [0.0, 5.0]]]])
    # Class 1 has weights 3 and -1, so that the map is relu(3 x - 2 x) = relu(x). Class 0 has -1 and 0: relu(-x).
    maps = explain(net, image, layer="0", target=1).maps
    assert torch.equal(maps, torch.tensor([[[1.0, 0.0], [0.0, 5.0]]]))
    assert torch.equal(explain(net, image, layer="0", target=0).maps, torch.tensor([[[0.0, 2.0], [0.0, 0.0]]]))


def reference(name: str, a: np.ndarray, g: np.ndarray) -> np.ndarray:
    """The papers' equations, evaluated position by position in float64."""
    channels, cells = a.shape
    total = np.zeros(cells)
    for k in range(channels):
        if name == "gradcam":
            weight = sum(g[k]) / cells
        elif name == "xgradcam":
            weight = sum(g[k][x] * a[k][x] / sum(a[k]) for x in range(cells))
        elif name == "gradcam++":
            weight = 0.0
            for x in range(cells):
                if g[k][x] > 0:
                    alpha = g[k][x] ** 2 / (2 * g[k][x] ** 2 + sum(a[k]) * g[k][x] ** 3)
                    weight += alpha * g[k][x]
        for x in range(cells):
            if name == "hirescam":
                total[x] += a[k][x] * g[k][x]
            elif name == "layercam":
                total[x] += a[k][x] * max(g[k][x], 0)
            elif name == "elementwise":
                total[x] += max(a[k][x] * g[k][x], 0)
            else:
                total[x] += weight * a[k][x]
    return np.maximum(total, 0)


@pytest.mark.parametrize("name", ["elementwise", "gradcam", "gradcam++", "hirescam", "layercam", "xgradcam"])
@given(seed=st.integers(0, 10_000), axes=st.integers(1, 3), scale=st.sampled_from([1e-6, 1.0, 1e3]))
@settings(deadline=None, max_examples=15)
def test_gradient_method_equals_the_papers_equation(name: str, seed: int, axes: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    shape = (2, 3, *[2, 3, 2][:axes])
    a = torch.rand(shape, generator=generator, dtype=torch.float64) + 0.01
    g = torch.randn(shape, generator=generator, dtype=torch.float64) * scale
    maps = FUNCTIONS[name](a.float(), g.float())
    assert maps.shape == (2, *shape[2:])
    for i in range(2):
        expected = reference(name, a[i].flatten(1).numpy(), g[i].flatten(1).numpy())
        found = maps[i].flatten().double().numpy()
        # Positive and negative parts cancel: the error is that of the parts.
        parts = (a[i].flatten(1).abs().sum(0) * g[i].abs().amax()).numpy()
        assert np.all(np.abs(found - expected) <= 1e-5 * (parts.max() + expected.max()))


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
@pytest.mark.parametrize("axes", [1, 2, 3])
def test_gradient_method_gives_zeros_for_dead_activations(name: str, axes: int) -> None:
    zeros = torch.zeros(2, 3, *[4] * axes)
    assert torch.equal(FUNCTIONS[name](zeros, zeros), torch.zeros(2, *[4] * axes))


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_gradient_method_keeps_images_apart_and_shows_nan_as_nan(name: str) -> None:
    torch.manual_seed(0)
    a, g = torch.rand(3, 4, 5, 5), torch.randn(3, 4, 5, 5)
    together = FUNCTIONS[name](a, g)
    for i in range(3):
        torch.testing.assert_close(FUNCTIONS[name](a[i : i + 1], g[i : i + 1])[0], together[i])
    a[1], g[1] = torch.nan, torch.nan
    maps = FUNCTIONS[name](a, g)
    if name != "fem":  # a comparison with NaN is false everywhere: weight 0, times NaN
        torch.testing.assert_close(maps[[0, 2]], together[[0, 2]])
    assert maps[1].isnan().all()


@pytest.mark.parametrize(
    ("name", "peer"),
    [
        ("eigencam", "EigenCAM"),
        ("eigengradcam", "EigenGradCAM"),
        ("elementwise", "GradCAMElementWise"),
        ("fem", "FEM"),
        ("gradcam", "GradCAM"),
        ("hirescam", "HiResCAM"),
        ("kpcacam", "KPCA_CAM"),
        ("layercam", "LayerCAM"),
        ("xgradcam", "XGradCAM"),
    ],
)
def test_gradient_method_equals_pytorch_grad_cam(zoo: Any, name: str, peer: str) -> None:
    model, images, layer = zoo
    peers = pytest.importorskip("pytorch_grad_cam")
    labels = torch.tensor([6, 2])
    with LayerCapture(model, layer) as capture:
        scores = model(images)[torch.arange(2), labels].sum()
    a, g = capture.activations.numpy(), capture.gradients(scores).numpy()
    with getattr(peers, peer)(model, [dict(model.named_modules())[layer]]) as cam:
        theirs = torch.from_numpy(np.asarray(cam.get_cam_image(images, None, None, a, g, False)))
    ours = explain(model, images, layer=layer, target=labels, method=name).maps
    for mine, their in zip(ours, theirs, strict=True):
        if name in ("eigencam", "eigengradcam", "kpcacam"):  # the peer's sign is arbitrary
            their = min([their, -their], key=lambda m: float((m.relu() - mine).abs().amax()))
        assert_same(mine, their.relu())


def test_gradcam_equals_captum_with_a_label_per_image(zoo: Any) -> None:
    model, images, layer = zoo
    captum = pytest.importorskip("captum.attr")
    labels = torch.tensor([6, 2])
    oracle = captum.LayerGradCam(model, dict(model.named_modules())[layer])
    theirs = oracle.attribute(images, target=labels, relu_attributions=True).detach()[:, 0]
    assert_same(explain(model, images, layer=layer, target=labels).maps, theirs)


@pytest.mark.parametrize(("name", "peer"), [("gradcam", "GradCAM"), ("layercam", "LayerCAM"), ("xgradcam", "XGradCAM")])
def test_gradient_method_equals_torch_cam(zoo: Any, name: str, peer: str) -> None:
    model, images, layer = zoo
    peers = pytest.importorskip("torchcam.methods")
    with getattr(peers, peer)(model, layer) as extractor:
        scores = model(images)
        theirs = extractor([6, 2], scores, normalized=False)[0]
    ours = explain(model, images, layer=layer, target=torch.tensor([6, 2]), method=name).maps
    assert_same(ours, theirs)


def test_gradcam_plus_plus_equals_the_paper_where_peers_differ(zoo: Any) -> None:
    model, images, layer = zoo
    labels = torch.tensor([6, 2])
    with LayerCapture(model, layer) as capture:
        scores = model(images)[torch.arange(2), labels].sum()
    a, g = (t.flatten(2).double().numpy() for t in (capture.activations, capture.gradients(scores)))
    ours = explain(model, images, layer=layer, target=labels, method="gradcam++").maps
    for i in range(2):
        assert_same(ours[i].flatten(), torch.from_numpy(reference("gradcam++", a[i], g[i])).float())


def test_xgradcam_ignores_a_channel_that_sums_to_zero() -> None:
    a = torch.tensor([[[1.0, -1.0], [1.0, 1.0]]])
    assert torch.equal(xgrad_cam(a, torch.ones_like(a)), torch.tensor([[1.0, 1.0]]))
