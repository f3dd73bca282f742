"""Input-gradient methods and occlusion: equal to Captum and to hand computations."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from camwatch.cam.engine import explain
from camwatch.cam.methods.masking import occlusion_windows
from camwatch.errors import InputError, LayerError, UnsupportedError

captum = pytest.importorskip("captum.attr")
pytestmark = pytest.mark.filterwarnings("ignore::camwatch.cam.blank_maps.BlankMapWarning")
LABELS = torch.tensor([3, 1])


def net(inplace: bool = False) -> nn.Sequential:
    torch.manual_seed(4)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.ReLU(inplace),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 6, 3, padding=1),
        nn.ReLU(inplace),
        nn.Flatten(),
        nn.Linear(6 * 7 * 7, 5),
    ).eval()


class Functional(nn.Module):
    """The same network, its ReLUs called as functions."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = net()

    def forward(self, x: Tensor) -> Tensor:
        layers = self.layers
        x = layers[2](functional.relu(layers[0](x), inplace=True))
        return layers[6](layers[5](torch.relu(layers[3](x))))


@pytest.fixture
def images() -> Tensor:
    return torch.randn(2, 3, 14, 14, generator=torch.Generator().manual_seed(1))


def test_saliency_equals_captum(images: Tensor) -> None:
    theirs = captum.Saliency(net()).attribute(images, target=LABELS).amax(1)
    found = explain(net(), images, target=LABELS, method="saliency")
    torch.testing.assert_close(found.maps, theirs)
    assert found.layer == "input"


@pytest.mark.filterwarnings("ignore:Setting backward hooks")
def test_guided_backprop_equals_captum_for_modules_functions_and_inplace(images: Tensor) -> None:
    theirs = captum.GuidedBackprop(net()).attribute(images, target=LABELS).abs().amax(1).detach()
    for model in (net(), net(inplace=True), Functional().eval()):
        torch.testing.assert_close(explain(model, images, target=LABELS, method="guidedbackprop").maps, theirs)


@pytest.mark.filterwarnings("ignore:Setting backward hooks")
def test_guided_gradcam_equals_captum(images: Tensor) -> None:
    model = net()
    oracle = captum.GuidedGradCam(model, model[3])
    theirs = oracle.attribute(images, target=LABELS, interpolate_mode="bilinear").abs().amax(1).detach()
    torch.testing.assert_close(explain(model, images, layer="3", target=LABELS, method="guidedgradcam").maps, theirs)


def test_guided_backprop_refuses_a_model_without_relu(images: Tensor) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GELU(), nn.Flatten(), nn.Linear(576, 5))
    with pytest.raises(UnsupportedError, match="no ReLU ran in this model; take 'saliency'"):
        explain(model, images, method="guidedbackprop")


def test_smoothgrad_of_a_linear_model_is_its_weights(images: Tensor) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 14 * 14, 5))
    expected = model[1].weight[LABELS].view(2, 3, 14, 14).abs().amax(1).detach()
    torch.testing.assert_close(explain(model, images, target=LABELS, method="smoothgrad").maps, expected)


def test_smoothgrad_gives_the_same_twice(images: Tensor) -> None:
    first = explain(net(), images, target=LABELS, method="smoothgrad").maps
    torch.rand(3)
    assert torch.equal(first, explain(net(), images, target=LABELS, method="smoothgrad").maps)


def test_occlusion_equals_captum(images: Tensor) -> None:
    # 14 pixels: windows of 2 that move by 1, so that there are 13.
    model = net()
    oracle = captum.Occlusion(model).attribute(
        images, sliding_window_shapes=(3, 2, 2), strides=(3, 2, 2), target=LABELS
    )
    maps = explain(model, images, target=LABELS, method="occlusion").maps
    assert maps.shape == (2, 13, 13)
    torch.testing.assert_close(maps[:, ::2, ::2], oracle[:, 0, ::2, ::2].relu(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("extent", [1, 2, 5, 7, 14, 40, 97, 224])
def test_occlusion_windows_cover_every_pixel(extent: int) -> None:
    windows = occlusion_windows(extent)
    assert {pixel for window in windows for pixel in range(extent)[window]} == set(range(extent))
    assert len({window.start for window in windows}) == len(windows)


@pytest.mark.parametrize("method", ["guidedbackprop", "occlusion", "saliency", "smoothgrad"])
@pytest.mark.parametrize("axes", [1, 2, 3])
def test_image_method_takes_any_number_of_axes_and_targets(method: str, axes: int) -> None:
    torch.manual_seed(0)
    conv = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[axes]
    model = nn.Sequential(
        conv(2, 4, 3), nn.ReLU(), nn.Flatten(2), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(4, 5)
    )
    images = torch.randn(2, 2, *[6] * axes)
    target = torch.tensor([[3, 1], [0, 4]])
    both = explain(model, images, target=target, method=method, batch_size=1).maps
    assert both.shape[:2] == (2, 2) and both.ndim == 2 + axes and bool((both >= 0).all())
    if method != "smoothgrad":
        one = explain(model, images, target=target[:, 1], method=method).maps
        torch.testing.assert_close(both[:, 1], one)


def test_image_method_refuses_a_layer(images: Tensor) -> None:
    with pytest.raises(
        InputError, match="'saliency' explains the image itself, no layer: leave layer= and fuse= out, got '3'"
    ):
        explain(net(), images, layer="3", method="saliency")


def test_saliency_says_that_no_gradient_reaches_the_pixels(images: Tensor) -> None:
    with pytest.raises(LayerError, match="does not depend on the pixels"):
        explain(net(), images, method="saliency", forward=lambda model, x: model(x.detach()))
