"""The original CAM, SS-CAM, IS-CAM and Smooth Grad-CAM++ beside torch-cam and their equations."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from camwatch import explain
from camwatch.cam import Contrast
from camwatch.cam.methods.further_gradients import NOISY_COPIES
from camwatch.cam.methods.input_gradients import NOISE
from camwatch.cam.methods.masking import IS_STEPS, SS_DRAWS, mask_noise
from camwatch.errors import UnsupportedError
from tests.cam.methods.test_gradients import assert_same
from tests.support.cam_nets import Staged

peers = pytest.importorskip("torchcam.methods")
pytestmark = pytest.mark.filterwarnings("ignore::camwatch.errors.CamwatchWarning")
IMAGES = torch.rand(2, 3, 10, 12, generator=torch.Generator().manual_seed(5))
LABELS = torch.tensor([2, 0])


def fine() -> nn.Module:
    """Its layer has the image's own grid, so that no upsampling comes between the peers and camwatch."""
    torch.manual_seed(1)
    body = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU())
    head = nn.Sequential(nn.AdaptiveMaxPool2d(2), nn.Flatten(), nn.Linear(24, 8), nn.Tanh(), nn.Linear(8, 3))
    return nn.Sequential(body, head).eval()


@pytest.mark.parametrize("architecture", ["resnet18", "shufflenet_v2_x0_5", "mnasnet0_5"])
def test_cam_equals_torch_cam(architecture: str) -> None:
    torchvision = pytest.importorskip("torchvision")
    torch.manual_seed(0)
    model = torchvision.models.get_model(architecture, num_classes=5)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        model.train()(torch.randn(8, 3, 64, 96))
    layer, head = {"resnet18": ("layer4", "fc"), "shufflenet_v2_x0_5": ("conv5", "fc")}.get(
        architecture, ("layers", "classifier.1")
    )
    with peers.CAM(model.eval(), layer, head) as extractor:
        model(images)
        theirs = extractor([4, 1], normalized=False)[0].relu().detach()
    assert_same(explain(model, images, target=torch.tensor([4, 1]), method="cam").maps, theirs)


def test_cam_of_any_linear_target_is_gradcam_but_for_the_cells() -> None:
    for model, targets in ((Staged(), [LABELS, Contrast(0, 1), torch.eye(3)[LABELS] + 0.5]), (Staged(1), [0, 1])):
        for target in targets:
            found = explain(model.eval(), IMAGES, target=target, method="cam").maps
            coarse = explain(model, IMAGES, target=target, method="gradcam").maps
            torch.testing.assert_close(found, coarse * found[0].numel(), rtol=1e-4, atol=1e-6)


def test_cam_refuses_other_heads_and_layers() -> None:
    with pytest.raises(UnsupportedError, match="needs a layer whose global average is all that the last linear layer"):
        explain(fine(), IMAGES, method="cam")
    with pytest.raises(UnsupportedError, match="name the layer before the pooling"):
        explain(Staged(), IMAGES, layer="body.0", method="cam")


class Drawn:
    """Stands in for torch-cam's noise: camwatch's, draw by draw."""

    def __init__(self) -> None:
        self.draw = -1

    def sample(self, size: torch.Size) -> Tensor:
        self.draw += 1
        channels = [mask_noise(self.draw, channel, torch.Size((size[0], 1, *size[2:]))) for channel in range(size[1])]
        return torch.cat(channels, 1)


@pytest.mark.parametrize("batch_size", [None, 5])
def test_sscam_equals_torch_cam(batch_size: int | None) -> None:
    model = fine()
    with peers.SSCAM(model, "0", num_samples=SS_DRAWS) as extractor:
        extractor._distrib = Drawn()
        model(IMAGES)
        theirs = extractor(LABELS.tolist(), normalized=False)[0]
    ours = explain(model, IMAGES, layer="0", target=LABELS, method="sscam", batch_size=None).maps
    assert_same(ours, theirs)
    if batch_size:
        again = explain(model, IMAGES, layer="0", target=LABELS, method="sscam", batch_size=batch_size).maps
        torch.testing.assert_close(again, ours)


def test_iscam_equals_torch_cam() -> None:
    model = fine()
    with peers.ISCAM(model, "0", num_samples=IS_STEPS) as extractor:
        model(IMAGES)
        theirs = extractor(LABELS.tolist(), normalized=False)[0]
    assert_same(explain(model, IMAGES, layer="0", target=LABELS, method="iscam").maps, theirs)


def test_scorecam_equals_torch_cam_where_nothing_is_upsampled() -> None:
    model = fine()
    with peers.ScoreCAM(model, "0") as extractor:
        model(IMAGES)
        theirs = extractor(LABELS.tolist(), normalized=False)[0]
    assert_same(explain(model, IMAGES, layer="0", target=LABELS, method="scorecam").maps, theirs)


def noisy(images: Tensor) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    span = (images.amax((1, 2, 3)) - images.amin((1, 2, 3))).view(-1, 1, 1, 1)
    return [images + NOISE * span * torch.randn(images.shape, generator=generator) for _ in range(NOISY_COPIES)]


def test_smoothgradcam_plus_plus_equals_the_equation() -> None:
    """Position by position in float64, the derivatives of exp(score) averaged over the copies."""
    model = fine().double()
    images, copies = IMAGES.double(), [copy.double() for copy in noisy(IMAGES)]
    gradients = []
    for copy in copies:
        activations = model[0](copy).detach().requires_grad_()
        score = model[1](activations)[torch.arange(2), LABELS].sum()
        gradients.append(torch.autograd.grad(score, activations)[0])
    a = model[0](images).detach()
    first, second, third = (sum(g**p for g in gradients) / NOISY_COPIES for p in (1, 2, 3))
    expected = torch.zeros(2, 10, 12, dtype=torch.float64)
    for n in range(2):
        for k in range(6):
            weight = 0.0
            for y in range(10):
                for x in range(12):
                    below = 2 * second[n, k, y, x] + a[n, k].sum() * third[n, k, y, x]
                    if below != 0:
                        weight += float(second[n, k, y, x] / below * first[n, k, y, x].clamp(min=0))
            expected[n] += weight * a[n, k]
    ours = explain(fine(), IMAGES, layer="0", target=LABELS, method="smoothgradcam++").maps
    assert_same(ours, expected.relu().float())


def test_smoothgradcam_plus_plus_of_a_linear_head_is_gradcam_plus_plus() -> None:
    model = Staged().eval()  # the gradient of its head is the same for every copy
    plain = explain(model, IMAGES, target=LABELS, method="gradcam++").maps
    assert_same(explain(model, IMAGES, target=LABELS, method="smoothgradcam++").maps, plain)


def test_finercam_leaves_out_what_the_similar_classes_share() -> None:
    """Where the peers differ (strength and weights), the choice is pytorch-grad-cam's; both subtract the neighbours."""
    model: Any = Staged().eval()
    with torch.no_grad():
        model.head.weight[1:] = model.head.weight[0]
        model.head.weight[0, 3] += 2.0
    found = explain(model, IMAGES, target=0, method="finercam").maps
    channel = explain(model, IMAGES, layer="body", method=lambda a, g: a[:, 3]).maps
    torch.testing.assert_close(found / found.amax(), channel / channel.amax(), rtol=1e-4, atol=1e-5)
