"""Sheets of captioned, framed cells: the panel with its regions, the overlays of one snapshot, and any other.

Pure functions from plain data to one uint8 image (3, H, W); nothing is read or written and no model runs, so
they may run in another thread. The film strip has a module of its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from camwatch.pictures import text
from camwatch.pictures.colours import Colour, heatmaps, overlay, to_uint8
from camwatch.pictures.outlines import draw_regions, legend
from camwatch.regions.annotations import ZONES
from camwatch.regions.regions import Regions

INK, PAPER = (30, 30, 30), 255
# Okabe and Ito's blue and vermilion: told apart with any colour vision, and by the marks ✓ and ✗.
RIGHT, WRONG, UNKNOWN = (0, 114, 178), (213, 94, 0), (150, 150, 150)
FONT, TITLE, GAP, FRAME = 12, 14, 8, 4


@dataclass(frozen=True, eq=False)
class SheetImages:
    """The images of a sheet, with what is known of them whatever a model says.

    Attributes:
        rgb: (n, 3, H, W) in [0, 1].
        regions: Of these images. Allowed zones are outlined in green, forbidden ones in dashed red, ignored
            ones in dashed grey.
        labels: (n,) int.
        class_names: One per class; without them, classes go by number.
        ids: One per image; only the last part of a path is shown.
    """

    rgb: Tensor
    regions: Regions | None = None
    labels: Tensor | None = None
    class_names: Sequence[str] | None = None
    ids: Sequence[str] | None = None

    def class_of(self, i: int, classes: Tensor | None) -> str:
        """Returns the name of image i's class among some (n,); "" where there are none."""
        return "" if classes is None else class_name(int(classes[i]), self.class_names)

    def legend(self) -> list[str]:
        """Returns the line that says how the zones are outlined, in a list."""
        return legend(zone for zone in ZONES if getattr(self.regions, zone, None) is not None)


def panel_sheet(images: SheetImages, title: str = "panel") -> Tensor:
    """Draws the panel with the outlines of its regions, so that a wrong annotation is seen at once.

    Returns:
        (3, H', W') uint8.

    Example:
        >>> panel_sheet(SheetImages(torch.rand(5, 3, 64, 64))).shape
        torch.Size([3, 494, 608])
    """
    regions = images.regions
    pictures = draw_regions(to_uint8(cell_pictures(images.rgb)), regions, 2)
    cells = []
    for i, picture in enumerate(pictures):
        lines = [f"#{i} {images.class_of(i, images.labels)}", last_part(images.ids[i]) if images.ids else ""]
        if regions is not None and not regions.annotated[i]:
            lines[1] += " (no region)"
        cells.append(captioned(picture, lines, INK))
    return sheet(cells, [title, *images.legend()])


def overlay_sheet(
    images: SheetImages,
    maps: Tensor,
    predicted: Tensor | None = None,
    probability: Tensor | None = None,
    correct: Tensor | None = None,
    other_maps: Tensor | None = None,
    title: str = "",
    target: str = "label",
) -> Tensor:
    """Draws the overlays of one snapshot.

    Each map is scaled by its own maximum. The caption holds the image's number and label, then the predicted
    class behind its probability. Right answers have a blue frame and ✓, wrong ones an orange frame and ✗. An
    image keeps its place on the sheet from snapshot to snapshot.

    Args:
        images: Small ones are enlarged by whole factors with their pixels kept, large ones shrunk to at most 256 px.
        maps: (n, h, w) raw maps.
        predicted: (n,) int.
        probability: (n,) the predicted class's probability.
        correct: (n,) bool; None where right and wrong are not known.
        other_maps: (n, h, w) the predicted class's maps, of NaN where there is none. With them each image
            has a second picture, which is that overlay where there is one and the plain image elsewhere.
        title: Stands above the sheet.
        target: Whose map ``maps`` is, for the captions.

    Returns:
        (3, H', W') uint8.

    Example:
        >>> images = SheetImages(torch.rand(4, 3, 64, 64))
        >>> overlay_sheet(images, torch.rand(4, 7, 7), correct=torch.ones(4) > 0).shape
        torch.Size([3, 510, 520])
    """
    plain, regions = cell_pictures(images.rgb), images.regions
    first = overlaid(plain, maps, regions)
    seconds, others = to_uint8(plain), set[int]()
    if other_maps is not None and len(rows := other_maps.isfinite().flatten(1).all(1).nonzero().flatten()):
        others = set(rows.tolist())
        seconds[rows] = overlaid(plain[rows], other_maps[rows], None if regions is None else regions[rows])
    cells = []
    for i in range(len(maps)):
        right = None if correct is None else bool(correct[i])
        color = UNKNOWN if right is None else RIGHT if right else WRONG
        label = f"#{i} {images.class_of(i, images.labels)}"
        answer = {None: "", True: "✓ ", False: "✗ "}[right]
        answer += "" if probability is None else f"{float(probability[i]):.2f} "
        answer += images.class_of(i, predicted)
        blank = "" if bool(maps[i].isfinite().all() and maps[i].any()) else "blank map"
        if other_maps is None:
            cells.append(framed(captioned(first[i], [label, f"{answer} {blank}"], color), color))
            continue
        second = "map of the predicted class" if i in others else "plain image"
        left = captioned(first[i], [label, blank or f"map of the {target}"], INK)
        beside = captioned(seconds[i], [answer, second], color)
        cells.append(framed(torch.cat([left, paper(left.shape[1], FRAME), beside], 2), color))
    return sheet(cells, [title, *images.legend()])


def class_name(index: int, names: Sequence[str] | None) -> str:
    """Returns a class's name: by number where it has none.

    Example:
        >>> class_name(1, ["cat", "dog"]), class_name(2, None)
        ('dog', 'class 2')
    """
    return f"class {index}" if names is None or not 0 <= index < len(names) else str(names[index])


def last_part(name: str) -> str:
    """Returns the last part of a path, whatever its separator.

    Example:
        >>> last_part("photos/cats/1.jpg")
        '1.jpg'
    """
    return name.replace("\\", "/").rsplit("/", 1)[-1]


def resize(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Brings pictures (n, 3, H, W) to a size: whole factors keep the pixels as they are.

    Example:
        >>> resize(torch.tensor([[[[0.0, 1.0]]]]), (2, 4))[0, 0, 0].tolist()
        [0.0, 0.0, 1.0, 1.0]
    """
    images = images.to(torch.float32)
    if size[0] % images.shape[-2] == 0 and size[1] % images.shape[-1] == 0:
        return F.interpolate(images, size=size, mode="nearest")
    return F.interpolate(images, size=size, mode="bilinear", align_corners=False, antialias=True)


def cell_pictures(images: Tensor, target: int = 192, most: int = 256) -> Tensor:
    """Brings pictures (n, 3, H, W) to a cell's size: up by whole factors to about 192 px, or down to 256.

    Example:
        >>> [tuple(cell_pictures(torch.rand(1, 3, *size)).shape[2:]) for size in ((28, 28), (300, 600))]
        [(196, 196), (128, 256)]
    """
    height, width = images.shape[-2:]
    longest = max(height, width)
    scale = most / longest if longest > most else float(max(1, round(target / longest)))
    return resize(images, (max(1, round(height * scale)), max(1, round(width * scale))))


def overlaid(pictures: Tensor, maps: Tensor, regions: Regions | None) -> Tensor:
    """Lays raw maps (n, h, w), each scaled by its own maximum, over pictures (n, 3, H, W), and outlines regions."""
    size = (int(pictures.shape[-2]), int(pictures.shape[-1]))
    return draw_regions(overlay(pictures, heatmaps(maps, size)), regions, 2)


def paper(height: int, width: int) -> Tensor:
    """Returns an empty white picture (3, height, width)."""
    return torch.full((3, height, width), PAPER, dtype=torch.uint8)


def centred(picture: Tensor, height: int, width: int) -> Tensor:
    """Puts a picture in the middle of white paper that is no smaller."""
    down, right = height - picture.shape[1], width - picture.shape[2]
    return F.pad(picture, (right // 2, right - right // 2, down // 2, down - down // 2), value=PAPER)


def captioned(picture: Tensor, lines: Sequence[str], color: Colour, narrowest: int = 128) -> Tensor:
    """Writes lines below a picture, which is widened where it is narrow."""
    wide = max(picture.shape[2], narrowest)
    caption = paper(text.line_height(FONT) * len(lines) + 4, wide)
    return torch.cat([centred(picture, picture.shape[1], wide), text.text(caption, lines, (2, 2), FONT, color)], 1)


def framed(cell: Tensor, color: Colour) -> Tensor:
    """Puts a frame around a cell."""
    larger = F.pad(cell, [FRAME] * 4)
    border = torch.ones(larger.shape[1:], dtype=torch.bool)
    border[FRAME:-FRAME, FRAME:-FRAME] = False
    return torch.where(border, torch.tensor(color, dtype=torch.uint8)[:, None, None], larger)


def sheet(cells: Sequence[Tensor], lines: Sequence[str], narrowest: int = 520) -> Tensor:
    """Lays cells of one size out below a title: about 1.4 times as wide as high, the last row as full as possible."""
    height, width = cells[0].shape[1] + GAP, cells[0].shape[2] + GAP
    columns = max(1, min(len(cells), round(math.sqrt(1.4 * len(cells) * height / width))))
    rows = math.ceil(len(cells) / columns)
    columns = math.ceil(len(cells) / rows)
    body = paper(rows * height, columns * width + GAP)
    for i, cell in enumerate(cells):
        y, x = i // columns * height, i % columns * width + GAP
        body[:, y : y + cell.shape[1], x : x + cell.shape[2]] = cell
    return titled(body, lines, narrowest)


def titled(body: Tensor, lines: Sequence[str], narrowest: int = 520) -> Tensor:
    """Puts a title above a sheet, the first line large, the others small, and widens it to hold them.

    Example:
        >>> titled(paper(100, 300), ["epoch 3", "outlines: allowed green"]).shape
        torch.Size([3, 141, 520])
    """
    body = F.pad(body, (0, max(0, narrowest - body.shape[2])), value=PAPER)
    width = body.shape[2]
    first = text.text(paper(text.line_height(TITLE) + 4, width), lines[:1], (GAP, 3), TITLE, INK)
    small = paper(text.line_height(FONT) * (len(lines) - 1) + 4, width)
    return torch.cat([first, text.text(small, lines[1:], (GAP, 0), FONT, INK), body], 1)
