"""Sheets for the eye: the panel with its regions, and the overlays of one snapshot.

Pure functions from plain data to one uint8 image (3, H, W); nothing is read or written and no model runs, so
they may run in another thread. The film strip has a module of its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from camwatch.pictures import text
from camwatch.pictures.colours import Colour, heatmaps, overlay, to_uint8
from camwatch.pictures.outlines import draw_regions

if TYPE_CHECKING:
    from camwatch.regions.regions import Regions

INK, PAPER = (30, 30, 30), 255


# Okabe and Ito's blue and vermilion: told apart with any colour vision, and by the marks ✓ and ✗.
RIGHT, WRONG, UNKNOWN = (0, 114, 178), (213, 94, 0), (150, 150, 150)


FONT, TITLE, GAP, FRAME = 12, 14, 8, 4


def panel_sheet(
    rgb_images: Tensor,
    regions: Regions | None = None,
    labels: Tensor | None = None,
    class_names: Sequence[str] | None = None,
    ids: Sequence[str] | None = None,
    title: str = "panel",
) -> Tensor:
    """Draws the panel with the outlines of its regions, so that a wrong annotation is seen at once.

    Args:
        rgb_images: (n, 3, H, W) in [0, 1].
        regions: Of these images. Allowed zones are outlined in green, forbidden ones in dashed red, ignored
            ones in dashed grey.
        labels: (n,) int.
        class_names: One per class; without them, classes go by number.
        ids: One per image; only the last part of a path is shown.
        title: Stands above the sheet.

    Returns:
        (3, H', W') uint8.

    Example:
        >>> panel_sheet(torch.rand(5, 3, 64, 64)).shape
        torch.Size([3, 494, 608])
    """
    size = _cell_size(rgb_images)
    pictures = draw_regions(to_uint8(resize(rgb_images, size)), regions, 2)
    cells = []
    for i, picture in enumerate(pictures):
        lines = [f"#{i} {class_name(labels, i, class_names)}", _last_part(ids[i]) if ids else ""]
        if regions is not None and not regions.annotated[i]:
            lines[1] += " (no region)"
        cells.append(_captioned(picture, lines, INK))
    return _sheet(cells, f"{title}{_legend(regions)}")


def overlay_sheet(
    rgb_images: Tensor,
    maps: Tensor,
    regions: Regions | None = None,
    labels: Tensor | None = None,
    predicted: Tensor | None = None,
    probability: Tensor | None = None,
    correct: Tensor | None = None,
    class_names: Sequence[str] | None = None,
    other_maps: Tensor | None = None,
    title: str = "",
    target: str = "label",
    colormap: str = "jet",
) -> Tensor:
    """Draws the overlays of one snapshot.

    Each map is scaled by its own maximum. The caption holds the image's number and label, then the predicted
    class behind its probability. Right answers have a blue frame and ✓, wrong ones an orange frame and ✗. An
    image keeps its place on the sheet from snapshot to snapshot.

    Args:
        rgb_images: (n, 3, H, W) in [0, 1]. Small images are enlarged by whole factors with their pixels kept,
            large ones shrunk to at most 256 px.
        maps: (n, h, w) raw maps.
        regions: Of these images, outlined as in :func:`panel_sheet`.
        labels: (n,) int.
        predicted: (n,) int.
        probability: (n,) the predicted class's probability.
        correct: (n,) bool; None where right and wrong are not known.
        class_names: One per class.
        other_maps: (n, h, w) the predicted class's maps, of NaN where there is none. With them each image
            has a second picture, which is that overlay where there is one and the plain image elsewhere.
        title: Stands above the sheet.
        target: Whose map ``maps`` is, for the captions.
        colormap: The name of any matplotlib colormap.

    Returns:
        (3, H', W') uint8.

    Example:
        >>> overlay_sheet(torch.rand(4, 3, 64, 64), torch.rand(4, 7, 7), correct=torch.ones(4) > 0).shape
        torch.Size([3, 510, 520])
    """
    size = _cell_size(rgb_images)
    plain = resize(rgb_images, size)

    def overlays(raw: Tensor, rows: Tensor) -> Tensor:
        shown = overlay(plain[rows], heatmaps(raw[rows], size), colormap=colormap)
        return draw_regions(shown, None if regions is None else regions[rows], 2)

    first = overlays(maps, torch.arange(len(maps)))
    others = {}
    if other_maps is not None:
        rows = other_maps.isfinite().flatten(1).all(1).nonzero().flatten()
        others = dict(zip(rows.tolist(), overlays(other_maps, rows), strict=True)) if len(rows) else {}
    cells = []
    for i in range(len(maps)):
        right = None if correct is None else bool(correct[i])
        color = UNKNOWN if right is None else RIGHT if right else WRONG
        label = f"#{i} {class_name(labels, i, class_names)}"
        answer = {None: "", True: "✓ ", False: "✗ "}[right]
        answer += "" if probability is None else f"{float(probability[i]):.2f} "
        answer += class_name(predicted, i, class_names)
        blank = "" if bool(maps[i].isfinite().all() and maps[i].any()) else "blank map"
        if other_maps is None:
            cells.append(_framed(_captioned(first[i], [label, f"{answer} {blank}"], color), color))
            continue
        pair = [
            _captioned(first[i], [label, blank or f"map of the {target}"], INK),
            _captioned(
                others[i] if i in others else to_uint8(plain[i]),
                [answer, "map of the predicted class" if i in others else "plain image"],
                color,
            ),
        ]
        cells.append(_framed(torch.cat([pair[0], paper(pair[0].shape[1], FRAME), pair[1]], 2), color))
    return _sheet(cells, title + _legend(regions))


def class_name(classes: Tensor | None, i: int, class_names: Sequence[str] | None) -> str:
    """Returns the name of image i's class: by number where it has none, "" where no class is known.

    Example:
        >>> class_name(torch.tensor([1, 2]), 0, ["cat", "dog"]), class_name(torch.tensor([1, 2]), 1, None)
        ('dog', 'class 2')
    """
    if classes is None:
        return ""
    index = int(classes[i])
    known = class_names is not None and 0 <= index < len(class_names)
    return str(class_names[index]) if class_names is not None and known else f"class {index}"


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


def paper(height: int, width: int) -> Tensor:
    """Returns an empty white picture (3, height, width)."""
    return torch.full((3, height, width), PAPER, dtype=torch.uint8)


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


def _cell_size(images: Tensor, target: int = 192, most: int = 256) -> tuple[int, int]:
    height, width = images.shape[-2:]
    longest = max(height, width)
    scale = most / longest if longest > most else float(max(1, round(target / longest)))
    return max(1, round(height * scale)), max(1, round(width * scale))


def _captioned(picture: Tensor, lines: Sequence[str], color: Colour, narrowest: int = 128) -> Tensor:
    width = picture.shape[2]
    wide = max(width, narrowest)
    side = (wide - width) // 2
    padded = F.pad(picture, (side, wide - width - side), value=PAPER)
    caption = paper(text.line_height(FONT) * len(lines) + 4, wide)
    return torch.cat([padded, text.text(caption, lines, (2, 2), FONT, color)], 1)


def _framed(cell: Tensor, color: Colour) -> Tensor:
    framed = F.pad(cell, [FRAME] * 4)
    border = torch.ones(framed.shape[1:], dtype=torch.bool)
    border[FRAME:-FRAME, FRAME:-FRAME] = False
    return torch.where(border, torch.tensor(color, dtype=torch.uint8)[:, None, None], framed)


def _sheet(cells: Sequence[Tensor], title: str) -> Tensor:
    height, width = cells[0].shape[1] + GAP, cells[0].shape[2] + GAP
    # About 1.4 times as wide as high, and the last row as full as possible.
    columns = max(1, min(len(cells), round(math.sqrt(1.4 * len(cells) * height / width))))
    rows = math.ceil(len(cells) / columns)
    columns = math.ceil(len(cells) / rows)
    body = paper(rows * height, columns * width + GAP)
    for i, cell in enumerate(cells):
        y, x = i // columns * height, i % columns * width + GAP
        body[:, y : y + cell.shape[1], x : x + cell.shape[2]] = cell
    return titled(body, title.split("\n"))


def _legend(regions: Regions | None) -> str:
    looks = {"allowed": "green", "forbidden": "red dashes", "ignore": "grey dashes"}
    drawn = [f"{zone} {look}" for zone, look in looks.items() if getattr(regions, zone, None) is not None]
    return "\noutlines: " + ", ".join(drawn) if drawn else ""


def _last_part(name: str) -> str:
    return name.replace("\\", "/").rsplit("/", 1)[-1]
