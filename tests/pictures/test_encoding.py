import io

import numpy as np
import pytest
import torch
from PIL import Image

from camwatch.pictures.colours import to_uint8
from camwatch.pictures.encoding import panel_pictures, small_jpeg, to_png
from tests.support.pictures import rand


def test_png_is_read_back_unchanged():
    image = torch.randint(0, 256, (3, 7, 9), dtype=torch.uint8)
    with Image.open(io.BytesIO(to_png(image))) as read:
        assert (torch.from_numpy(np.array(read)).permute(2, 0, 1) == image).all()


@pytest.mark.parametrize("size", [(40, 60), (300, 900)])
def test_panel_pictures_are_each_image_whole_and_small(size):
    images = rand(2, 3, *size)
    pairs = list(panel_pictures(images))
    assert len(pairs) == 2
    for image, (whole, small) in zip(images, pairs, strict=True):
        with Image.open(io.BytesIO(whole)) as read:
            assert (torch.from_numpy(np.array(read)).permute(2, 0, 1) == to_uint8(image)).all()
        with Image.open(io.BytesIO(small)) as read:
            scale = min(1, 256 / max(size))
            assert read.format == "JPEG" and read.size == (round(size[1] * scale), round(size[0] * scale))


def test_small_jpeg_keeps_the_proportions_and_the_colours():
    red = torch.zeros(3, 512, 100, dtype=torch.uint8)
    red[0] = 200
    with Image.open(io.BytesIO(small_jpeg(red, side=64, quality=95))) as read:
        assert read.size in ((12, 64), (13, 64))
        assert np.abs(np.array(read).astype(int) - (200, 0, 0)).max() < 10
