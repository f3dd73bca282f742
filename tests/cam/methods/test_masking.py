"""Methods that run the model again: equal to the peers and to evaluations of the equations one by one."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from camwatch.cam.engine import explain
from camwatch.cam.methods.runner import PER_PASS_ON_CPU
from camwatch.errors import TargetError

pytestmark = pytest.mark.filterwarnings("ignore::camwatch.cam.blank_maps.BlankMapWarning")


class Net(nn.Module):
    """A small network; its head may have a shortcut around the explained layer, or count its calls."""

    def __init__(self, shortcut: str = "none", repeats: int = 1) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.body = nn.Conv2d(4, 4, 3, padding=1)
        self.mix = nn.Conv2d(8 if shortcut == "cat" else 4, 6, 3, padding=1)
        self.head = nn.Linear(6, 5)
        self.shortcut, self.repeats = shortcut, repeats
        self.images = 0

    def forward(self, x: Tensor) -> Tensor:
        self.images += len(x)
        before = self.stem(x).relu()
        after = before
        for _ in range(self.repeats):
            after = self.body(after).relu()
        if self.shortcut == "add":
            after = after + before
        if self.shortcut == "cat":
            after = torch.cat([after, before], 1)
        if self.shortcut == "batch":  # reads the batch's size off the input
            after = after.reshape(len(x), -1, *x.shape[2:])[:, :4]
        return self.head(self.mix(after).relu().mean((2, 3)))


def ablated(model: Net, images: Tensor, labels: Tensor) -> Tensor:
    """The equation, one channel and one image at a time, in float64."""
    model, images = model.double(), images.double()
    maps = []
    for image, label in zip(images, labels.tolist(), strict=True):
        kept: list[Tensor] = []

        def forward(channel: int | None, image: Tensor = image, kept: list[Tensor] = kept) -> Tensor:
            calls = 0

            def hook(module: nn.Module, args: Any, output: Tensor) -> Tensor:
                nonlocal calls
                calls += 1
                kept[:] = [output]
                output = output.clone()
                if channel is not None and calls == model.repeats:
                    output[:, channel] = 0
                return output

            handle = model.body.register_forward_hook(hook)
            scores = model(image[None])[0]
            handle.remove()
            return scores

        with torch.no_grad():
            whole = forward(None)[label]
            activations = kept[0][0].clone()
            weights = torch.stack([(whole - forward(c)[label]) / whole.abs() for c in range(4)])
        maps.append((weights.view(-1, 1, 1) * activations).sum(0).relu())
    model.float()
    return torch.stack(maps).float()


@pytest.mark.parametrize("shortcut", ["none", "add", "cat", "batch"])
@pytest.mark.parametrize("batch_size", [None, 1, 2])
def test_ablationcam_equals_the_equation_for_any_head(shortcut: str, batch_size: int | None) -> None:
    torch.manual_seed(1)
    model, images, labels = Net(shortcut), torch.randn(3, 3, 6, 6), torch.tensor([4, 0, 2])
    maps = explain(model, images, layer="body", target=labels, method="ablationcam", batch_size=batch_size).maps
    torch.testing.assert_close(maps, ablated(model, images, labels), rtol=1e-3, atol=1e-4 * float(maps.max()))


def test_ablationcam_changes_the_last_call_of_a_shared_layer() -> None:
    torch.manual_seed(1)
    model, images, labels = Net(repeats=3), torch.randn(2, 3, 6, 6), torch.tensor([4, 1])
    maps = explain(model, images, layer="body", target=labels, method="ablationcam").maps
    torch.testing.assert_close(maps, ablated(model, images, labels), rtol=1e-3, atol=1e-4 * float(maps.max()))


def test_ablationcam_runs_the_layers_below_a_few_times_only() -> None:
    model = Net("add")
    explain(model, torch.randn(3, 3, 6, 6), layer="body", method="ablationcam")
    assert model.images == 3 + 1 + 3  # the images, one test of the head, one pass per image for all channels


@pytest.mark.parametrize("method", ["ablationcam", "scorecam"])
def test_perturbation_gives_k_targets_what_it_gives_each(method: str) -> None:
    torch.manual_seed(2)
    model, images = Net("add"), torch.randn(3, 3, 6, 6)
    target = torch.tensor([[4, 0], [1, 2], [3, 4]])
    both = explain(model, images, layer="body", target=target, method=method).maps
    assert both.shape == (3, 2, 6, 6)
    for k in range(2):
        one = explain(model, images, layer="body", target=target[:, k], method=method).maps
        torch.testing.assert_close(both[:, k], one)


@pytest.mark.parametrize("method", ["ablationcam", "scorecam"])
def test_perturbation_explains_the_class_first_predicted(method: str) -> None:
    torch.manual_seed(2)
    model, images = Net("add"), torch.randn(4, 3, 6, 6)
    predicted = explain(model, images, layer="body", method=method)
    fixed = explain(model, images, layer="body", target=predicted.output.argmax(1), method=method)
    torch.testing.assert_close(predicted.maps, fixed.maps)


@pytest.mark.parametrize("method", ["ablationcam", "scorecam"])
def test_perturbation_scores_by_a_callable_that_knows_the_images_order(method: str) -> None:
    torch.manual_seed(2)
    model, images, labels = Net("add"), torch.randn(4, 3, 6, 6), torch.tensor([4, 0, 1, 1])
    by_callable = explain(model, images, layer="body", target=lambda o: o[torch.arange(4), labels], method=method)
    torch.testing.assert_close(
        by_callable.maps, explain(model, images, layer="body", target=labels, method=method).maps
    )
    with pytest.raises(TargetError, match=r"one score per image.*shape \(\) for 4 images"):
        explain(model, images, layer="body", target=lambda o: o.sum(), method=method)


@pytest.mark.parametrize("method", ["ablationcam", "scorecam"])
def test_perturbation_keeps_within_the_batch_size(method: str) -> None:
    seen = []
    model = Net()
    model.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    explain(model, torch.randn(5, 3, 6, 6), layer="body", method=method, batch_size=3)
    assert max(seen) <= 3
    seen.clear()
    explain(model, torch.randn(5, 3, 6, 6), layer="body", method=method)
    assert max(seen) <= PER_PASS_ON_CPU


def scored(model: nn.Module, images: Tensor, labels: list[int], activations: Tensor) -> Tensor:
    """Score-CAM's equations, one channel and one image at a time, in float64."""
    model, images, activations = model.double(), images.double(), activations.double()
    maps = []
    for image, label, cells in zip(images, labels, activations, strict=True):
        scores = []
        for cell in cells:
            mask = functional.interpolate(cell[None, None], image.shape[1:], mode="bilinear")[0]
            span = mask.max() - mask.min()
            mask = (mask - mask.min()) / span if span > 0 else torch.zeros_like(mask)
            scores.append(model((image * mask)[None])[0, label] - model((image * 0)[None])[0, label])
        maps.append((torch.stack(scores).softmax(0).view(-1, 1, 1) * cells).sum(0).relu())
    model.float()
    return torch.stack(maps).float()


@torch.no_grad()
def test_scorecam_equals_the_papers_equations() -> None:
    torch.manual_seed(5)
    model, images = Net("cat"), torch.randn(2, 3, 12, 12)
    model.body.bias[1] = -50  # a dead channel
    activations: list[Tensor] = []
    handle = model.mix.register_forward_hook(lambda module, args, output: activations.append(output))
    model(images)
    handle.remove()
    maps = explain(model, images, layer="mix", target=torch.tensor([3, 1]), method="scorecam").maps
    expected = scored(model, images, [3, 1], activations[0])
    torch.testing.assert_close(maps, expected, rtol=1e-4, atol=1e-5 * float(expected.max()))


def few_channels(name: str, channels: int = 8) -> tuple[nn.Module, Tensor, str]:
    """A random network, cut behind a few of its last layer's channels so that the slow peers stay quick."""
    torchvision = pytest.importorskip("torchvision")
    torch.manual_seed(3)
    full = torchvision.models.get_model(name, num_classes=10)
    for module in full.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    if name == "resnet18":
        trunk, width = nn.Sequential(*list(full.children())[:-2]), 512
    else:
        trunk, width = full.features, {"vgg16_bn": 512, "mobilenet_v3_small": 576}[name]
    squeeze = nn.Sequential(nn.Conv2d(width, channels, 1), nn.BatchNorm2d(channels, momentum=1.0), nn.ReLU())
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 16), nn.Tanh(), nn.Linear(16, 10))
    model = nn.Sequential(trunk, squeeze, head)
    with torch.no_grad():
        model.train()(torch.randn(8, 3, 64, 64))
    return model.eval(), torch.randn(2, 3, 64, 64), "1"


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "resnet18", "vgg16_bn"])
def test_ablationcam_equals_pytorch_grad_cam(name: str) -> None:
    peers = pytest.importorskip("pytorch_grad_cam")
    targets = pytest.importorskip("pytorch_grad_cam.utils.model_targets")
    model, images, layer = few_channels(name)
    labels = model(images).argmax(1)  # positive scores, for which both read the equation alike
    assert model(images).amax(1).min() > 0
    with peers.AblationCAM(model, [model[1]]) as cam:
        activations = model[1](model[0](images)).detach().numpy()
        wanted = [targets.ClassifierOutputTarget(int(label)) for label in labels]
        theirs = cam.get_cam_image(images, model[1], wanted, activations, None, False)
    ours = explain(model, images, layer=layer, target=labels, method="ablationcam").maps
    expected = torch.from_numpy(np.maximum(theirs, 0))
    assert (ours - expected).abs().amax() <= 1e-4 * expected.amax()


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "resnet18", "vgg16_bn"])
@torch.no_grad()
def test_scorecam_equals_the_papers_equations_where_peers_differ(name: str) -> None:
    model, images, layer = few_channels(name)
    labels = torch.tensor([6, 2])
    ours = explain(model, images, layer=layer, target=labels, method="scorecam").maps
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        theirs = scored(model, images, labels.tolist(), model[1](model[0](images)))
    assert (ours - theirs).abs().amax() <= 1e-4 * theirs.amax()
