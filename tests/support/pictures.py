"""Random images and maps, film strips, and finding a picture on a sheet."""

import torch

from camwatch.watch.film_strip import FilmStrip


def rand(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def holds(sheet, picture):
    """Whether a picture stands unchanged somewhere on a sheet."""
    height, width = picture.shape[1:]
    windows = sheet.unfold(1, height, 1).unfold(2, width, 1)
    corner = (windows[..., 0, 0] == picture[:, 0, 0, None, None]).all(0)
    corner &= (windows[..., -1, -1] == picture[:, -1, -1, None, None]).all(0)
    return any(torch.equal(windows[:, y, x], picture) for y, x in corner.nonzero().tolist())


def strip_of(snapshots, correct=None):
    strip = FilmStrip()
    for k, maps in enumerate(snapshots):
        strip.add(k - 1, 10 * k, maps, correct)
    return strip
