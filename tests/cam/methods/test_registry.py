"""What every method is registered with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from camwatch import explain, methods
from camwatch.cam.methods.gradients import GRADIENT_METHODS, weighted_sum
from camwatch.cam.methods.registry import IMAGE_METHODS, SITE_METHODS, STAGE_METHODS
from camwatch.cam.methods.runner import Access, Site

TABLES = [GRADIENT_METHODS, SITE_METHODS, STAGE_METHODS, IMAGE_METHODS]
FUNCTIONS: dict[str, Callable[..., Any]] = {name: function for table in TABLES for name, function in table.items()}
ASKED_FOR = {
    *("gradcam", "gradcam++", "smoothgradcam++", "hirescam", "layercam", "xgradcam", "elementwise", "eigencam"),
    *("eigengradcam", "fullgrad", "kpcacam", "shapleycam", "finercam", "refinecam", "fem", "ablationcam", "scorecam"),
    *("sscam", "iscam", "occlusion", "saliency", "smoothgrad", "guidedbackprop", "guidedgradcam", "rollout"),
    *("legrad", "cam", "random"),
}


def test_every_method_has_one_name_and_one_table() -> None:
    assert sum(map(len, TABLES)) == len(FUNCTIONS) == len(methods())
    assert set(methods()) == set(FUNCTIONS) == ASKED_FOR
    for table in TABLES:
        assert list(table) == sorted(table)


@pytest.mark.parametrize("name", methods())
def test_every_method_says_when_to_choose_it_and_whose_it_is(name: str) -> None:
    text = FUNCTIONS[name].__doc__ or ""
    assert "Choose it" in text
    assert "Source:" in text or name == "random"


def test_a_new_method_is_a_function_and_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def brightest(access: Access, site: Site) -> Tensor:
        return torch.stack([weighted_sum(site.activations, site.activations.flatten(2).amax(2))] * 2, 1)

    monkeypatch.setitem(SITE_METHODS, "brightest", brightest)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    images, target = torch.rand(3, 3, 8, 8), torch.tensor([[0, 1]] * 3)
    maps = explain(net, images, method="brightest", target=target, batch_size=2).maps
    activations = net[:2](images).detach()
    expected = (activations * activations.amax((2, 3), keepdim=True)).sum(1)
    torch.testing.assert_close(maps, torch.stack([expected] * 2, 1))
