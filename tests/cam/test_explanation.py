"""What explain returns, and the pictures made from it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from camwatch import Explanation, explain
from camwatch.cam.blank_maps import BlankMapWarning
from camwatch.cam.explanation import concatenate
from camwatch.errors import InputError

IMAGES = torch.rand(3, 3, 12, 16, generator=torch.Generator().manual_seed(0))


def explanation(maps: torch.Tensor, output: Any = None) -> Explanation:
    return Explanation(maps, torch.zeros(len(maps), 4) if output is None else output, "body", "gradcam", (12, 16))


def test_top_gives_classes_and_probabilities() -> None:
    output = torch.tensor([[0.0, 3.0, 1.0], [2.0, 0.0, 1.0]])
    classes, values = explanation(torch.rand(2, 3, 4), output).top(2)
    assert classes.tolist() == [[1, 2], [0, 2]]
    torch.testing.assert_close(values, output.softmax(1).sort(descending=True).values[:, :2])
    assert explanation(torch.rand(2, 3, 4), output).top(5)[0].shape == (2, 3)


@pytest.mark.parametrize(
    ("value", "blank"),
    [(0.0, True), (1e-20, True), (float("nan"), True), (float("inf"), True), (7.0, True)],
)
def test_blank_maps_of_one_value(value: float, blank: bool) -> None:
    assert explanation(torch.full((1, 3, 4), value)).blank().tolist() == [blank]


@pytest.mark.parametrize("scale", [1e-15, 1.0, 1e15])
def test_blank_is_relative_to_the_scale(scale: float) -> None:
    maps = torch.stack([torch.rand(3, 4) * scale, torch.full((3, 4), scale)])
    assert explanation(maps).blank().tolist() == [False, True]


def test_blank_of_a_single_bad_cell() -> None:
    maps = torch.rand(2, 2, 3, 4)
    maps[1, 0, 0, 0] = float("nan")
    assert explanation(maps).blank().tolist() == [[False, False], [True, False]]


def test_overlays_of_blank_map_are_the_hatched_image() -> None:
    maps = torch.rand(3, 3, 4)
    maps[1] = 0
    overlays = explanation(maps).overlays(IMAGES, denormalize=(0.0, 1.0))
    plain = explanation(maps).overlays(IMAGES, alpha=0.0, denormalize=(0.0, 1.0))
    hatch = (torch.arange(12)[:, None] + torch.arange(16)) % 12 < 3
    assert bool((overlays[1][:, hatch] == 128).all())
    torch.testing.assert_close(overlays[1][:, ~hatch], (IMAGES[1][:, ~hatch] * 255).round().to(torch.uint8))
    torch.testing.assert_close(plain[0], (IMAGES[0] * 255).round().to(torch.uint8))
    assert not torch.equal(overlays[0], plain[0])


def test_overlays_of_several_targets_show_the_first() -> None:
    maps = torch.rand(3, 2, 3, 4)
    torch.testing.assert_close(explanation(maps).overlays(IMAGES), explanation(maps[:, 0]).overlays(IMAGES))


def test_heatmaps_refuse_volumes() -> None:
    volume = Explanation(torch.rand(1, 2, 2, 2), None, "body", "gradcam", (8, 8, 8))
    with pytest.raises(InputError, match="only maps of images can be drawn, these span 3 axes"):
        volume.heatmaps()


def test_figure_shows_every_image_and_says_blank() -> None:
    maps = torch.rand(3, 3, 4)
    maps[2] = 0
    figure = explanation(maps).figure(IMAGES, class_names=["ant", "bee", "cat", "dog"])
    assert len(figure.axes) == 12
    texts = [axis.get_xlabel() for axis in figure.axes]
    assert [i for i, text in enumerate(texts) if "blank" in text] == [9]
    assert "cat" in figure.axes[3].texts[0].get_text()
    figure.canvas.draw()


def test_explain_warns_of_blank_maps_with_advice() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    nn.init.constant_(net[4].weight, -1.0)
    with pytest.warns(BlankMapWarning, match=r"3 of 3 maps of gradcam at '1' show nothing .* shallower layer"):
        assert bool(explain(net, IMAGES).blank().all())


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_explain_reports_weights_that_are_not_finite(poison: float) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    nn.init.constant_(net[0].weight, poison)
    with pytest.warns(BlankMapWarning, match="weights are finite"):
        assert bool(explain(net, IMAGES, layer="1").blank().all())


@pytest.mark.parametrize("step", [1, 2, 3, 7])
def test_batches_join_to_the_whole(step: int) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    images, target = torch.rand(5, 3, 9, 9), torch.tensor([0, 1, 2, 0, 1])
    whole = explain(net, images, target=target, method=lambda a, g: (a * g).sum(1))
    parts = explain(net, images, target=target, method=lambda a, g: (a * g).sum(1), batch_size=step)
    torch.testing.assert_close(parts.maps, whole.maps)
    torch.testing.assert_close(parts.output, whole.output)


def test_concatenate_joins_structured_outputs() -> None:
    parts = [explanation(torch.rand(n, 3, 4), {"logits": torch.rand(n, 4), "loss": torch.tensor(2.0)}) for n in (2, 1)]
    joined = concatenate(parts)
    assert joined.output["logits"].shape == (3, 4) and joined.output["loss"].item() == 2.0


def test_pictures_are_drawn_on_the_explained_images_by_default() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    images = torch.rand(2, 3, 9, 9)
    found = explain(net, images, method=lambda a, g: (a * g).sum(1).abs())
    assert found.images is images
    assert torch.equal(found.overlays(), found.overlays(images))
    assert len(found.figure().axes) == 2 * 4
    with pytest.raises(InputError, match="holds no images to draw on; pass images="):
        explanation(torch.rand(2, 3, 4)).figure()
