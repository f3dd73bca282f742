import math

import torch

from camwatch.pictures import sheets
from camwatch.pictures.colours import heatmaps, overlay
from camwatch.pictures.film_sheet import EDGE, FOOT, film_sheet
from camwatch.pictures.sheets import SheetImages
from tests.support.pictures import holds, rand, strip_of


def test_film_sheet_shows_each_moment_on_its_own_scale_and_the_mass_as_a_bar():
    maps = rand(1, 4, 4) + 0.1
    images = rand(1, 3, 96, 96)
    sheet = film_sheet(strip_of([maps, maps / 4]).frames, SheetImages(images))
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
    maps, images = rand(1, 4, 4) + 0.1, rand(1, 3, 96, 96)
    sheet = film_sheet(strip_of([maps, maps / 4]).frames, SheetImages(images), shared_scale=True)
    heat = heatmaps(torch.cat([maps, maps / 4]), (96, 96), maps.amax().expand(2))
    for picture in overlay(images.expand(2, -1, -1, -1), heat):
        assert holds(sheet, picture)


def test_film_sheet_difference_is_red_where_share_was_gained_and_blue_where_lost():
    first, last = torch.zeros(1, 2, 2), torch.zeros(1, 2, 2)
    first[0, 0, 0], last[0, 1, 1] = 5.0, 0.1
    images = torch.full((1, 3, 96, 96), 0.5)

    def difference(*maps):
        sheet = film_sheet(strip_of([*maps, maps[-1], maps[-1], maps[-1]]).frames, SheetImages(images))
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
    maps, images = rand(2, 4, 4), rand(2, 3, 96, 96)
    right = film_sheet(strip_of([maps], torch.tensor([True, True])).frames, SheetImages(images))
    wrong = film_sheet(strip_of([maps], torch.tensor([True, False])).frames, SheetImages(images))
    orange = (wrong == torch.tensor(sheets.WRONG)[:, None, None]).all(0)
    assert orange.any()
    assert not (right == torch.tensor(sheets.WRONG)[:, None, None]).all(0).any()
    assert holds(wrong, overlay(images, heatmaps(maps, (96, 96)))[1])


def test_film_sheet_survives_maps_of_nan_and_of_zeros():
    for value in (0.0, math.nan, math.inf):
        strip = strip_of([torch.full((2, 3, 3), value), torch.rand(2, 3, 3)])
        sheet = strip.render(SheetImages(torch.rand(2, 3, 20, 20)))
        assert sheet.dtype == torch.uint8
