import io
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from camwatch.pictures import sheets
from camwatch.pictures.colours import heatmaps, overlay, to_uint8
from camwatch.pictures.encoding import to_png
from camwatch.pictures.film_sheet import COLUMNS, EDGE, FOOT, film_sheet
from camwatch.regions import Regions
from camwatch.watch.film_strip import FilmStrip, shown_columns

NAMES = ["cat", "dog"]


def random(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def holds(sheet, picture):
    """Whether a picture stands unchanged somewhere on a sheet."""
    height, width = picture.shape[1:]
    windows = sheet.unfold(1, height, 1).unfold(2, width, 1)
    corner = (windows[..., 0, 0] == picture[:, 0, 0, None, None]).all(0)
    corner &= (windows[..., -1, -1] == picture[:, -1, -1, None, None]).all(0)
    return any(torch.equal(windows[:, y, x], picture) for y, x in corner.nonzero().tolist())


def enlarged(image, factor):
    return image.repeat_interleave(factor, -2).repeat_interleave(factor, -1)


def test_panel_sheet_shows_small_images_with_their_pixels_unchanged():
    images = random(3, 3, 64, 64)
    sheet = sheets.panel_sheet(images, labels=torch.tensor([0, 1, 0]), class_names=NAMES, ids=["a", "b", "c"])
    assert all(holds(sheet, to_uint8(enlarged(image, 3))) for image in images)


def test_panel_sheet_outlines_each_zone_in_its_colour_on_its_boundary():
    zones = torch.zeros(3, 1, 64, 64, dtype=torch.bool)
    for zone, x in zip(zones, (2, 22, 42), strict=True):
        zone[:, 10:30, x : x + 15] = True
    violet = torch.tensor([128, 64, 192])[:, None, None]
    sheet = sheets.panel_sheet((violet / 255).expand(1, 3, 64, 64), Regions(*zones))
    ys, xs = (sheet == violet).all(0).nonzero().T
    y, x = int(ys.min()), int(xs.min())
    picture = sheet[:, y : y + 192, x : x + 192]
    for left, color in ((2, (0, 255, 0)), (22, (255, 0, 0)), (42, (190, 190, 190))):
        rows, columns = (picture == torch.tensor(color)[:, None, None]).all(0).nonzero().T
        assert (int(rows.min()), int(rows.max())) == (30, 89)
        assert (int(columns.min()), int(columns.max())) == (3 * left, 3 * (left + 15) - 1)
        assert (picture[:, 36:84, 3 * left + 6 : 3 * left + 39] == violet).all()


def test_large_images_are_shrunk_with_their_colours_and_small_regions_survive():
    images = torch.zeros(1, 3, 300, 1200)
    images[:, 0] = 1.0
    mask = torch.zeros(1, 300, 1200, dtype=torch.bool)
    mask[0, 150, 600] = True
    sheet = sheets.panel_sheet(images, Regions(mask))
    red = (sheet == torch.tensor([255, 0, 0])[:, None, None]).all(0)
    rows, columns = red.nonzero().T
    assert int(rows.max() - rows.min()) + 1 == 64
    assert int(columns.max() - columns.min()) + 1 == 256
    assert (sheet == torch.tensor([0, 255, 0])[:, None, None]).all(0).any()


def overlays(right, **given):
    n = len(right)
    other = random(n, 4, 4, seed=2)
    other[right] = math.nan
    described = {
        "labels": torch.zeros(n, dtype=torch.int64),
        "predicted": (~right).long(),
        "probability": torch.full((n,), 0.5),
        "correct": right,
        "class_names": NAMES,
        "other_maps": other,
    }
    return sheets.overlay_sheet(random(n, 3, 64, 64), random(n, 4, 4, seed=1), **(described | given)), other


def test_overlay_sheet_shows_the_map_and_beside_it_the_predicted_one_or_the_plain_image():
    sheet, other = overlays(torch.tensor([True, False]))
    images = torch.stack([enlarged(image, 3) for image in random(2, 3, 64, 64)])
    labels = overlay(images, heatmaps(random(2, 4, 4, seed=1), (192, 192)))
    predicted = overlay(images, heatmaps(other, (192, 192)))
    assert holds(sheet, labels[0])
    assert holds(sheet, labels[1])
    assert holds(sheet, predicted[1])
    assert holds(sheet, to_uint8(images[0]))
    assert not holds(sheet, to_uint8(images[1]))


@pytest.mark.parametrize("regions", [None, Regions(torch.ones(3, 64, 64, dtype=torch.bool))])
def test_overlay_sheet_keeps_each_image_in_its_place_whatever_is_right(regions):
    every = ([True] * 3, [False] * 3, [True, False, True])
    shapes = {overlays(torch.tensor(c), regions=regions)[0].shape for c in every}
    assert len(shapes) == 1


def test_overlay_sheet_frames_right_and_wrong_in_colours_of_different_lightness():
    def has(sheet, color):
        return bool((sheet == torch.tensor(color)[:, None, None]).all(0).any())

    right, wrong = overlays(torch.tensor([True]))[0], overlays(torch.tensor([False]))[0]
    assert has(right, sheets.RIGHT)
    assert not has(right, sheets.WRONG)
    assert has(wrong, sheets.WRONG)
    assert not has(wrong, sheets.RIGHT)
    grey = [0.299 * r + 0.587 * g + 0.114 * b for r, g, b in (sheets.RIGHT, sheets.WRONG)]
    assert abs(grey[0] - grey[1]) > 25


def test_overlay_sheet_captions_tell_answers_apart_without_colour():
    yes = torch.tensor([True])
    mark = [overlays(torch.tensor([c]), other_maps=None, predicted=torch.tensor([0]))[0] for c in (True, False)]
    grey = [(m.float().mean(0)[30:-12, 14:-14] < 128) for m in mark]
    assert not torch.equal(grey[0], grey[1])
    named = [overlays(yes, predicted=torch.tensor([p]), correct=None)[0] for p in (0, 1)]
    assert not torch.equal(*named)
    sure = [overlays(yes, probability=torch.tensor([p]), correct=None)[0] for p in (0.5, 0.9)]
    assert not torch.equal(*sure)


def test_overlay_sheet_says_when_a_map_is_blank():
    drawn = [
        sheets.overlay_sheet(torch.zeros(1, 3, 64, 64), maps)
        for maps in (torch.zeros(1, 4, 4), torch.full((1, 4, 4), math.nan))
    ]
    assert torch.equal(*drawn)
    caption = drawn[0].float().mean(0)[-50:]
    visible = sheets.overlay_sheet(torch.zeros(1, 3, 64, 64), torch.ones(1, 4, 4)).float().mean(0)[-50:]
    assert not torch.equal(caption[30:], visible[30:])


@settings(deadline=None, max_examples=25)
@given(
    n=st.integers(1, 5),
    size=st.tuples(st.integers(1, 400), st.integers(1, 400)),
    grid=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    named=st.booleans(),
)
def test_sheets_take_any_size(n, size, grid, named):
    images, maps, classes = torch.rand(n, 3, *size), torch.rand(n, *grid), torch.arange(n)
    names = ["🐈 " + "long name " * 9] if named else None
    drawn = [
        sheets.panel_sheet(images, labels=classes, class_names=names),
        sheets.overlay_sheet(images, maps, labels=classes, class_names=names, other_maps=maps * math.nan),
        film_sheet(strip_of([maps, maps]).frames, images, labels=classes, class_names=names),
    ]
    for sheet in drawn:
        assert sheet.dtype == torch.uint8
        assert sheet.shape[0] == 3
        with Image.open(io.BytesIO(to_png(sheet))) as read:
            assert read.size == (sheet.shape[2], sheet.shape[1])


def strip_of(snapshots, correct=None):
    strip = FilmStrip()
    for k, maps in enumerate(snapshots):
        strip.add(k - 1, 10 * k, maps, correct)
    return strip


@settings(deadline=None, max_examples=50)
@given(count=st.integers(1, 3000))
def test_columns_hold_first_and_last_evenly_spaced_and_grow_from_the_columns_before(count):
    columns = shown_columns(count)
    assert len(columns) <= COLUMNS
    assert columns[0] == 0
    assert columns[-1] == count - 1
    steps = np.diff(columns[:-1])
    assert len(set(steps)) <= 1
    assert len(columns) >= min(count, COLUMNS // 2)
    # What is shown now was kept before, or is new.
    assert set(columns) <= {*(shown_columns(count - 1) if count > 1 else ()), count - 1}


def test_film_strip_keeps_bounded_raw_copies():
    strip, maps = FilmStrip(), torch.rand(64, 200, 300)
    for k in range(50):
        strip.add(k, k, maps, torch.ones(64, dtype=torch.bool))
    assert len(strip.frames) <= COLUMNS
    assert all(frame.maps.shape == (16, 96, 96) for frame in strip.frames)
    assert all(frame.maps.untyped_storage().nbytes() == 16 * 96 * 96 * 4 for frame in strip.frames)
    small = torch.rand(3, 5, 7)
    strip = strip_of([small])
    small_before = small.clone()
    small += 1
    assert torch.equal(strip.frames[0].maps, small_before)


@pytest.mark.parametrize("stop", [1, 7, 12, 13, 30])
def test_film_strip_resumed_is_the_film_strip_uninterrupted(stop, tmp_path):
    maps = random(40, 4, 6, 5)
    correct = random(40, 4, seed=3) < 0.5
    whole, first = FilmStrip(), FilmStrip()
    for k in range(40):
        whole.add(k, 3 * k, maps[k], correct[k])
        if k < stop:
            first.add(k, 3 * k, maps[k], correct[k])
    torch.save(first.state_dict(), tmp_path / "state.pt")
    resumed = FilmStrip()
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for k in range(stop, 40):
        resumed.add(k, 3 * k, maps[k], correct[k])
    images = random(4, 3, 40, 30)
    assert [frame.epoch for frame in resumed.frames] == [frame.epoch for frame in whole.frames]
    assert torch.equal(resumed.render(images), whole.render(images))


def test_film_strip_frames_handed_out_do_not_change():
    strip = strip_of([torch.rand(2, 3, 3)] * 20)
    frames = strip.frames
    epochs = [frame.epoch for frame in frames]
    strip.add(99, 99, torch.rand(2, 3, 3))
    assert [frame.epoch for frame in frames] == epochs


def test_film_sheet_shows_each_moment_on_its_own_scale_and_the_mass_as_a_bar():
    maps = random(1, 4, 4) + 0.1
    images = random(1, 3, 96, 96)
    sheet = film_sheet(strip_of([maps, maps / 4]).frames, images)
    picture = overlay(images, heatmaps(maps, (96, 96)))[0]
    places = [
        x
        for x in range(sheet.shape[2] - 96)
        if any(torch.equal(sheet[:, y : y + 96, x : x + 96], picture) for y in range(60, 100))
    ]
    assert len(places) == 2
    foot = sheet[0, -8 - FOOT :]
    lengths = [int((foot[:, x : x + 96] == sheets.INK[0]).sum(1).max()) for x in places]
    assert lengths == [84, 21]


def test_film_sheet_on_a_shared_scale_lets_a_weaker_map_fade():
    maps, images = random(1, 4, 4) + 0.1, random(1, 3, 96, 96)
    sheet = film_sheet(strip_of([maps, maps / 4]).frames, images, shared_scale=True)
    heat = heatmaps(torch.cat([maps, maps / 4]), (96, 96), maps.amax().expand(2))
    for picture in overlay(images.expand(2, -1, -1, -1), heat):
        assert holds(sheet, picture)


def test_film_sheet_difference_is_red_where_share_was_gained_and_blue_where_lost():
    first, last = torch.zeros(1, 2, 2), torch.zeros(1, 2, 2)
    first[0, 0, 0], last[0, 1, 1] = 5.0, 0.1
    images = torch.full((1, 3, 96, 96), 0.5)

    def difference(*maps):
        sheet = film_sheet(strip_of([*maps, maps[-1], maps[-1], maps[-1]]).frames, images)
        return sheet[:, :, -96 - 2 * EDGE : -2 * EDGE]

    moved = difference(first, last)
    red, blue = moved[0].int() - moved[2], moved[2].int() - moved[0]
    ys, xs = (red > 100).nonzero().T
    assert ys.numel() and xs.min() >= 48
    top, left = (blue > 100).nonzero().T
    assert top.max() < ys.min() and left.max() < 48
    # The same map at another magnitude has the same shares; a blank first map is passed over.
    still = difference(first, 7 * first)
    assert (still[0].int() - still[2]).abs().max() < 10
    assert torch.equal(difference(torch.zeros(1, 2, 2), first, last), moved)


def test_film_sheet_marks_wrong_answers_outside_the_picture():
    maps, images = random(2, 4, 4), random(2, 3, 96, 96)
    right = film_sheet(strip_of([maps], torch.tensor([True, True])).frames, images)
    wrong = film_sheet(strip_of([maps], torch.tensor([True, False])).frames, images)
    orange = (wrong == torch.tensor(sheets.WRONG)[:, None, None]).all(0)
    assert orange.any()
    assert not (right == torch.tensor(sheets.WRONG)[:, None, None]).all(0).any()
    assert holds(wrong, overlay(images, heatmaps(maps, (96, 96)))[1])


def test_film_sheet_survives_maps_of_nan_and_of_zeros():
    for value in (0.0, math.nan, math.inf):
        strip = strip_of([torch.full((2, 3, 3), value), torch.rand(2, 3, 3)])
        sheet = strip.render(torch.rand(2, 3, 20, 20))
        assert sheet.dtype == torch.uint8


def test_sheets_do_not_depend_on_the_default_dtype_of_the_process():
    images, maps = random(2, 3, 32, 32), random(2, 4, 4)
    regions = Regions.coerce([[(2, 2, 20, 20)], None], 2, (32, 32))

    def draw():
        return [
            sheets.panel_sheet(images, regions),
            sheets.overlay_sheet(images, maps, regions),
            film_sheet(strip_of([maps, 2 * maps]).frames, images, regions),
        ]

    want = draw()
    torch.set_default_dtype(torch.bfloat16)
    try:
        got = draw()
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(torch.equal(*pair) for pair in zip(got, want, strict=True))
