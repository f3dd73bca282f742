"""Pooling by area, against a fine rasterization and by its invariants."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from camwatch.errors import RegionError
from camwatch.regions.pooling import area_pool

side = st.integers(1, 9)


@settings(deadline=None, max_examples=40)
@given(side, side, side, side, st.integers(0, 99))
def test_area_pool_equals_a_fine_rasterization(height, width, h, w, seed):
    masks = torch.rand(2, height, width, generator=torch.Generator().manual_seed(seed))
    # Each pixel as h x w points: then every cell holds whole points, and their mean is the area's.
    fine = masks.repeat_interleave(h, 1).repeat_interleave(w, 2)
    expected = fine.reshape(2, h, height, w, width).mean((2, 4))
    torch.testing.assert_close(area_pool(masks, (h, w)), expected, atol=1e-6, rtol=1e-5)


@settings(deadline=None, max_examples=40)
@given(side, side, side, side, st.integers(0, 99))
def test_area_pool_keeps_the_area_and_the_bounds(height, width, h, w, seed):
    masks = torch.rand(3, height, width, generator=torch.Generator().manual_seed(seed)) > 0.5
    pooled = area_pool(masks, (h, w))
    assert pooled.dtype == torch.float32 and pooled.shape == (3, h, w)
    assert pooled.min() >= 0 and pooled.max() <= 1
    torch.testing.assert_close(pooled.mean((1, 2)), masks.float().mean((1, 2)), atol=1e-6, rtol=1e-5)


def test_area_pool_agrees_with_average_pooling_where_the_grid_divides():
    masks = torch.rand(2, 12, 20) > 0.6
    expected = torch.nn.functional.avg_pool2d(masks.float(), (3, 5))
    torch.testing.assert_close(area_pool(masks, (4, 4)), expected)


def test_area_pool_of_the_same_grid_is_the_mask_itself():
    masks = torch.rand(2, 5, 7)
    assert area_pool(masks, (5, 7)).equal(masks)


def test_area_pool_of_a_full_mask_is_one_everywhere():
    torch.testing.assert_close(area_pool(torch.ones(1, 224, 224), (7, 7)), torch.ones(1, 7, 7))
    torch.testing.assert_close(area_pool(torch.ones(1, 225, 223), (14, 15)), torch.ones(1, 14, 15))


def test_area_pool_is_the_same_under_autocast():
    masks = torch.rand(2, 50, 70)
    with torch.autocast("cpu", torch.bfloat16):
        pooled = area_pool(masks, (7, 7))
    assert pooled.equal(area_pool(masks, (7, 7)))


@pytest.mark.parametrize("shape, grid", [((4, 4), (2, 2)), ((1, 0, 4), (2, 2)), ((1, 4, 4), (0, 2))])
def test_area_pool_names_what_does_not_fit(shape, grid):
    with pytest.raises(RegionError, match=r"expected masks of shape \(N, H, W\) and a grid"):
        area_pool(torch.zeros(shape), grid)
