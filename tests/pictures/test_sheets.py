import io
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from camwatch.pictures import sheets
from camwatch.pictures.colours import heatmaps, overlay, to_uint8
from camwatch.pictures.encoding import to_png
from camwatch.pictures.film_sheet import film_sheet
from camwatch.pictures.sheets import SheetImages
from camwatch.regions import Regions
from tests.support.pictures import holds, rand, strip_of

NAMES = ["cat", "dog"]


def enlarged(image, factor):
    return image.repeat_interleave(factor, -2).repeat_interleave(factor, -1)


def test_panel_sheet_shows_small_images_with_their_pixels_unchanged():
    images = rand(3, 3, 64, 64)
    sheet = sheets.panel_sheet(SheetImages(images, None, torch.tensor([0, 1, 0]), NAMES, ["a", "b", "c"]))
    assert all(holds(sheet, to_uint8(enlarged(image, 3))) for image in images)


def test_panel_sheet_outlines_each_zone_in_its_colour_on_its_boundary():
    zones = torch.zeros(3, 1, 64, 64, dtype=torch.bool)
    for zone, x in zip(zones, (2, 22, 42), strict=True):
        zone[:, 10:30, x : x + 15] = True
    violet = torch.tensor([128, 64, 192])[:, None, None]
    sheet = sheets.panel_sheet(SheetImages((violet / 255).expand(1, 3, 64, 64), Regions(*zones)))
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
    sheet = sheets.panel_sheet(SheetImages(images, Regions(mask)))
    red = (sheet == torch.tensor([255, 0, 0])[:, None, None]).all(0)
    rows, columns = red.nonzero().T
    assert int(rows.max() - rows.min()) + 1 == 64
    assert int(columns.max() - columns.min()) + 1 == 256
    assert (sheet == torch.tensor([0, 255, 0])[:, None, None]).all(0).any()


def overlays(right, regions=None, **given):
    n = len(right)
    other = rand(n, 4, 4, seed=2)
    other[right] = math.nan
    described = {
        "predicted": (~right).long(),
        "probability": torch.full((n,), 0.5),
        "correct": right,
        "other_maps": other,
    }
    images = SheetImages(rand(n, 3, 64, 64), regions, torch.zeros(n, dtype=torch.int64), NAMES)
    return sheets.overlay_sheet(images, rand(n, 4, 4, seed=1), **(described | given)), other


def test_overlay_sheet_shows_the_map_and_beside_it_the_predicted_one_or_the_plain_image():
    sheet, other = overlays(torch.tensor([True, False]))
    images = torch.stack([enlarged(image, 3) for image in rand(2, 3, 64, 64)])
    labels = overlay(images, heatmaps(rand(2, 4, 4, seed=1), (192, 192)))
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
        sheets.overlay_sheet(SheetImages(torch.zeros(1, 3, 64, 64)), maps)
        for maps in (torch.zeros(1, 4, 4), torch.full((1, 4, 4), math.nan))
    ]
    assert torch.equal(*drawn)
    caption = drawn[0].float().mean(0)[-50:]
    visible = sheets.overlay_sheet(SheetImages(torch.zeros(1, 3, 64, 64)), torch.ones(1, 4, 4)).float().mean(0)[-50:]
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
    shown = SheetImages(images, None, classes, names)
    drawn = [
        sheets.panel_sheet(shown),
        sheets.overlay_sheet(shown, maps, other_maps=maps * math.nan),
        film_sheet(strip_of([maps, maps]).frames, shown),
    ]
    for sheet in drawn:
        assert sheet.dtype == torch.uint8
        assert sheet.shape[0] == 3
        with Image.open(io.BytesIO(to_png(sheet))) as read:
            assert read.size == (sheet.shape[2], sheet.shape[1])


def test_sheets_do_not_depend_on_the_default_dtype_of_the_process():
    images, maps = rand(2, 3, 32, 32), rand(2, 4, 4)
    shown = SheetImages(images, Regions.coerce([[(2, 2, 20, 20)], None], 2, (32, 32)))

    def draw():
        return [
            sheets.panel_sheet(shown),
            sheets.overlay_sheet(shown, maps),
            film_sheet(strip_of([maps, 2 * maps]).frames, shown),
        ]

    want = draw()
    torch.set_default_dtype(torch.bfloat16)
    try:
        got = draw()
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(torch.equal(*pair) for pair in zip(got, want, strict=True))
