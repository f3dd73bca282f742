"""Regions against hand computations, brute force and torchvision's own conversions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision import tv_tensors

from camwatch.errors import CamwatchWarning, RegionError
from camwatch.regions import Regions

SIZE = (6, 8)


def square() -> torch.Tensor:
    mask = torch.zeros(2, *SIZE, dtype=torch.bool)
    mask[0, 1:3, 2:5] = True
    mask[1, 4:, 6:] = True
    return mask


BOXES = [[[2, 1, 5, 3]], [[6, 4, 8, 6]]]


@pytest.mark.parametrize(
    "given_regions",
    [
        square(),
        square()[:, None],
        square().int(),
        square().float().numpy(),
        square().numpy().astype(np.uint8),
        list(square()),
        list(square().numpy()),
        torch.tensor(BOXES),
        torch.tensor(BOXES)[:, 0],
        np.array(BOXES, dtype=float),
        BOXES,
        [square()[0], BOXES[1]],
        tv_tensors.Mask(square()),
        [tv_tensors.Mask(square()[0]), tv_tensors.BoundingBoxes(BOXES[1], format="XYXY", canvas_size=SIZE)],
        [tv_tensors.BoundingBoxes([[2, 1, 3, 2]], format="XYWH", canvas_size=SIZE), BOXES[1]],
        [tv_tensors.BoundingBoxes([[3.5, 2, 3, 2]], format="CXCYWH", canvas_size=SIZE), BOXES[1]],
        tv_tensors.BoundingBoxes([[2, 1, 3, 2], [6, 4, 2, 2]], format="XYWH", canvas_size=SIZE),
        {"allowed": square()},
        [{"allowed": square()[0]}, {"allowed": BOXES[1]}],
        Regions(square()),
        [Regions(square())[0], square()[1]],
    ],
)
def test_coerce_reads_every_form_alike(given_regions: object) -> None:
    regions = Regions.coerce(given_regions, 2, SIZE)
    assert torch.equal(regions.allowed, square())
    assert regions.annotated.all() and regions.forbidden is None and regions.ignore is None


def test_coerce_unites_several_masks_and_boxes_of_an_image() -> None:
    united = square().any(0)
    regions = Regions.coerce([square(), [box for boxes in BOXES for box in boxes]], 2, SIZE)
    assert torch.equal(regions.allowed, torch.stack([united, united]))


def test_coerce_keeps_images_without_annotation_apart() -> None:
    regions = Regions.coerce([None, square()[0], {"allowed": None}], 3, SIZE)
    assert regions.annotated.tolist() == [False, True, False]
    for values in (regions.area(), regions.ceiling((3, 4))):
        assert values.isnan().tolist() == [True, False, True]
    assert regions.boxes().tolist() == [[0] * 4, [2, 1, 5, 3], [0] * 4]


def test_box_with_fractional_edges_is_rounded_outward() -> None:
    regions = Regions.coerce([[[1.2, 0.5, 2.0, 1.01]]], 1, SIZE)
    assert regions.boxes().tolist() == [[1, 0, 2, 2]]


@settings(deadline=None, max_examples=50)
@given(st.tuples(st.floats(0, 7), st.floats(0, 5)), st.floats(0.05, 8), st.floats(0.05, 6))
def test_box_covers_exactly_the_pixels_it_touches(corner: tuple[float, float], w: float, h: float) -> None:
    x1, y1 = corner
    x2, y2 = min(x1 + w, 8.0), min(y1 + h, 6.0)
    if max(x2, y2) <= 1:
        return  # read as fractions, which is an error of its own
    mask = Regions.coerce([[[x1, y1, x2, y2]]], 1, SIZE).allowed[0]
    for row in range(6):
        for column in range(8):
            touches = x1 < column + 1 and x2 > column and y1 < row + 1 and y2 > row
            assert mask[row, column] == touches


def test_rotated_boxes_are_filled_as_polygons() -> None:
    given_boxes = tv_tensors.BoundingBoxes([[4.0, 3.0, 4.0, 2.0, 90.0]], format="CXCYWHR", canvas_size=SIZE)
    regions = Regions.coerce([given_boxes], 1, SIZE)
    x1, y1, x2, y2 = regions.boxes()[0].tolist()
    assert (y2 - y1) > (x2 - x1)  # lying on its side, it now stands
    assert regions.allowed[0, 3, 4]


def test_box_beyond_the_border_is_cut_with_a_warning() -> None:
    with pytest.warns(CamwatchWarning, match=r"beyond 1 of 2 images.*image 1"):
        regions = Regions.coerce([[[0, 0, 4, 4]], [[4, 1, 10, 5]]], 2, SIZE)
    assert regions.boxes()[1].tolist() == [4, 1, 8, 5]
    Regions.coerce([[[4, 1, 8.9, 5]]], 1, SIZE)  # less than a pixel: rounding, not worth a warning


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (torch.zeros(5, 8), r"image 1: a region of shape \(5, 8\) does not fit an image of 6 x 8"),
        (torch.zeros(*SIZE), "image 1: the region is empty"),
        (torch.zeros(0, 4), "image 1: the region is empty"),
        ([[9, 1, 12, 3]], r"image 1: all of the box \(9, 1, 12, 3\) lies outside .* 8 pixels wide and 6 high"),
        ([[4, 1, 30, 3]], "image 1: most of the box"),
        ([[3, 1, 3, 4]], r"image 1: the box \(3, 1, 3, 4\) is no box.*x1 < x2"),
        ([[3, 1, 2, 4]], "is no box"),
        ([[math.nan, 1, 2, 4]], "is no box.*finite"),
        ([[0, 1, math.inf, 4]], "is no box.*finite"),
        ([[0.1, 0.2, 0.5, 0.9]], r"as if its coordinates were fractions; multiply .* \(8, 6\)"),
        (torch.tensor([[0, 1, 2, 3] * 2] * 6), r"0, 1, 2, 3, so .* ambiguous.*`mask > 0` or `mask == k`"),
        (torch.full(SIZE, 0.5), "ambiguous"),
        ({"alowed": square()[0]}, "unknown zone 'alowed'; did you mean 'allowed'"),
        ("dog", "expected a mask or boxes, got str"),
        (
            tv_tensors.BoundingBoxes([[1, 1, 3, 3]], format="XYXY", canvas_size=(60, 80)),
            r"belong to an image of \(60, 80\) pixels",
        ),
        ({"allowed": BOXES[0], "ignore": torch.ones(SIZE)}, "image 1: the region is empty.*ignore"),
    ],
)
def test_coerce_refuses_what_does_not_fit_and_names_the_image(entry: object, message: str) -> None:
    with pytest.raises(RegionError, match=message):
        Regions.coerce([square()[0], entry], 2, SIZE)


@pytest.mark.parametrize(
    ("given_regions", "message"),
    [
        (square(), r"one region per image, 3 in all, got Tensor of \(2, 6, 8\)"),
        ([None], "3 in all, got list of 1"),
        (7, "cannot be made of int"),
        (Regions(square()), r"2 regions of \(H, W\) = \(6, 8\) for 3 images"),
        ({"somewhere": square()}, "unknown zone 'somewhere'.*Valid: allowed, forbidden, ignore"),
    ],
)
def test_coerce_refuses_a_wrong_count_or_type(given_regions: object, message: str) -> None:
    with pytest.raises(RegionError, match=message):
        Regions.coerce(given_regions, 3, SIZE)


def test_zones_never_overlap() -> None:
    allowed, forbidden, ignore = torch.zeros(3, 1, *SIZE, dtype=torch.bool)
    allowed[0, :, :4], forbidden[0, :, 3:6], ignore[0, :2] = True, True, True
    regions = Regions.coerce({"allowed": allowed, "forbidden": forbidden, "ignore": ignore}, 1, SIZE)
    assert torch.equal(regions.allowed, allowed & ~forbidden & ~ignore)
    assert torch.equal(regions.forbidden, forbidden & ~ignore)
    assert regions.area().item() == pytest.approx(4 * 3 / (4 * 8))


def test_forbidden_zone_alone_allows_the_rest() -> None:
    regions = Regions.coerce({"forbidden": [BOXES[0], None]}, 2, SIZE)
    assert regions.annotated.tolist() == [True, False]
    assert torch.equal(regions.allowed[0], ~square()[0])


def test_share_of_a_map_leaves_the_ignore_zone_out_of_both_sums() -> None:
    ignore = torch.zeros(1, *SIZE, dtype=torch.bool)
    ignore[0, :, 5:] = True
    regions = Regions.coerce({"allowed": square()[:1], "ignore": ignore}, 1, SIZE)
    fine = torch.rand(1, *SIZE)
    by_hand = fine[regions.allowed].sum() / fine[~ignore].sum()
    share = (fine * regions.pooled(SIZE)).sum() / (fine * regions.considered(SIZE)).sum()
    assert torch.allclose(share, by_hand)
    uniform = torch.ones(1, 3, 4)
    share = (uniform * regions.pooled((3, 4))).sum() / (uniform * regions.considered((3, 4))).sum()
    assert torch.allclose(share, regions.area())


def test_pooled_is_the_mean_over_whole_cells_and_the_ceiling_its_maximum() -> None:
    regions = Regions.coerce(square(), 2, SIZE)
    blocks = square().float().reshape(2, 3, 2, 4, 2).mean((2, 4))
    assert torch.allclose(regions.pooled((3, 4)), blocks)
    assert torch.allclose(regions.ceiling((3, 4)), blocks.flatten(1).amax(1))
    assert regions.pooled((3, 4), "forbidden").sum() == 0
    with pytest.raises(RegionError, match="unknown zone 'inside'"):
        regions.pooled((3, 4), "inside")


def test_boxes_grow_by_the_margin_and_stay_on_the_image() -> None:
    regions = Regions.coerce(square(), 2, SIZE)
    assert regions.boxes(margin=(2, 0.5)).tolist() == [[1, 0, 6, 5], [5, 2, 8, 6]]


def test_indexing_selects_images() -> None:
    regions = Regions.coerce({"allowed": square(), "forbidden": [None, BOXES[0]]}, 2, SIZE)
    for index in (1, [1], torch.tensor([1]), torch.tensor([False, True]), slice(1, None)):
        part = regions[index]
        assert len(part) == 1 and torch.equal(part.allowed[0], square()[1])
        assert part.forbidden is not None and torch.equal(part.forbidden[0], square()[0])


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 6), st.integers(1, 8), st.data())
def test_shifted_is_the_roll_of_least_overlap(h: int, w: int, data: st.DataObject) -> None:
    y, x = data.draw(st.integers(0, 6 - h)), data.draw(st.integers(0, 8 - w))
    mask = torch.zeros(1, *SIZE, dtype=torch.bool)
    mask[0, y : y + h, x : x + w] = True
    moved = Regions(mask).shifted().allowed
    least = min(int((mask & mask.roll((dy, dx), (1, 2))).sum()) for dy in range(SIZE[0]) for dx in range(SIZE[1]))
    assert moved.sum() == mask.sum()
    assert int((moved & mask).sum()) == least


def test_shifted_prefers_to_stay_whole_and_avoids_the_other_zones() -> None:
    forbidden = torch.zeros(1, *SIZE, dtype=torch.bool)
    forbidden[0, 3:] = True
    regions = Regions.coerce({"allowed": square()[:1], "forbidden": forbidden}, 1, SIZE)
    placebo = regions.shifted()
    assert placebo.forbidden is None
    assert not (placebo.allowed & (forbidden | square()[:1])).any()
    x1, y1, x2, y2 = placebo.boxes()[0].tolist()
    assert (x2 - x1, y2 - y1) == (3, 2)
    assert not Regions.coerce([None, square()[0]], 2, SIZE).shifted().annotated[0]


def test_state_brings_the_same_regions_back() -> None:
    regions = Regions.coerce([{"allowed": BOXES[0], "ignore": BOXES[1]}, None], 2, SIZE)
    again = Regions.from_state(regions.state_dict())
    for name, value in regions.state_dict().items():
        other = getattr(again, name)
        assert (value is None and other is None) or torch.equal(value, other)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"allowed": torch.ones(6, 8)}, r"shape \(N, H, W\), got \(6, 8\)"),
        ({"allowed": square(), "ignore": square()[:1]}, "expected ignore masks of shape"),
        ({"allowed": square(), "annotated": torch.ones(3)}, "expected annotated of shape"),
        ({"allowed": torch.zeros(2, *SIZE)}, r"image 0: the region is empty.*and in 1 more.*None"),
    ],
)
def test_regions_refuse_shapes_that_differ(arguments: dict[str, torch.Tensor], message: str) -> None:
    with pytest.raises(RegionError, match=message):
        Regions(**arguments)
