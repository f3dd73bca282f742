"""Several layers fused, RefineCAM, smoothing by augmentation: equal to the peers and to hand computations."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from camwatch import explain, layers, methods
from camwatch.cam import fuse
from camwatch.cam.methods.registry import needs_layer
from camwatch.errors import InputError, LayerError
from tests.cam.methods.test_gradients import assert_same, build
from tests.support.cam_nets import Staged, network_for

NAMES = ["layer2", "layer3", "layer4"]
LABELS = torch.tensor([6, 2])
IMAGES = torch.rand(3, 3, 16, 20, generator=torch.Generator().manual_seed(3))
pytestmark = pytest.mark.filterwarnings("ignore::camwatch.errors.CamwatchWarning")


@pytest.fixture(scope="module")
def resnet() -> tuple[nn.Module, Tensor]:
    return build("resnet18")


def test_fused_maximum_equals_torch_cam(resnet: Any) -> None:
    model, images = resnet
    peers = pytest.importorskip("torchcam.methods")
    ours = explain(model, images, target=LABELS, layer=NAMES, fuse="max")
    assert ours.layer == "layer2+layer3+layer4" and ours.maps.shape == (2, 12, 12)
    # Its own maps are signed; what is compared is how maps are scaled and fused.
    parts = [explain(model, images, target=LABELS, layer=name).maps for name in NAMES]
    theirs = peers.GradCAM.fuse_cams([peers.GradCAM._normalize(part.clone(), 2) for part in parts])
    assert_same(ours.maps, theirs)


def test_fused_mean_equals_pytorch_grad_cam(resnet: Any) -> None:
    model, images = resnet
    peers = pytest.importorskip("pytorch_grad_cam")
    targets = pytest.importorskip("pytorch_grad_cam.utils.model_targets")
    with peers.GradCAM(model, [dict(model.named_modules())[name] for name in NAMES]) as cam:
        kept: list[np.ndarray] = []
        cam.aggregate_multi_layers = lambda parts: kept.append(np.concatenate(parts, 1).mean(1)) or kept[0]
        cam(images, [targets.ClassifierOutputTarget(int(label)) for label in LABELS])
    ours = explain(model, images, target=LABELS, layer=NAMES, fuse="mean").maps
    # The peer upsamples each layer to the image, camwatch to the finest grid: on the image both are near.
    shown = functional.interpolate(ours[:, None], images.shape[2:], mode="bilinear")[:, 0]
    assert (shown - torch.from_numpy(kept[0])).abs().mean() < 0.01


@pytest.mark.parametrize("name", ["resnet18", "vgg16_bn"])
def test_refinecam_equals_torch_cam(name: str) -> None:
    model, images = build(name)
    peers = pytest.importorskip("torchcam.methods")
    ours = explain(model, images, target=LABELS, method="refinecam")
    found = layers(model, images)
    down = found[: [layer.default for layer in found].index(True) + 1]
    last = list({layer.grid: layer.name for layer in down}.values())
    assert len(last) >= 4
    # Its own Grad-CAM++ leaves the division out; what is compared is how the maps are refined.
    parts = [explain(model, images, target=LABELS, layer=one, method="gradcam++").maps for one in last]
    assert_same(ours.maps, peers.RefineCAM.fuse_cams(parts, normalized=False))
    named = explain(model, images, target=LABELS, layer=last, method="gradcam++", fuse="product")
    torch.testing.assert_close(named.maps, ours.maps)


@pytest.mark.parametrize("how", ["max", "mean", "product"])
@pytest.mark.parametrize("method", sorted(name for name in methods() if needs_layer(name) and name != "cam"))
def test_fuse_takes_every_layer_method(method: str, how: str) -> None:
    model = network_for(method)
    torch.manual_seed(0)
    fused = explain(model, IMAGES, target=1, layer=["body.0", "body"], method=method, fuse=how).maps
    torch.manual_seed(0)
    parts = explain(model, IMAGES, target=1, layer=["body.0", "body"], method=method)
    scaled = []
    for part in parts:
        low, high = part.maps.amin((1, 2), keepdim=True), part.maps.amax((1, 2), keepdim=True)
        unit = torch.where(high > low, (part.maps - low) / (high - low), 0.0)
        finest = parts[0].maps.shape[1:]
        scaled.append(functional.interpolate(unit[:, None], finest, mode="bilinear")[:, 0])
    one, two = scaled
    expected = {"max": torch.maximum(one, two), "mean": (one + two) / 2, "product": one * two}[how]
    torch.testing.assert_close(fused, expected)


def test_fuse_without_layers_takes_the_deepest_of_each_grid() -> None:
    e = explain(Staged(), IMAGES, target=1, fuse="mean", batch_size=2)
    assert e.layer == "body.0+body" and e.maps.shape == (3, 16, 20)
    several = explain(Staged(), IMAGES, target=torch.tensor([[0, 1]] * 3), fuse="max")
    assert several.maps.shape == (3, 2, 16, 20)
    torch.testing.assert_close(several.maps[:, 1], explain(Staged(), IMAGES, target=1, fuse="max").maps)


def test_fuse_shows_what_is_not_finite() -> None:
    maps = [torch.rand(2, 4, 4), torch.rand(2, 2, 2)]
    maps[1][1] = torch.nan
    fused = fuse(maps, "mean")
    assert fused[0].isfinite().all() and fused[1].isnan().all()


def test_fuse_says_what_is_wrong() -> None:
    with pytest.raises(InputError, match=r"unknown fusion 'median'.* Valid: max, mean, product"):
        explain(Staged(), IMAGES, fuse="median")
    with pytest.raises(InputError, match="'saliency' explains the image itself, no layer"):
        explain(Staged(), IMAGES, method="saliency", fuse="mean")
    flat = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    )
    with pytest.raises(LayerError, match="no stages to fuse; name several layers"):
        explain(flat, IMAGES, method="refinecam")


@pytest.mark.parametrize("method", ["gradcam", "layercam", "saliency", "scorecam", "legrad"])
def test_smooth_is_the_mean_over_mirrored_and_brighter_copies(method: str) -> None:
    model = network_for(method)
    target = model(IMAGES).argmax(1)
    total = 0
    for mirrored in (False, True):
        for factor in (0.9, 1.0, 1.1):
            copy = (IMAGES.flip(3) if mirrored else IMAGES) * factor
            maps = explain(model, copy, target=target, method=method).maps
            total = total + (maps.flip(2) if mirrored else maps)
    found = explain(model, IMAGES, method=method, smooth=True)
    torch.testing.assert_close(found.maps, total / 6, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found.output, model(IMAGES).detach())


def test_smooth_maps_of_mirrored_images_are_mirrored() -> None:
    model = Staged().eval()
    one = explain(model, IMAGES, target=1, smooth=True, layer=["body.0", "body"])
    two = explain(model, IMAGES.flip(3), target=1, smooth=True, layer=["body.0", "body"])
    for a, b in zip(one, two, strict=True):
        torch.testing.assert_close(a.maps.flip(2), b.maps)
        assert not torch.allclose(explain(model, IMAGES.flip(3), target=1, layer=a.layer).maps, a.maps.flip(2))


def test_smooth_equals_pytorch_grad_cams_augmentation_with_plain_sums(resnet: Any) -> None:
    model, images = resnet
    peers = pytest.importorskip("pytorch_grad_cam")
    targets = pytest.importorskip("pytorch_grad_cam.utils.model_targets")
    with peers.GradCAM(model, [model.layer4]) as cam:
        original = cam.get_cam_image
        cam.compute_cam_per_layer = lambda *given: [raw(cam, original, images, *given)]
        cam.aggregate_multi_layers = lambda parts: parts[0]
        theirs = cam(images, [targets.ClassifierOutputTarget(int(label)) for label in LABELS], aug_smooth=True)
    ours = explain(model, images, target=LABELS, layer="layer4", smooth=True).maps
    assert_same(ours, torch.from_numpy(theirs))


def raw(cam: Any, original: Any, images: Tensor, given: Tensor, wanted: Any, smooth: bool) -> np.ndarray:
    """The peer's maps at the layer's resolution, before they are scaled."""
    activations, gradients = (
        t[0].detach().numpy() for t in (cam.activations_and_grads.activations, cam.activations_and_grads.gradients)
    )
    return np.maximum(original(given, cam.target_layers[0], wanted, activations, gradients, smooth), 0)
