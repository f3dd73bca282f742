import random

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from camwatch.pictures import text


def test_text_tells_any_unicode_apart_and_stays_inside_the_image():
    blank = torch.full((3, 16, 96), 255, dtype=torch.uint8)
    lines = ("✓ 7", "✗ 7", "Kočka", "Кошка", "γάτα", "猫", "a" * 500, "")
    drawn = [text.text(blank, [line]) for line in lines]
    assert all(d.shape == blank.shape and d.dtype == torch.uint8 for d in drawn)
    assert len({d.numpy().tobytes() for d in drawn}) == len(drawn)
    assert (drawn[-1] == blank).all()
    assert (blank == 255).all()


@pytest.mark.parametrize("seed", range(20))
def test_text_is_what_pillow_draws(seed):
    draw = random.Random(seed)
    width, at, size = draw.randint(8, 200), (draw.randint(0, 6), draw.randint(0, 20)), draw.choice([11, 12, 14])
    image = torch.randint(0, 256, (3, 40, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    lines = ["".join(draw.choices("abgjqpÅÉ ✓✗#01|_Wf,猫", k=draw.randint(0, 30))) for _ in range(3)]
    canvas, font = Image.fromarray(image.permute(1, 2, 0).numpy()), text.font_of(size)
    for i, line in enumerate(lines):
        place = (at[0], at[1] + i * text.line_height(size))
        ImageDraw.Draw(canvas).text(place, text.fit(line, font, width - at[0]), fill=(200, 10, 30), font=font)
    drawn = text.text(image, lines, at, size, (200, 10, 30))
    assert torch.equal(drawn, torch.from_numpy(np.array(canvas)).permute(2, 0, 1))


def test_text_too_long_ends_in_an_ellipsis_within_the_width():
    font = text.font_of(12)
    fitted = text.fit("a very long class name indeed", font, 96)
    assert fitted.endswith("…")
    assert fitted.startswith("a very")
    assert font.getlength(fitted) <= 96
    assert text.fit("short", font, 96) == "short"


@pytest.mark.parametrize("width", [30, 64, 192])
def test_shortened_lines_keep_their_ends_and_fit(width):
    line = "index 17 · IMG_2024_03_17_0014.jpg"
    short = text.shorten(line, width)
    left, _, right = short.partition("…")
    assert len(short) < len(line) and line.startswith(left) and line.endswith(right) and right
    assert text.shorten("index 17", 192) == "index 17"
