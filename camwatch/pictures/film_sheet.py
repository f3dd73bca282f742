"""The film strip as a picture: how each image's map changed over a run."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from camwatch.pictures import text
from camwatch.pictures.colours import heatmaps, overlay, to_uint8
from camwatch.pictures.outlines import draw_regions
from camwatch.pictures.sheets import GAP, INK, PAPER, WRONG, SheetImages, paper, resize, titled

# At most so many images and moments; then sizes in pixels: of a cell's longer side, and of its text.
ROWS, COLUMNS, CELL, SMALL = 16, 12, 96, 11
# Around a picture, below it for the bar, and above a column for its head.
EDGE, FOOT, HEAD = 2, 13, 30


@dataclass(frozen=True, eq=False)
class Frame:
    """One column: the raw maps (n, h, w) of a snapshot, and which images were answered rightly (n,)."""

    index: int
    epoch: int
    global_step: int
    maps: Tensor
    correct: Tensor | None = None


def film_sheet(
    frames: Sequence[Frame],
    images: SheetImages,
    title: str = "film strip",
    colormap: str = "jet",
    shared_scale: bool = False,
) -> Tensor:
    """Draws one row per image: the image, its overlay at each moment, and the last map minus the first.

    The size of a raw map follows the size of the scores, which a new head changes by itself. So each overlay
    is scaled by its own maximum, which shows where, and the bar below it shows how much: the map's mass
    against the largest in its row. The difference is taken between shares of mass (each map divided by its
    sum), from minus to plus the largest change in its row: red was gained, blue was lost. Where the
    first map is blank, the first that is not stands in.

    Images answered wrongly at a moment have an orange frame and ✗.

    Args:
        frames: Of a :class:`FilmStrip`; at least one.
        images: That are shown; the first 16 are drawn.
        title: Stands above the strip.
        colormap: The name of any matplotlib colormap.
        shared_scale: Scale all maps of a row by the largest value in it instead: what fades looks faded.

    Returns:
        (3, H', W') uint8, cells of 96 px.
    """
    rows = len(frames[0].maps)
    rgb = images.rgb[:rows]
    height, width = rgb.shape[-2:]
    longest = max(height, width)
    size = max(32, round(CELL * height / longest)), max(32, round(CELL * width / longest))
    plain = resize(rgb, size)
    zones = None if images.regions is None else images.regions[:rows]

    maps = torch.stack([frame.maps for frame in frames])
    usable = maps.isfinite().all(-1).all(-1)
    maps = torch.where(usable[..., None, None], maps, 0.0)
    peak, mass = maps.amax((-2, -1)), maps.sum((-2, -1))
    peak = peak.amax(0).expand_as(peak) if shared_scale else peak
    heat = heatmaps(maps, size, peak)

    overlays = [draw_regions(overlay(plain, h, colormap=colormap), zones, 1) for h in heat]
    unchanged = draw_regions(to_uint8(plain), zones, 1)
    change = draw_regions(_difference(plain, maps), zones, 1)
    bars = mass / mass.amax(0).clamp(min=torch.finfo(mass.dtype).tiny)

    moments = zip(frames, overlays, bars, strict=True)
    strip = [_column(_moment(frame), pictures, bar, frame.correct) for frame, pictures, bar in moments]
    first, last = _column("image", unchanged), _column("last −\nfirst", change)
    gap = paper(first.shape[1], GAP)
    names = _names(rows, size[0], images)
    body = torch.cat([gap, names, first, gap, *strip, gap, last], 2)
    scale = "the row's largest value" if shared_scale else "its own maximum"
    lines = [
        title,
        f"overlay: scaled by {scale}; bar: mass of the raw map against the row's largest",
        "last − first: change of the shares of mass, red gained, blue lost; orange frame, ✗: wrong answer",
    ]
    return titled(torch.cat([body, paper(GAP, body.shape[2])], 1), lines, narrowest=600)


def _difference(plain: Tensor, maps: Tensor) -> Tensor:
    mass = maps.sum((-2, -1))
    # A blank map has no shares: the row's first and last one with any mass are compared.
    first = (mass > 0).int().argmax(0)
    last = len(maps) - 1 - (mass > 0).int().flip(0).argmax(0)
    rows = torch.arange(maps.shape[1])
    shares = (maps / mass[..., None, None]).nan_to_num(0.0)
    change = shares[last, rows] - shares[first, rows]
    largest = change.abs().amax((-2, -1))
    size = (int(plain.shape[-2]), int(plain.shape[-1]))
    gained, lost = (heatmaps(sign * change, size, largest) for sign in (1, -1))
    grey = plain.mean(1, keepdim=True).expand_as(plain)
    return overlay(grey, (1 + gained - lost) / 2, alpha=0.75, colormap="RdBu_r")


def _moment(frame: Frame) -> str:
    epoch = "start" if frame.epoch < 0 else f"epoch {frame.epoch}"
    return f"{epoch}\nstep {frame.global_step}"


def _column(head: str, pictures: Tensor, bars: Tensor | None = None, correct: Tensor | None = None) -> Tensor:
    n, _, height, width = pictures.shape
    wide = max(width, 64) + 3 * EDGE
    cells = torch.full((n, 3, height + 2 * EDGE + FOOT, wide), PAPER, dtype=torch.uint8)
    # Frame and mark stand outside the picture: shortcuts like to sit in corners.
    for i in [] if correct is None else (~correct).nonzero().flatten().tolist():
        cells[i, :, : height + 2 * EDGE, : width + 2 * EDGE] = torch.tensor(WRONG, dtype=torch.uint8)[:, None, None]
        cells[i] = text.text(cells[i], ["✗"], (width - 8, height + 2 * EDGE - 1), SMALL, WRONG)
    cells[..., EDGE : EDGE + height, EDGE : EDGE + width] = pictures
    for i, bar in enumerate([] if bars is None else bars.tolist()):
        y, longest = height + 2 * EDGE + 3, width - 12
        cells[i, :, y : y + 4, EDGE : EDGE + longest] = 215
        cells[i, :, y : y + 4, EDGE : EDGE + round(bar * longest)] = INK[0]
    line = text.text(paper(HEAD, wide), head.split("\n"), (EDGE, 0), SMALL, INK)
    return torch.cat([line, cells.movedim(1, 0).flatten(1, 2)], 1)


def _names(rows: int, height: int, images: SheetImages, width: int = 100) -> Tensor:
    cells, below = [paper(HEAD, width)], max(1, height // text.line_height(SMALL))
    for i in range(rows):
        name = images.class_of(i, images.labels).replace("_", " ")
        lines = [f"#{i}", *textwrap.wrap(name, 15, max_lines=below, placeholder="…")]
        cells.append(text.text(paper(height + 2 * EDGE + FOOT, width), lines, (0, 0), SMALL, INK))
    return torch.cat(cells, 1)
