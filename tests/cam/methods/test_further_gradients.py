"""Finer-CAM and Shapley-CAM equal pytorch-grad-cam; the random map is a baseline."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from camwatch.cam.engine import explain
from camwatch.errors import TargetError

peers = pytest.importorskip("pytorch_grad_cam")
pytestmark = pytest.mark.filterwarnings("ignore::camwatch.cam.blank_maps.BlankMapWarning")


def net(curved: bool = False) -> tuple[nn.Sequential, Tensor]:
    torch.manual_seed(6)
    bend = nn.Tanh() if curved else nn.ReLU()
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3),
        nn.ReLU(),
        nn.Conv2d(6, 8, 3),
        bend,
        nn.Flatten(),
        nn.Linear(8 * 64, 9),
        bend,
        nn.Linear(9, 6),
    )
    return model.eval(), 3 * torch.randn(4, 3, 12, 12)


def assert_same(ours: Tensor, theirs: Tensor) -> None:
    assert theirs.amax() > 0
    assert (ours - theirs).abs().amax() <= 1e-4 * theirs.amax()


def peer_map(name: str, model: nn.Module, images: Tensor) -> Tensor:
    """The peer's maps before normalization."""
    kept: list[np.ndarray] = []
    with getattr(peers, name)(model, [model[1]]) as cam:
        base = getattr(cam, "base_cam", cam)
        original = base.get_cam_image
        base.get_cam_image = lambda *a, **k: kept.append(original(*a, **k)) or kept[-1]
        cam(images, None)
    return torch.from_numpy(kept[0]).relu()


def test_finercam_equals_pytorch_grad_cam() -> None:
    model, images = net()
    assert_same(explain(model, images, layer="1", method="finercam").maps, peer_map("FinerCAM", model, images))


@pytest.mark.parametrize("curved", [False, True])
def test_shapleycam_equals_pytorch_grad_cam(curved: bool) -> None:
    model, images = net(curved)
    ours = explain(model, images, layer="1", method="shapleycam").maps
    assert_same(ours, peer_map("ShapleyCAM", model, images))
    plain = explain(model, images, layer="1", method="gradcam").maps
    assert torch.allclose(ours, plain, rtol=1e-3, atol=1e-6) != curved


@pytest.mark.parametrize("method", ["finercam", "shapleycam"])
def test_rescored_method_gives_k_targets_what_it_gives_each(method: str) -> None:
    model, images = net(curved=True)
    target = torch.tensor([[0, 1], [2, 3], [4, 5], [5, 0]])
    both = explain(model, images, layer="1", target=target, method=method).maps
    for k in range(2):
        torch.testing.assert_close(
            both[:, k], explain(model, images, layer="1", target=target[:, k], method=method).maps
        )


def test_finercam_compares_two_classes_where_there_are_only_two() -> None:
    model, images = net()
    model = nn.Sequential(*list(model)[:-1], nn.Linear(9, 2))
    ours = explain(model, images, layer="1", target=0, method="finercam").maps
    by_hand = explain(model, images, layer="1", target=lambda scores: scores[:, 0] - scores[:, 1]).maps
    torch.testing.assert_close(ours, by_hand)


def test_finercam_refuses_a_target_that_names_no_class() -> None:
    model, images = net()
    with pytest.raises(TargetError, match="must be 'predicted', a class index"):
        explain(model, images, layer="1", target=lambda scores: scores.sum(1), method="finercam")


def test_random_map_depends_on_the_seed_alone() -> None:
    model, images = net()
    torch.manual_seed(1)
    first = explain(model, images, layer="1", method="random").maps
    torch.manual_seed(1)
    again = explain(model, 2 * images, layer="1", method="random").maps
    assert first.shape == (4, 10, 10) and torch.equal(first, again)
