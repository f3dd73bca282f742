"""FullGrad: its shares add up to the score, and its maps equal pytorch-grad-cam's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from camwatch import explain
from camwatch.cam.methods.fullgrad import added_bias, full_gradients
from camwatch.cam.methods.runner import ModelRunner
from camwatch.errors import LayerError
from tests.cam.methods.test_gradients import build
from tests.support.cam_nets import Staged


def runner(model: nn.Module, images: Tensor) -> ModelRunner:
    found = ModelRunner(model.requires_grad_(False), images, lambda output: output, model)
    found.fix_target()
    return found


def relus(last: bool = False) -> nn.Module:
    """A net whose biases sit in convolutions, norms and linear layers, on channels first or last."""
    torch.manual_seed(0)

    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Sequential(nn.Linear(6, 7), nn.ReLU(), nn.Linear(7, 6))

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    body = [nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(inplace=True), *([Last()] if last else [])]
    model = nn.Sequential(*body, nn.Conv2d(6, 5, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(180, 9), nn.ReLU())
    model.append(nn.Linear(9, 4))
    model(torch.randn(8, 3, 15, 15))  # the norm's statistics
    return model.eval()


@pytest.mark.parametrize("last", [False, True])
def test_full_gradients_add_up_to_the_score(last: bool) -> None:
    model, images = relus(last), torch.randn(3, 3, 15, 15)
    parts = full_gradients(runner(model, images))
    totals = [pixels.flatten(1).sum(1) + sum(share.flatten(1).sum(1) for share in shares) for pixels, shares in parts]
    torch.testing.assert_close(torch.stack(totals, 1), model(images), rtol=1e-4, atol=1e-5)


def test_full_gradients_count_a_shared_layer_at_each_call() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 3, 3, padding=1), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.conv(self.conv(x).relu()).relu().mean((2, 3)))

    torch.manual_seed(0)
    model, images = Shared(), torch.randn(2, 3, 8, 8)
    (pixels, shares), _ = full_gradients(runner(model, images))
    total = pixels.flatten(1).sum(1) + sum(share.flatten(1).sum(1) for share in shares)
    torch.testing.assert_close(total, model(images)[:, 0])


def test_added_bias_of_a_norm_is_its_answer_to_zeros() -> None:
    for norm in (nn.BatchNorm2d(4), nn.BatchNorm2d(4, affine=False)):
        norm(torch.randn(8, 4, 5, 5) * 3 + 1)
        norm.eval()
        torch.testing.assert_close(added_bias(norm), norm(torch.zeros(1, 4, 1, 1)).flatten())
    assert added_bias(nn.Conv2d(3, 4, 3, bias=False)) is None and added_bias(nn.ReLU()) is None


@torch.enable_grad()
def by_the_equation(model: nn.Module, images: Tensor, label: int) -> Tensor:
    """Equation 8 in float64 for one image, each bias as a tensor of its own that is added at every place."""
    model, image = model.double(), images.double().requires_grad_()
    added: list[tuple[Tensor, Tensor]] = []

    def hook(module: nn.Module, args: object, output: Tensor) -> Tensor:
        zero = torch.zeros_like(output, requires_grad=True)
        added.append((zero, added_bias(module).view(1, -1, 1, 1)))
        return output + zero

    convolutions = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.BatchNorm2d))]
    handles = [m.register_forward_hook(hook) for m in convolutions if added_bias(m) is not None]
    score = model(image)[0, label]
    gradients = torch.autograd.grad(score, [image, *(zero for zero, _ in added)])
    for handle in handles:
        handle.remove()
    maps = [image * gradients[0], *(bias * g for (_, bias), g in zip(added, gradients[1:], strict=True))]
    total = torch.zeros(images.shape[2:], dtype=torch.float64)
    for part in maps:
        for channel in part[0].detach().abs():
            span = channel.max() - channel.min()
            scaled = (channel - channel.min()) / span if span > 0 else torch.zeros_like(channel)
            total += functional.interpolate(scaled[None, None], images.shape[2:], mode="bilinear")[0, 0]
    model.float()
    return total


@pytest.mark.parametrize("name", ["resnet18", "vgg16_bn", "mobilenet_v3_small"])
def test_fullgrad_equals_the_equation_and_pytorch_grad_cam(name: str) -> None:
    peers = pytest.importorskip("pytorch_grad_cam")
    targets = pytest.importorskip("pytorch_grad_cam.utils.model_targets")
    model, images = build(name)
    image, label = images[:1], 6
    ours = explain(model, image, target=label, method="fullgrad").maps[0]
    assert (ours - by_the_equation(model, image, label)).abs().amax() <= 1e-4 * ours.amax()
    with peers.FullGrad(model, []) as cam:
        kept: list[np.ndarray] = []
        cam.aggregate_multi_layers = lambda parts: kept.append(parts) or parts
        cam(image.clone(), [targets.ClassifierOutputTarget(label)])
    theirs = torch.from_numpy(kept[0])[0, 0]
    if name == "mobilenet_v3_small":  # the peer adds 1e-7 to what it divides by, and shares are smaller there
        return
    assert (ours - theirs).abs().amax() <= 1e-2 * theirs.amax()


def test_fullgrad_says_that_no_gradient_reaches_the_pixels() -> None:
    with pytest.raises(LayerError, match="does not depend on the pixels"):
        explain(Staged(), torch.rand(1, 3, 8, 8), method="fullgrad", forward=lambda model, x: model(x.detach()))
