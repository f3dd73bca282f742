"""The behavioural tests against models whose cue is known because it is written into them."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from camwatch.errors import InputError
from camwatch.panel.panel import Panel
from camwatch.probes.composing import area, fill_border, fill_mean, overlap
from camwatch.probes.hiding import _elsewhere, hide, hide_elsewhere
from camwatch.probes.pairing import pair
from camwatch.probes.swapping import _over, swap
from camwatch.probes.table import Asked, measure_probes
from camwatch.probes.transplanting import transplant
from camwatch.regions import Regions

CLASSES = 5


def planted(n=30, size=24, seed=0, same_place=False):
    """Images with an object (a 6 px square whose brightness is the class) and a class-coded corner pixel."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % CLASSES
    images = torch.zeros(n, 3, size, size)
    boxes = torch.zeros(n, 4, dtype=torch.int64)
    for i, label in enumerate(labels.tolist()):
        x, y = (8, 8) if same_place else torch.randint(6, size - 9, (2,), generator=generator).tolist()
        images[i, 0, y : y + 6, x : x + 6] = (label + 1) / CLASSES
        images[i, 1, :2, :2] = (label + 1) / CLASSES
        boxes[i] = torch.tensor([x, y, x + 6, y + 6])
    return images, labels, boxes


def nearest(values):
    """Scores of classes for a value read from the image: the brightness of each class is (class + 1) / K."""
    return -(values[:, None] - (torch.arange(CLASSES) + 1) / CLASSES).abs()


def reads_corner(images):
    return nearest(images[:, 1, 0, 0])


def reads_object(images):
    return nearest(images[:, 0].flatten(1).amax(1))


def test_hide_of_a_corner_reader_is_one_and_of_an_object_reader_is_chance():
    images, labels, boxes = planted()
    assert hide(reads_corner, images, labels, boxes).tolist() == [1.0] * 30
    kept = hide(reads_object, images, labels, boxes)
    assert torch.equal(kept, (labels == 0).float())  # nothing bright is left: always the darkest class


def test_hide_elsewhere_costs_an_object_reader_nothing():
    images, labels, boxes = planted()
    assert hide_elsewhere(reads_object, images, labels, boxes).tolist() == [1.0] * 30


@pytest.mark.parametrize("same_place", [True, False])
def test_swap_tells_whom_the_answer_follows(same_place):
    images, labels, boxes = planted(same_place=same_place)
    corner, thing = swap(reads_corner, images, labels, boxes), swap(reads_object, images, labels, boxes)
    assert corner.context.tolist() == [1.0] * 30 and corner.region.tolist() == [0.0] * 30
    assert thing.context.tolist() == [0.0] * 30 and thing.region.tolist() == [1.0] * 30


def test_swap_leaves_nothing_of_the_partners_object_behind():
    images, labels, boxes = planted()
    small = boxes.clone()
    small[::2, 2:] -= 3  # half of the pasted boxes cannot cover the object of their partner
    images[::2, 0] = 0
    for i in range(0, 30, 2):
        x1, y1, x2, y2 = small[i].tolist()
        images[i, 0, y1:y2, x1:x2] = (labels[i] + 1) / CLASSES
    assert swap(reads_object, images, labels, small, partners=4).context.tolist() == [0.0] * 30


def test_swap_counts_in_shares_when_there_are_several_partners():
    images, labels, boxes = planted()

    def mixed(x):  # believes the corner where its class is odd
        corner = (x[:, 1, 0, 0] * CLASSES).round().long() % 2 == 0
        return torch.where(corner[:, None], reads_corner(x), reads_object(x))

    found = swap(mixed, images, labels, boxes, partners=3)
    assert 0.2 < float(found.context.mean()) < 0.6
    assert torch.allclose(found.context + found.region, torch.ones(30))
    assert found.asked.tolist() == [3.0] * 30
    assert set((found.context * 3).round(decimals=4).tolist()) <= {0.0, 1.0, 2.0, 3.0}


def test_confusion_is_how_often_the_class_is_answered_where_it_is_on_neither_side():
    """A net that answers class 0 to everything: that follows the context as often as chance has it, and no more."""
    images, labels, boxes = planted()
    constant = swap(lambda x: torch.eye(CLASSES)[0].expand(len(x), -1), images, labels, boxes)
    followed = constant.context[labels != 0]
    torch.testing.assert_close(constant.confusion[labels != 0], followed)  # all of class 0, never of another
    assert 0 < float(followed.mean()) < 1 and constant.context[labels == 0].tolist() == [0.0] * 6
    follows = swap(reads_corner, images, labels, boxes)
    assert follows.confusion.tolist() == [0.0] * 30
    two = labels % 2
    assert swap(reads_corner, images, two, boxes).confusion.isnan().all()


def test_only_the_images_asked_for_give_their_regions():
    images, labels, boxes = planted()
    only, seen = torch.arange(30) % 3 == 0, []

    def spy(x):
        seen.append(len(x))
        return reads_corner(x)

    whole, some = swap(reads_corner, images, labels, boxes), swap(spy, images, labels, boxes, only)
    assert sum(seen) == 10 * 6
    assert torch.equal(some.context[only], whole.context[only]) and some.context[~only].isnan().all()


def test_tests_are_nan_where_they_cannot_be_asked():
    images, labels, boxes = planted(n=4)
    boxes[0] = 0  # no annotation
    boxes[1] = torch.tensor([0, 0, 24, 24])  # no context left
    for values in (
        hide(reads_corner, images, labels, boxes),
        hide_elsewhere(reads_corner, images, labels, boxes),
        swap(reads_corner, images, labels, boxes).region,
    ):
        assert values.isnan().tolist() == [True, True, False, False]
    alone = swap(reads_corner, images, torch.zeros(4, dtype=torch.int64), boxes)
    assert alone.region.isnan().all() and alone.context.isnan().all()
    nothing = transplant(reads_corner, images, torch.zeros(4, dtype=torch.int64))
    assert nothing.cell is None and nothing.box is None and nothing.rates.isnan().all()


def test_measure_dilates_by_a_cell_and_leaves_out_what_cannot_be_asked():
    images, labels, boxes = planted()
    regions = Regions.coerce([box[None] for box in boxes], n=30, size=(24, 24))
    seen = []

    def spy(x):
        seen.append(x)
        return reads_corner(x)

    asked = Asked(spy, Panel(images, labels, regions=regions), grid=(12, 12))
    found = measure_probes(asked)
    assert sorted(found) == ["hide", "hide_elsewhere", "swap_confusion", "swap_context", "swap_region", "swaps"]
    changed = (seen[0] != images).any(1)[:, None]  # first comes the mean colour, which occurs nowhere
    x1, y1, x2, y2 = (boxes[0] + torch.tensor([-2, -2, 2, 2])).tolist()
    expected = torch.zeros(24, 24, dtype=torch.bool)
    expected[y1:y2, x1:x2] = True
    assert torch.equal(changed[0, 0], expected)
    whole = Regions.coerce(torch.ones(30, 24, 24, dtype=torch.bool), n=30, size=(24, 24))
    assert measure_probes(Asked(reads_corner, Panel(images, labels, regions=whole), grid=(12, 12))) == {}


def test_transplant_names_the_planted_cell_and_none_for_an_object_reader():
    images, labels, boxes = planted(n=40)
    found = transplant(reads_corner, images, labels, grid=(8, 8))
    assert found.cell == (0, 0) and found.box == (0, 0, 3, 3)
    assert float(found.rates[0, 0]) == pytest.approx(1) and found.rates.flatten()[1:].tolist() == [0.0] * 48
    assert found.flipped.nansum() == 40
    clean = transplant(reads_object, images, labels, grid=(8, 8), boxes=boxes)
    assert clean.cell is None and float(clean.rates.nan_to_num(0).max()) == 0.0


def test_transplant_takes_an_object_at_a_fixed_place_for_a_cue_unless_boxes_are_given():
    images, labels, boxes = planted(n=40, same_place=True)
    assert transplant(reads_object, images, labels, grid=(6, 6)).cell == (2, 2)
    assert transplant(reads_object, images, labels, grid=(6, 6), boxes=boxes).cell is None


def test_transplant_names_no_place_for_what_is_everywhere():
    labels = torch.arange(24) % 2
    images = 0.2 + 0.4 * labels[:, None, None, None].float().expand(24, 3, 16, 16)

    def brightness(given):
        mean = given.mean((1, 2, 3))
        return torch.stack([0.4 - mean, mean - 0.4], dim=1)

    found = transplant(brightness, images, labels)
    assert found.cell is None and found.rates.flatten().tolist() == pytest.approx([1 / 16] * 49, rel=1e-3)


def test_transplant_names_a_cue_that_lies_across_the_grid_and_turns_no_answer():
    """A single cell holds a quarter of it; the net gives it less weight than the object."""
    images, labels, boxes = planted(n=40)
    images[:, 2, 1:5, 19:23] = ((labels + 1) / CLASSES)[:, None, None]

    def reads_both(given):
        return 0.3 * nearest(given[:, 2, 1:5, 19:23].mean((1, 2))) + nearest(given[:, 0].flatten(1).amax(1))

    found = transplant(reads_both, images, labels, boxes=boxes)
    x1, y1, x2, y2 = found.box
    assert found.cell is not None and x1 <= 19 and x2 >= 23 and y1 <= 1 and y2 >= 5
    assert found.flipped.nansum() == 0 and float(found.rates.nan_to_num().max()) == pytest.approx(0.3 / 1.3, rel=0.05)


def test_transplant_asks_only_pairs_that_are_answered_rightly():
    images, labels, _ = planted(n=40)
    images[:20, 1] = 0  # the corner reader calls these the darkest class
    found = transplant(reads_corner, images, labels)
    right = reads_corner(images).argmax(1) == labels
    assert torch.equal(~found.flipped.isnan(), right)


def test_tests_are_deterministic_and_leave_the_global_generator_alone():
    images, labels, boxes = planted()
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first = swap(reads_corner, images, labels, boxes), transplant(reads_corner, images, labels)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(4)
    again = swap(reads_corner, images, labels, boxes), transplant(reads_corner, images, labels)
    assert torch.equal(first[0].context, again[0].context) and torch.equal(first[1].rates, again[1].rates)


def test_batches_do_not_change_answers_and_images_stay_untouched():
    images, labels, boxes = planted()
    copy, sizes = images.clone(), []

    def counted(x):
        sizes.append(len(x))
        assert not torch.is_grad_enabled()
        return reads_object(x)

    assert torch.equal(hide(counted, images, labels, boxes, batch_size=7), hide(reads_object, images, labels, boxes))
    assert max(sizes) == 7 and torch.equal(images, copy)


def test_scores_that_are_not_finite_are_never_right():
    images, labels, boxes = planted()
    assert hide(lambda x: reads_corner(x) * math.nan, images, labels, boxes).tolist() == [0.0] * 30


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"images": torch.zeros(3, 24, 24)}, r"shape \(N, C, H, W\), got \(3, 24, 24\)"),
        ({"labels": torch.zeros(7)}, r"labels of shape \(30,\), one per image, got \(7,\)"),
        ({"boxes": torch.zeros(30, 3)}, r"boxes of shape \(30, 4\), got \(30, 3\)"),
        ({"predict": lambda x: x.mean((1, 2, 3))}, r"scores of shape \((\d+), classes\), got \(\1,\)"),
        ({"predict": lambda x: {"logits": x}}, r"scores of shape \(\d+, classes\), got dict"),
    ],
)
def test_bad_input_is_named(change, match):
    images, labels, boxes = planted()
    given = {"predict": reads_corner, "images": images, "labels": labels, "boxes": boxes} | change
    for test in (hide, swap, transplant):
        with pytest.raises(InputError, match=match):
            test(**given)


def test_transplant_refuses_a_grid_finer_than_the_image():
    images, labels, _ = planted()
    with pytest.raises(InputError, match=r"the image's \(24, 24\), got \(25, 8\)"):
        transplant(reads_corner, images, labels, grid=(25, 8))


@st.composite
def boxes_in_images(draw):
    height, width = draw(st.integers(2, 20)), draw(st.integers(2, 20))
    x1, y1 = draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1))
    return (height, width), (x1, y1, draw(st.integers(x1 + 1, width)), draw(st.integers(y1 + 1, height)))


@settings(deadline=None, max_examples=50)
@given(boxes_in_images())
def test_fills_know_nothing_of_what_they_cover(case):
    (height, width), (x1, y1, x2, y2) = case
    if (x2 - x1, y2 - y1) == (width, height):
        return
    image = torch.rand(3, height, width, generator=torch.Generator().manual_seed(0))
    other = image.clone()
    other[:, y1:y2, x1:x2] = 9.0
    for fill in (fill_mean, fill_border):
        filled = fill(image, (x1, y1, x2, y2))
        assert torch.equal(filled, fill(other, (x1, y1, x2, y2)))
        assert filled.min() >= image.min() - 1e-6 and filled.max() <= image.max() + 1e-6
        filled[:, y1:y2, x1:x2] = image[:, y1:y2, x1:x2]
        assert torch.equal(filled, image)


@settings(deadline=None, max_examples=50)
@given(boxes_in_images())
def test_the_box_elsewhere_has_the_area_and_never_touches(case):
    (height, width), box = case
    found = _elsewhere(box, (height, width))
    strips = (box[0] * height, (width - box[2]) * height, box[1] * width, (height - box[3]) * width)
    if found is None:
        assert all(strip < area(box) + max(height, width) for strip in strips)
        return
    assert overlap(found, box) == 0
    assert area(box) <= area(found) < area(box) + max(height, width)
    assert 0 <= found[0] < found[2] <= width and 0 <= found[1] < found[3] <= height


def test_the_box_elsewhere_keeps_its_shape_and_goes_to_the_far_corner():
    assert _elsewhere((0, 0, 4, 3), (10, 12)) == (8, 7, 12, 10)
    assert _elsewhere((5, 0, 12, 6), (10, 12)) == (0, 1, 5, 10)  # only a strip fits
    assert _elsewhere((4, 0, 12, 4), (6, 12)) is None


def test_a_moved_box_covers_its_partner_as_far_as_the_image_allows():
    assert _over((0, 0, 4, 4), (4, 4, 8, 8), (10, 10)) == (4, 4, 8, 8)
    assert _over((0, 0, 6, 6), (8, 8, 10, 10), (10, 10)) == (4, 4, 10, 10)


def test_partners_are_spread_and_of_least_cost():
    labels = torch.arange(24) % 4
    cost = torch.where(labels[:, None] == labels[None, :], math.inf, 0.0)
    pairs = pair(cost, 2, seed=0)
    assert len(set(pairs)) == 48 and all(labels[i] != labels[j] for i, j in pairs)
    assert torch.bincount(torch.tensor([j for _, j in pairs])).tolist() == [2] * 24
    cost = torch.tensor([[math.inf, 0.9, 0.1], [0.5, math.inf, 0.4], [0.0, 0.0, math.inf]])
    assert pair(cost, 1, seed=0)[0] == (0, 2)
