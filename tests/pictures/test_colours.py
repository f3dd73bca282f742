import subprocess
import sys

import matplotlib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from camwatch.errors import InputError
from camwatch.pictures.colours import colorize, heatmaps, overlay, true_colours

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@settings(deadline=None, max_examples=50)
@given(
    h=st.integers(1, 9),
    w=st.integers(1, 9),
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    scale=st.sampled_from([1e-30, 1e-15, 1.0, 1e20]),
)
def test_heatmaps_equal_bilinear_resize_of_shares_of_the_peak(h, w, size, scale):
    maps = torch.rand(2, 3, h, w, generator=torch.Generator().manual_seed(h * 10 + w)) + 0.1
    got = heatmaps(maps * scale, size)
    peak = maps.amax((-2, -1), keepdim=True)
    want = torch.nn.functional.interpolate(maps / peak, size=size, mode="bilinear", align_corners=False)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    assert got.min() >= 0
    assert got.max() <= 1


def test_heatmaps_keep_a_floor_because_the_minimum_is_not_subtracted():
    torch.testing.assert_close(heatmaps(torch.full((1, 2, 2), 3.0), (5, 4)), torch.ones(1, 5, 4))
    assert heatmaps(torch.tensor([[[1.0, 2.0]]]), (4, 8)).min() == 0.5


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
def test_heatmaps_of_unusable_maps_are_zero_and_leave_the_others_alone(value):
    maps = torch.ones(2, 3, 3)
    maps[0, 1, 1] = value
    if value == 0.0:
        maps[0] = 0.0
    got = heatmaps(maps, (6, 6))
    assert (got[0] == 0).all()
    assert (got[1] == 1).all()


def test_heatmaps_share_a_given_peak():
    maps = torch.tensor([[[1.0]], [[4.0]]])
    got = heatmaps(maps, (2, 2), peak=torch.tensor([4.0, 4.0]))
    assert got[:, 0, 0].tolist() == [0.25, 1.0]


def test_heatmaps_do_not_depend_on_the_default_dtype():
    torch.set_default_dtype(torch.bfloat16)
    try:
        assert heatmaps(torch.rand(1, 4, 4, dtype=torch.float32), (8, 8)).dtype == torch.float32
        assert true_colours(torch.rand(1, 3, 4, 4), (MEAN, STD)).dtype == torch.float32
        assert colorize(torch.rand(1, 4, 4)).dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("name", ["jet", "viridis", "RdBu_r", "gray"])
def test_colorize_equals_matplotlib(name):
    values = torch.linspace(0, 1, 256).reshape(1, 16, 16)
    want = matplotlib.colormaps[name](values[0].numpy())[..., :3]
    got = colorize(values, name)[0].permute(1, 2, 0).numpy()
    np.testing.assert_allclose(got, want, atol=1.5 / 256)


def test_colorize_offers_near_names():
    with pytest.raises(InputError, match="unknown colormap 'virids'; did you mean 'viridis'"):
        colorize(torch.zeros(1, 2, 2), "virids")


def test_overlay_is_the_weighted_mean_of_image_and_colour():
    image, heat = torch.rand(2, 3, 5, 7), torch.rand(2, 5, 7)
    for alpha in (0.0, 0.3, 1.0):
        want = (1 - alpha) * image + alpha * colorize(heat, "viridis")
        got = overlay(image, heat, alpha, "viridis")
        assert got.dtype == torch.uint8
        assert (got.float() / 255 - want).abs().max() <= 0.5 / 255 + 1e-6


def test_overlay_refuses_an_alpha_outside_the_unit_interval():
    with pytest.raises(InputError, match=r"alpha must lie in \[0, 1\], got 2"):
        overlay(torch.zeros(1, 3, 2, 2), torch.zeros(1, 2, 2), alpha=2)


def test_true_colours_undo_a_normalization():
    images = torch.rand(2, 3, 4, 5)
    mean, std = (torch.tensor(v)[:, None, None] for v in (MEAN, STD))
    torch.testing.assert_close(true_colours((images - mean) / std, (MEAN, STD)), images)


def test_true_colours_stretch_each_image_between_its_extremes_without_a_normalization():
    images = torch.tensor([-2.0, 0.0, 2.0]).reshape(1, 3, 1, 1) * torch.tensor([1.0, 5.0]).reshape(2, 1, 1, 1)
    got = true_colours(images)
    assert got.flatten(1).tolist() == [[0.0, 0.5, 1.0]] * 2


def test_true_colours_pick_bands_and_repeat_a_single_one():
    images = torch.arange(4.0).reshape(1, 4, 1, 1) / 4
    assert true_colours(images, ([0], [1]), rgb=(3, 1, 0)).flatten().tolist() == [0.75, 0.25, 0.0]
    assert true_colours(images, ([0], [1]), rgb=(2,)).flatten().tolist() == [0.5] * 3
    assert true_colours(images[:, 1:2], ([0], [1])).flatten().tolist() == [0.25] * 3


def test_true_colours_take_uint8_constant_and_broken_images():
    dark = true_colours(torch.full((1, 3, 1, 1), 51, dtype=torch.uint8))
    assert dark.flatten().tolist() == pytest.approx([0.2] * 3)
    assert (true_colours(torch.full((1, 3, 2, 2), 0.5)) == 0.5).all()
    assert true_colours(torch.full((1, 3, 2, 2), float("nan"))).isfinite().all()


def test_true_colours_name_a_band_that_does_not_exist():
    with pytest.raises(InputError, match=r"rgb=\(0, 1, 2\) must name one or three of the images' 2 bands"):
        true_colours(torch.zeros(1, 2, 2, 2))
    with pytest.raises(InputError, match="denormalize: std has 3 values, the images have 1 bands"):
        true_colours(torch.zeros(1, 1, 2, 2), ([0.5], STD))


def test_import_loads_neither_matplotlib_nor_pillow_nor_torchvision():
    code = "import sys, {}; print([m for m in ('matplotlib', 'PIL', 'torchvision') if m in sys.modules])"
    loaded = [
        subprocess.run([sys.executable, "-c", code.format(m)], capture_output=True, text=True, check=True).stdout
        for m in ("torch", "camwatch.pictures.colours")
    ]
    assert loaded[0] == loaded[1]
