"""Targets with a part for each image: contrast, similarity, a detector's boxes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from camwatch import explain, methods
from camwatch.cam import BoxScores, Contrast, Similarity
from camwatch.errors import TargetError
from tests.support.cam_nets import Staged, network_for

IMAGES = torch.rand(4, 3, 16, 20, generator=torch.Generator().manual_seed(0))
LABELS, OTHERS = torch.tensor([0, 1, 2, 0]), torch.tensor([1, 2, 0, 2])
pytestmark = pytest.mark.filterwarnings("ignore::camwatch.errors.CamwatchWarning")


def signed(activations: Tensor, gradients: Tensor) -> Tensor:
    return (activations * gradients).sum(1)


@pytest.mark.parametrize("batch_size", [None, 1, 3])
def test_contrast_is_the_difference_of_two_maps(batch_size: int | None) -> None:
    model = Staged().eval()
    found = explain(model, IMAGES, target=Contrast(LABELS, OTHERS), method=signed, batch_size=batch_size).maps
    one, two = (explain(model, IMAGES, target=t, method=signed).maps for t in (LABELS, OTHERS))
    torch.testing.assert_close(found, one - two)
    both = explain(model, IMAGES, target=Contrast(torch.stack([LABELS, OTHERS], 1), 1), method=signed).maps
    torch.testing.assert_close(both[:, 0], one - explain(model, IMAGES, target=1, method=signed).maps)


def test_contrast_with_the_runner_up_takes_the_second_class_of_each_image() -> None:
    model = Staged().eval()
    ranking = model(IMAGES).argsort(1, descending=True)
    found = explain(model, IMAGES, target=Contrast(), method=signed).maps
    by_hand = explain(model, IMAGES, target=Contrast(ranking[:, 0], ranking[:, 1]), method=signed).maps
    torch.testing.assert_close(found, by_hand)
    worst = explain(model, IMAGES, target=Contrast(ranking[:, 2]), method=signed).maps
    torch.testing.assert_close(
        worst, explain(model, IMAGES, target=Contrast(ranking[:, 2], ranking[:, 0]), method=signed).maps
    )


def test_contrast_of_a_one_logit_head_is_twice_the_logit() -> None:
    model = Staged(classes=1).eval()
    found = explain(model, IMAGES, target=Contrast(1), method=signed).maps
    torch.testing.assert_close(found, 2 * explain(model, IMAGES, target=1, method=signed).maps)


@pytest.mark.parametrize("method", sorted({*methods()} - {"finercam", "random"}))
def test_contrast_suits_every_method(method: str) -> None:
    model = network_for(method)
    found = explain(model, IMAGES, target=Contrast(LABELS, OTHERS), method=method, batch_size=4).maps
    rows = torch.arange(4)
    by_hand = explain(model, IMAGES, target=lambda o: o[rows, LABELS] - o[rows, OTHERS], method=method, batch_size=4)
    torch.testing.assert_close(found, by_hand.maps)


@pytest.mark.parametrize("method", ["scorecam", "occlusion", "gradcam"])
def test_contrast_keeps_the_classes_first_predicted(method: str) -> None:
    model = Staged().eval()
    ranking = model(IMAGES).argsort(1, descending=True)
    fixed = explain(model, IMAGES, target=Contrast(ranking[:, 0], ranking[:, 1]), method=method).maps
    torch.testing.assert_close(explain(model, IMAGES, target=Contrast(), method=method).maps, fixed)


def test_contrast_refuses_a_runner_up_of_many() -> None:
    with pytest.raises(TargetError, match="a runner-up needs one class per image as target"):
        explain(Staged(), IMAGES, target=Contrast(torch.ones(4, 3, dtype=torch.bool)))
    with pytest.raises(TargetError, match="unknown against 'runnerup'; did you mean 'runner-up'"):
        Contrast(0, "runnerup")
    with pytest.raises(TargetError, match="target 7 is out of range"):
        explain(Staged(), IMAGES, target=Contrast(0, 7))


@pytest.mark.parametrize("wrap", [lambda t: t, lambda t: (t, 2), lambda t: {"hidden": t * 2, "embedding": t}])
def test_similarity_to_one_reference_and_to_one_per_image(wrap: Any) -> None:
    model = Staged(classes=5).eval()
    references = torch.randn(4, 5)

    def forward(model: nn.Module, images: Tensor) -> Any:
        return wrap(model(images))

    for reference in (references[0], references):
        found = explain(
            model, IMAGES, layer="body", target=Similarity(reference), method=signed, batch_size=2, forward=forward
        ).maps
        full = reference.expand(4, 5)
        by_hand = explain(
            model,
            IMAGES,
            layer="body",
            target=lambda e, full=full: (e * full).sum(1) / e.norm(dim=1) / full.norm(dim=1),
            method=signed,
        ).maps
        torch.testing.assert_close(found, by_hand, rtol=1e-4, atol=1e-6)


def test_similarity_refuses_another_length() -> None:
    with pytest.raises(TargetError, match=r"the reference has shape \(7,\), the model's embeddings \(4, 3\)"):
        explain(Staged(), IMAGES, target=Similarity(torch.ones(7)))


class Detector(nn.Module):
    """Two fixed boxes per image, in the corners; each box's score is the mean brightness of its quarter."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 1, 1, bias=False)
        nn.init.constant_(self.body.weight, 1.0)

    def forward(self, images: Tensor) -> list[dict[str, Tensor]]:
        features = self.body(images)
        boxes = torch.tensor([[0.0, 0, 8, 8], [8, 8, 16, 16]])
        corners = torch.stack([features[:, 0, :8, :8].mean((1, 2)), features[:, 0, 8:, 8:].mean((1, 2))], 1)
        return [{"boxes": boxes, "labels": torch.tensor([1, 2]), "scores": row} for row in corners]


def test_box_scores_explain_the_chosen_boxes_alone() -> None:
    images = torch.rand(3, 3, 16, 16) + 0.1
    first, second = torch.tensor([[0.0, 0, 8, 8]]), torch.tensor([[8.0, 9, 16, 16]])
    target = BoxScores([first, second, torch.cat([first, second])])
    for batch_size in (None, 1, 2):
        maps = explain(Detector(), images, layer="body", target=target, method=signed, batch_size=batch_size).maps
        upper, lower = maps[:, :8, :8].amin((1, 2)) > 0, maps[:, 8:, 8:].amin((1, 2)) > 0
        assert upper.tolist() == [True, False, True] and lower.tolist() == [False, True, True]
        assert not maps[:, :8, 8:].any()


def test_box_scores_heed_labels_and_overlap() -> None:
    with torch.no_grad():
        output = Detector()(torch.ones(1, 3, 16, 16))
    box = torch.tensor([[0.0, 0, 8, 5]])  # covers 5 / 8 of the first
    assert float(BoxScores([box])(output)) == 3.0
    assert float(BoxScores([box], overlap=0.7)(output)) == 0.0
    assert float(BoxScores([box], [torch.tensor([1])])(output)) == 3.0
    assert float(BoxScores([box], [torch.tensor([2])])(output)) == 0.0
    assert float(BoxScores([torch.zeros(0, 4)])(output)) == 0.0


def test_box_scores_of_a_torchvision_detector() -> None:
    detection = pytest.importorskip("torchvision.models.detection")
    ops = pytest.importorskip("torchvision.ops")
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Conv2d(3, 8, 3, 4, 1), nn.ReLU(), nn.Conv2d(8, 16, 3, 4, 1), nn.ReLU())
    backbone.out_channels = 16
    anchors = detection.anchor_utils.AnchorGenerator(((16, 32),), ((1.0,),))
    model = detection.FasterRCNN(
        backbone,
        num_classes=3,
        rpn_anchor_generator=anchors,
        box_roi_pool=ops.MultiScaleRoIAlign(["0"], 3, 1),
        min_size=64,
        max_size=96,
        box_score_thresh=0.0,
    ).eval()
    images = torch.rand(2, 3, 64, 96)
    found = model(images)
    assert all(len(one["scores"]) for one in found)
    target = BoxScores([one["boxes"][:2].detach() for one in found], [one["labels"][:2] for one in found])
    for method in ("gradcam", "layercam", "scorecam", "saliency"):
        layer = {} if method == "saliency" else {"layer": "backbone"}
        e = explain(model, images, target=target, method=method, batch_size=1, **layer)
        assert e.maps.shape[0] == 2 and e.maps.isfinite().all() and bool(e.maps.flatten(1).amax(1).gt(0).any())
        assert len(e.output) == 2


def test_box_scores_refuse_what_is_no_detector() -> None:
    with pytest.raises(TargetError, match="needs a detector's list of boxes and scores, got Tensor"):
        explain(Staged(), IMAGES, target=BoxScores([torch.zeros(1, 4)] * 4))
    with pytest.raises(TargetError, match="boxes were given for 1 images, the detector answered for 2"):
        explain(Detector(), IMAGES[:2, :, :16, :16], layer="body", target=BoxScores([torch.zeros(1, 4)]))
