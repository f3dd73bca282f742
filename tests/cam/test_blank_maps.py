"""Maps that show nothing are named and reported, with advice, and never drawn as if they were a result."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from camwatch import Explanation, explain
from camwatch.cam.blank_maps import BlankMapWarning, SaturatedMapWarning, map_defects
from tests.support.cam_nets import Staged

IMAGES = torch.rand(3, 3, 12, 16, generator=torch.Generator().manual_seed(0))
SOUND = torch.rand(3, 4, generator=torch.Generator().manual_seed(1))
FLAWED = {
    "zero": torch.zeros(3, 4),
    "constant": torch.full((3, 4), 3.0),
    "saturated": 0.95 + 0.05 * SOUND,
    "not finite": torch.where(SOUND.median() < SOUND, torch.nan, SOUND),
}


def explanation(maps: Tensor) -> Explanation:
    return Explanation(maps, torch.zeros(len(maps), 4), "body", "gradcam", (12, 16), images=IMAGES[: len(maps)])


@given(flaw=st.sampled_from(sorted(FLAWED)), power=st.integers(-15, 15), place=st.integers(0, 2))
def test_flaw_is_named_at_any_scale(flaw: str, power: int, place: int) -> None:
    maps = torch.stack([SOUND] * 3)
    maps[place] = FLAWED[flaw]
    expected = ["", "", ""]
    expected[place] = flaw
    assert map_defects(maps * 10.0**power, axes=2) == expected
    assert explanation(maps).flaws() == expected
    assert explanation(maps).blank().tolist() == [one not in ("", "saturated") for one in expected]


def test_flaws_of_overflow_and_of_several_targets() -> None:
    maps = torch.stack([torch.stack([SOUND, FLAWED["zero"]]), torch.stack([SOUND * torch.inf, SOUND])])
    assert explanation(maps).flaws() == ["", "zero", "not finite", ""]
    assert explanation(maps).blank().tolist() == [[False, True], [True, False]]


@pytest.mark.parametrize("flaw", sorted(FLAWED))
def test_flawed_map_is_hatched_and_labelled(flaw: str) -> None:
    drawn = explanation(torch.stack([SOUND, FLAWED[flaw]]))
    overlays = drawn.overlays(denormalize=(0.0, 1.0))
    hatch = (torch.arange(12)[:, None] + torch.arange(16)) % 12 < 3
    assert bool((overlays[1][:, hatch] == 128).all()) and not bool((overlays[0][:, hatch] == 128).all())
    torch.testing.assert_close(overlays[1][:, ~hatch], (IMAGES[1][:, ~hatch] * 255).round().to(torch.uint8))
    labels = [axis.get_xlabel() for axis in drawn.figure().axes]
    assert [i for i, label in enumerate(labels) if label] == [5] and flaw in labels[5]


def dead() -> nn.Module:
    net = Staged().eval()
    nn.init.constant_(net.head.weight, -1.0)
    return net


def poisoned() -> nn.Module:
    net = Staged().eval()
    with torch.no_grad():
        net.body[1][0].weight[0, 0, 0, 0] = torch.nan
    return net


def indifferent() -> nn.Module:
    """Its activations are a large constant, whatever the image."""
    net = Staged().eval()
    with torch.no_grad():
        net.body[1][0].weight.mul_(1e-9)
        net.body[1][0].bias.fill_(100.0)
        net.head.weight.abs_()
    return net


def satiated() -> nn.Module:
    net = indifferent()
    with torch.no_grad():
        net.body[1][0].weight.mul_(1e9)
    return net


@pytest.mark.parametrize(
    ("build", "kind", "message"),
    [
        (
            dead,
            BlankMapWarning,
            r"3 of 3 maps of gradcam at 'body' show nothing .* zero: no evidence .* shallower layer",
        ),
        (poisoned, BlankMapWarning, r"3 of 3 .* not finite: check that the weights are finite"),
        (indifferent, BlankMapWarning, r"3 of 3 .* constant: the layer does not tell places apart: try a shallower"),
        (satiated, SaturatedMapWarning, r"3 of 3 maps .* are saturated: all cells lie within a tenth of the strongest"),
    ],
)
def test_explain_reports_what_is_wrong_with_advice(build: Any, kind: type[Warning], message: str) -> None:
    with pytest.warns(BlankMapWarning, match=message) as caught:
        explain(build(), IMAGES, target=0, layer="body", batch_size=2)
    assert [one.category for one in caught] == [kind]
    assert caught[0].filename == __file__


def test_explain_says_nothing_of_sound_maps() -> None:
    net = Staged().eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = explain(net, IMAGES, method=lambda a, g: (a * g).sum(1).abs(), layer=["body.0", "body"])
    assert all(bool((e.maps.flatten(1).std(1) > 0).all()) for e in found)


def test_fused_and_smoothed_maps_are_judged_too() -> None:
    with pytest.warns(BlankMapWarning, match=r"'body\.1\+body' show nothing"):
        explain(dead(), IMAGES, target=0, layer=["body.1", "body"], fuse="mean")
    with pytest.warns(BlankMapWarning, match="3 of 3"):
        explain(dead(), IMAGES, target=0, smooth=True)
