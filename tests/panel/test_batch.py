"""Taking batches of every usual shape apart."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torchvision import tv_tensors

from camwatch.errors import PanelError
from camwatch.panel.batch import split_sample
from camwatch.regions import Regions
from tests.support.panels import BOXES, IMAGES, MASKS, SIZE

DETECTION = [{"boxes": boxes, "labels": torch.full((len(boxes),), i)} for i, boxes in enumerate(BOXES)]


@pytest.mark.parametrize(
    ("batch", "with_regions"),
    [
        ((IMAGES, torch.tensor([0, 1])), False),
        ([IMAGES, [0, 1]], False),
        ((IMAGES, np.array([0, 1])), False),
        ((IMAGES, torch.tensor([[0], [1]])), False),
        ((IMAGES, torch.tensor([0.0, 1.0])), False),
        ((IMAGES, torch.tensor([[1.0, 0, 0], [0, 1, 0]])), False),
        ((IMAGES, torch.tensor([[1.0, 0, 0, 0], [0, 1, 0, 0]])), False),
        ((IMAGES, torch.tensor([0, 1]), torch.tensor([17, 4])), False),
        ((IMAGES, torch.tensor([0, 1]), ["a.jpg", "b.jpg"]), False),
        ((IMAGES.unbind(), (0, 1)), False),
        ((IMAGES, torch.tensor([0, 1]), MASKS), True),
        ((IMAGES, torch.tensor([0, 1]), MASKS[:, None].float()), True),
        ((IMAGES, torch.tensor([0, 1]), BOXES), True),
        ((IMAGES, torch.tensor([0, 1]), torch.stack([boxes[:1] for boxes in BOXES])), True),
        ((IMAGES, torch.tensor([0, 1]), torch.stack([boxes[0] for boxes in BOXES])), True),
        ((IMAGES, torch.tensor([0, 1]), {"allowed": MASKS}), True),
        ((IMAGES, torch.tensor([0, 1]), [{"allowed": mask} for mask in MASKS]), True),
        ((IMAGES, MASKS, torch.tensor([0, 1])), True),
        ((IMAGES, [torch.tensor([0, 1]), MASKS]), True),
        ((tv_tensors.Image(IMAGES), tv_tensors.Mask(MASKS), torch.tensor([0, 1])), True),
        ({"image": IMAGES, "label": torch.tensor([0, 1])}, False),
        ({"pixel_values": IMAGES, "labels": torch.tensor([0, 1]), "index": torch.tensor([5, 6])}, False),
        ({"x": IMAGES, "y": torch.tensor([0, 1]), "mask": MASKS}, True),
        ({"img": IMAGES, "target": torch.tensor([0, 1]), "bboxes": BOXES}, True),
        ({"images": IMAGES, "targets": {"label": torch.tensor([0, 1]), "masks": MASKS}}, True),
        ((IMAGES.unbind(), DETECTION), True),
        ((IMAGES.unbind(), [{**target, "masks": MASKS[:1]} for target in DETECTION]), True),
    ],
)
def test_split_sample_finds_images_labels_and_regions(batch: Any, with_regions: bool) -> None:
    images, labels, regions = split_sample(batch)
    assert torch.equal(images, IMAGES) and type(images) is torch.Tensor
    assert labels is not None and labels.dtype == torch.int64 and labels.tolist() == [0, 1]
    if with_regions:
        assert torch.equal(Regions.coerce(regions, 2, SIZE).allowed, MASKS)
    else:
        assert regions is None


def test_split_sample_of_a_segmentation_pair_has_regions_and_no_labels() -> None:
    _, labels, regions = split_sample((IMAGES, MASKS))
    assert labels is None and torch.equal(regions, MASKS)


def test_split_sample_gives_no_label_to_images_with_objects_of_several_classes() -> None:
    mixed = [DETECTION[0], {"boxes": BOXES[1], "labels": torch.tensor([0, 1])}]
    assert split_sample((list(IMAGES), mixed))[1] is None
    assert split_sample((list(IMAGES), [{"image_id": 1}, DETECTION[1]]))[2][0] is None


def test_split_sample_uses_unpack_first() -> None:
    _, labels, regions = split_sample("odd", unpack=lambda batch: (IMAGES, [0, 1], MASKS))
    assert labels.tolist() == [0, 1] and regions is MASKS


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"picture": IMAGES, "y": [1, 2]}, r"dict with \{picture: Tensor \(2, 3, 6, 8\) float32, y: list.*keys image"),
        ((torch.rand(2, 12), torch.tensor([0, 1])), r"tuple of 2 \(Tensor \(2, 12\) float32, Tensor \(2,\) int64\)"),
        ("text", "found in a batch, str; .*unpack=callable"),
        ([], "list of 0"),
        (([IMAGES[0], IMAGES[1, :, :4]], [0, 1]), r"one size, got \(C, H, W\) of \[\(3, 4, 8\), \(3, 6, 8\)\]"),
    ],
)
def test_split_sample_says_what_arrived(batch: Any, message: str) -> None:
    with pytest.raises(PanelError, match=message):
        split_sample(batch)


def test_split_sample_names_unpack_when_that_is_wrong() -> None:
    with pytest.raises(PanelError, match="what unpack returned, NoneType"):
        split_sample((IMAGES, [0, 1]), unpack=lambda batch: None)


def beside(n: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Images, labels and masks of n images, the masks all alike."""
    return torch.rand(n, 3, *SIZE), torch.arange(n), MASKS[:1].expand(n, -1, -1)


LABELS = {
    "tensor": lambda labels: labels,
    "column": lambda labels: labels[:, None],
    "array": lambda labels: labels.numpy(),
    "list": lambda labels: labels.tolist(),
    "tuple": lambda labels: tuple(labels.tolist()),
    "scalars": list,
}
REGIONS = {
    "masks": lambda masks: masks,
    "array": lambda masks: masks.numpy(),
    "some": lambda masks: [*masks[:-1], None],
    "tuple": tuple,
    "boxes": lambda masks: [BOXES[0]] * len(masks),
    "numbers": lambda masks: [[[2, 1, 5, 3]]] * len(masks),
    "zones": lambda masks: {"allowed": masks},
    "zones of each": lambda masks: [{"allowed": mask} for mask in masks],
}


@pytest.mark.parametrize("regions", REGIONS)
@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("n", [2, 3, 4, 5])
def test_split_sample_finds_labels_and_regions_that_stand_beside_each_other(n: int, labels: str, regions: str) -> None:
    images, classes, masks = beside(n)
    pair = [LABELS[labels](classes), REGIONS[regions](masks)]
    for batch in ((images, *pair), (images, pair), (images, tuple(pair)), [images, [*pair, classes + 7]]):
        _, found, known = split_sample(batch)
        assert found is not None and found.tolist() == classes.tolist()
        made = Regions.coerce(known, n, SIZE)
        assert torch.equal(made.allowed[made.annotated], masks[made.annotated]) and int(made.annotated.sum()) >= n - 1


@pytest.mark.parametrize(
    "other", [None, [], "a.jpg", ["a.jpg"] * 4, [["a.jpg"]] * 4, np.array(["a.jpg"] * 4), 7, object()]
)
def test_split_sample_passes_over_what_is_neither_label_nor_region(other: Any) -> None:
    images, classes, _ = beside(4)
    for batch in ((images, classes, other), (images, other, classes), (images, [classes, other])):
        _, labels, regions = split_sample(batch)
        assert labels.tolist() == [0, 1, 2, 3] and regions is None


def test_split_sample_takes_four_boxes_of_four_images_for_boxes() -> None:
    images, _, masks = beside(4)
    boxes = [torch.tensor([2, 1, 5, 3])] * 4
    for given in (boxes, [box.tolist() for box in boxes], [*boxes[:3], None]):
        _, labels, regions = split_sample((images, given))
        made = Regions.coerce(regions, 4, SIZE)
        assert labels is None and torch.equal(made.allowed[:3], masks[:3])


def test_split_sample_takes_targets_without_objects_and_with_names() -> None:
    named = [{"boxes": BOXES[0], "labels": ["cat"]}, None]
    _, labels, regions = split_sample((list(IMAGES), named))
    assert labels is None and regions[0] is BOXES[0] and regions[1] is None
