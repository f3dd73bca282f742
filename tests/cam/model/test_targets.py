"""Targets by hand, and every message about a target that cannot be used."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from camwatch import explain
from camwatch.cam.model.targets import class_scores, predicted_classes, probabilities, score
from camwatch.errors import InputError, TargetError

SCORES = torch.tensor([[1.0, 5.0, 3.0], [4.0, 0.0, 2.0]])


def net(classes: int = 3) -> nn.Sequential:
    torch.manual_seed(0)
    body = [nn.Conv2d(3, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*body, nn.Linear(6, classes))


IMAGES = torch.rand(4, 3, 9, 9, generator=torch.Generator().manual_seed(1))


def signed(activations: Tensor, gradients: Tensor) -> Tensor:
    return (activations * gradients).sum(1)


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("predicted", [5.0, 4.0]),
        (2, [3.0, 2.0]),
        (torch.tensor([0, 2]), [1.0, 2.0]),
        (torch.tensor([0, 2], dtype=torch.uint8), [1.0, 2.0]),
        (torch.tensor([[1, 2], [2, 0]]), [[5.0, 3.0], [2.0, 4.0]]),
        (torch.tensor([[True, False, True], [True, True, True]]), [2.0, 2.0]),
        (torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]]), [2.0, 0.0]),
        (lambda output: output[:, 1] - output[:, 2], [2.0, -2.0]),
    ],
    ids=["predicted", "index", "labels", "uint8", "K per image", "multi-hot bool", "multi-hot float", "contrast"],
)
def test_score_of_each_kind_of_target(target: Any, expected: list[Any]) -> None:
    torch.testing.assert_close(score(SCORES, target), torch.tensor(expected))


def test_score_of_one_logit_has_two_sides() -> None:
    logits = torch.tensor([2.0, -3.0])
    for output in (logits, logits[:, None]):
        assert score(output, torch.tensor([1, 0])).tolist() == [2.0, 3.0]
        assert predicted_classes(output).tolist() == [1, 0]
        torch.testing.assert_close(probabilities(output)[:, 1], logits.sigmoid())


def test_score_of_segmentation_sums_the_pixels_of_the_class() -> None:
    scores = torch.zeros(1, 2, 2, 2)
    scores[0, 0] = torch.tensor([[3.0, 1.0], [0.0, 0.0]])
    scores[0, 1] = torch.tensor([[1.0, 2.0], [4.0, 5.0]])
    assert predicted_classes(scores).tolist() == [1]
    assert score(scores, 1).tolist() == [11.0]
    assert score(scores, 0).tolist() == [3.0]
    assert score(scores - torch.tensor([9.0, 0.0]).view(1, 2, 1, 1), 0).tolist() == [4.0 - 36.0]
    assert probabilities(scores).shape == (1, 2)


@dataclasses.dataclass
class Output:
    hidden: Tensor
    logits: Tensor | None


@pytest.mark.parametrize(
    "output",
    [
        {"loss": torch.tensor(1.0), "logits": SCORES, "hidden": torch.zeros(2, 9)},
        {"ids": torch.tensor([1, 2]), "any": SCORES},
        (SCORES, torch.zeros(2, 9)),
        [SCORES],
        Output(torch.zeros(2, 9), SCORES),
    ],
    ids=["keyed", "first floating", "tuple", "list", "dataclass"],
)
def test_class_scores_are_found_in_structures(output: Any) -> None:
    assert class_scores(output) is SCORES


def test_class_scores_of_huggingface_output() -> None:
    outputs = pytest.importorskip("transformers.modeling_outputs")
    output = outputs.ImageClassifierOutput(loss=torch.tensor(0.5), logits=SCORES)
    assert class_scores(output) is SCORES


def test_explain_k_targets_equal_one_by_one() -> None:
    target = torch.tensor([[0, 2], [1, 0], [2, 1], [1, 2]])
    together = explain(net(), IMAGES, target=target, method=signed)
    assert together.maps.shape[:2] == (4, 2)
    for k in range(2):
        single = explain(net(), IMAGES, target=target[:, k], method=signed)
        torch.testing.assert_close(together.maps[:, k], single.maps)


def test_explain_multi_hot_is_the_mean_of_its_classes() -> None:
    both = explain(net(), IMAGES, target=torch.tensor([[True, False, True]] * 4), method=signed).maps
    one, two = (explain(net(), IMAGES, target=k, method=signed).maps for k in (0, 2))
    torch.testing.assert_close(both, (one + two) / 2)


def test_explain_contrast_is_the_difference_of_two_maps() -> None:
    contrast = explain(net(), IMAGES, target=lambda o: o[:, 0] - o[:, 2], method=signed).maps
    one, two = (explain(net(), IMAGES, target=k, method=signed).maps for k in (0, 2))
    torch.testing.assert_close(contrast, one - two)


def test_explain_sides_of_one_logit_are_opposite() -> None:
    against, for_it = (explain(net(1), IMAGES, target=k, method=signed).maps for k in (0, 1))
    torch.testing.assert_close(against, -for_it)


def test_explain_embedding_by_similarity_to_a_reference() -> None:
    reference = torch.randn(3)
    similar = explain(net(), IMAGES, target=lambda e: torch.cosine_similarity(e, reference[None]), method=signed)
    assert similar.maps.shape == (4, 7, 7) and not similar.blank().any()


class TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.age, self.sex = net()[:4], nn.Linear(6, 9), nn.Linear(6, 2)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        features = self.body(images)
        return {"age": self.age(features), "sex": self.sex(features)}


def test_explain_one_head_of_several() -> None:
    model = TwoHeads()
    found = explain(model, IMAGES, target=lambda o: o["sex"][:, 1], method=signed)
    plain = explain(model, IMAGES, target=1, method=signed, forward=lambda m, x: m(x)["sex"])
    torch.testing.assert_close(found.maps, plain.maps)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("predictd", r"unknown target 'predictd': valid are 'predicted', a class index"),
        (3, r"target 3 is out of range: the model scores 3 classes, 0 to 2"),
        (-1, r"target -1 is out of range"),
        (torch.tensor([0, 1, 2, 7]), r"target 7 is out of range"),
        (torch.tensor([0, 1]), r"shape \(2,\) for 4 images: .* N = 4"),
        (torch.zeros(4, 2, 2), r"shape \(4, 2, 2\) for 4 images"),
        (torch.tensor([0.0, 1.0, 2.0, 0.0]), r"one class per image must be integers, got torch.float32"),
        (torch.tensor([[0, 1, 0]] * 4), r"integer matrix of 0 and 1 with shape \(4, 3\) is ambiguous"),
        (torch.ones(4, 2), r"one column per class: got 2 columns, the model scores 3 classes"),
        (torch.zeros(4, 3, dtype=torch.bool), r"row 0 of the multi-hot target has no positive class"),
        (True, r"the target is bool"),
        ([0, 1, 2, 0], r"the target is list"),
        (lambda output: None, r"callable must return scores \(N,\) or \(N, K\), got NoneType"),
        (lambda output: output[:, :, None], r"got \(4, 3, 1\)"),
    ],
)
def test_explain_refuses_target(target: Any, message: str) -> None:
    with pytest.raises(TargetError, match=message):
        explain(net(), IMAGES, target=target)


@pytest.mark.parametrize(
    ("forward", "message"),
    [
        (lambda m, x: [str(m(x).shape)], "output is list without a floating tensor"),
        (lambda m, x: [{"boxes": m(x)}], "output is list without"),
        (lambda m, x: {"classes": m(x).argmax(1)}, "output is dict without"),
        (lambda m, x: m(x).argmax(1), "output is a torch.int64 tensor without"),
    ],
)
def test_explain_refuses_output_without_scores(forward: Any, message: str) -> None:
    with pytest.raises(TargetError, match=message):
        explain(net(), IMAGES, layer="1", forward=forward)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(3, 9), r"floating tensor \(N, C, H, W\), N >= 1, .* got torch.float32 of shape \(3, 9\)"),
        (torch.zeros(2, 3, 9, 9, dtype=torch.uint8), "got torch.uint8"),
        (torch.zeros(0, 3, 9, 9), r"shape \(0, 3, 9, 9\)"),
        ([1, 2], "got list"),
    ],
)
def test_explain_refuses_images(images: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        explain(net(), images)


def test_explain_refuses_unknown_method_and_batch_size() -> None:
    with pytest.raises(InputError, match=r"unknown method 'gradcm'; did you mean 'gradcam'"):
        explain(net(), IMAGES, method="gradcm")
    with pytest.raises(InputError, match="batch_size must be 1 or more, got 0"):
        explain(net(), IMAGES, batch_size=0)
