"""The contact sheet of the worst images."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from camwatch.auditing.examine import Examined
from camwatch.auditing.verdicts import RIGHT, VERDICTS, WRONG, WRONG_REASON
from camwatch.files import write_whole
from camwatch.pictures import colours, text
from camwatch.pictures.encoding import to_png
from camwatch.pictures.outlines import draw_regions
from camwatch.pictures.sheets import paper, resize, titled
from camwatch.regions.regions import Regions

Picture = tuple[Tensor, Tensor, Regions | None]  # image (C, H, W), map (h, w), its region

# Okabe and Ito's colours, told apart with any colour vision.
INKS = {WRONG_REASON: (160, 60, 120), WRONG: (213, 94, 0), RIGHT: (0, 114, 178)}
INK_NAMES = {WRONG_REASON: "purple", WRONG: "orange", RIGHT: "blue"}
GREY, FONT, FRAME, GAP = (120, 120, 120), 12, 4, 8
SMALLEST, LARGEST = 192, 256  # of a picture's longer side, in pixels


def pick(examined: Examined, wanted: Sequence[int]) -> dict[int, Picture]:
    """Returns what is needed to draw those images of a batch that are wanted, by index."""
    if examined.images is None or examined.maps is None:
        return {}
    return {
        index: (
            examined.images[k].detach().float().cpu(),
            examined.maps[k],
            None if examined.regions is None else examined.regions[k],
        )
        for k, index in enumerate(examined.indices)
        if index in wanted
    }


def draw(
    path: Path,
    rows: Sequence[Mapping[str, Any]],
    pictures: Mapping[int, Picture],
    names: Sequence[str] | None,
    title: str,
    **true_colours: Any,
) -> Path:
    """Draws the worst images, worst first, and writes them as PNG.

    Each has its index in the table and its id, its label, the answer with its probability, and how much of the
    map lies inside the region. The frame's colour is the verdict.

    Args:
        path: Of the PNG.
        rows: By column, in order; those without a picture are left out.
        pictures: By index.
        names: Of the classes.
        title: Above the sheet.
        **true_colours: ``denormalize=`` and ``rgb=``; see ``Panel``.
    """
    shown = [(row, _overlay(pictures[row["index"]], true_colours)) for row in rows if row["index"] in pictures]
    height, width = (max(picture.shape[side] for _, picture in shown) for side in (1, 2))
    cells = [_cell(row, _centred(picture, height, max(width, SMALLEST)), names) for row, picture in shown]
    lines = [*title.split("\n"), _legend([row["verdict"] for row, _ in shown])]
    outlines = _outlines([pictures[row["index"]][2] for row, _ in shown])
    sheet = titled(_grid(cells), lines + ([outlines] if outlines else []), narrowest=640)
    write_whole(path, to_png(sheet))
    return path


def _overlay(picture: Picture, true_colours: Mapping[str, Any]) -> Tensor:
    image, values, regions = picture
    sides = image.shape[1:]
    longest = max(sides)
    scale = LARGEST / longest if longest > LARGEST else float(max(1, round(SMALLEST / longest)))
    size = (max(1, round(sides[0] * scale)), max(1, round(sides[1] * scale)))
    plain = resize(colours.true_colours(image[None], **true_colours), size)
    return draw_regions(colours.overlay(plain, colours.heatmaps(values[None], size)), regions, 2)[0]


def _centred(picture: Tensor, height: int, width: int) -> Tensor:
    down, right = height - picture.shape[1], width - picture.shape[2]
    padding = (right // 2, right - right // 2, down // 2, down - down // 2)
    return F.pad(picture, padding, value=255)


def _cell(row: Mapping[str, Any], picture: Tensor, names: Sequence[str] | None) -> Tensor:
    ink = INKS.get(row["verdict"], GREY)
    mark = "" if row["label"] is None else "✓ " if row["label"] == row["predicted"] else "✗ "
    width = picture.shape[2]
    lines = [
        _shortened(
            f"index {row['index']} · {_last(row['id'])}" if row["id"] != str(row["index"]) else f"index {row['id']}",
            width,
        ),
        _shortened(f"label {_class(row['label'], names)}", width),
        _shortened(f"{mark}{row['probability']:.2f} {_class(row['predicted'], names)}", width),
        _inside(row),
    ]
    caption = paper(text.line_height(FONT) * len(lines) + 4, width)
    cell = F.pad(torch.cat([picture, text.text(caption, lines, (2, 2), FONT, ink)], 1), [FRAME] * 4)
    border = torch.ones(cell.shape[1:], dtype=torch.bool)
    border[FRAME:-FRAME, FRAME:-FRAME] = False
    return torch.where(border, torch.tensor(ink, dtype=torch.uint8)[:, None, None], cell)


def _grid(cells: Sequence[Tensor]) -> Tensor:
    height, width = cells[0].shape[1] + GAP, cells[0].shape[2] + GAP
    columns = max(1, min(len(cells), round(math.sqrt(1.5 * len(cells) * height / width))))
    rows = math.ceil(len(cells) / columns)
    columns = math.ceil(len(cells) / rows)  # the last row as full as possible
    body = paper(rows * height, columns * width + GAP)
    for i, cell in enumerate(cells):
        y, x = i // columns * height, i % columns * width + GAP
        body[:, y : y + cell.shape[1], x : x + cell.shape[2]] = cell
    return body


def _legend(verdicts: Sequence[str]) -> str:
    found = [verdict for verdict in VERDICTS if verdict in verdicts]
    return "frames: " + ", ".join(f"{verdict} {INK_NAMES.get(verdict, 'grey')}" for verdict in found)


def _outlines(regions: Sequence[Regions | None]) -> str:
    looks = {"allowed": "region green", "forbidden": "forbidden red dashes", "ignore": "ignored grey dashes"}
    drawn = [
        look
        for zone, look in looks.items()
        if any(one is not None and getattr(one, zone) is not None and getattr(one, zone).any() for one in regions)
    ]
    return "outlines: " + ", ".join(drawn) if drawn else ""


def _shortened(line: str, width: int) -> str:
    """Leaves out the middle of a long line: names of files differ at their ends.

    Example:
        >>> _shortened("index 3 · IMG_2024_03_0014.jpg", 150)
        'index 3 · I…_0014.jpg'
    """
    most = round(width / 7.3)  # the mean width of a letter of the font
    if len(line) <= most:
        return line
    end = min(9, most // 2)
    return f"{line[: most - end - 1]}…{line[-end:]}"


def _class(index: int | None, names: Sequence[str] | None) -> str:
    if index is None:
        return "unknown"
    return names[index] if names is not None and index < len(names) else str(index)


def _last(name: str) -> str:
    return name.replace("\\", "/").rsplit("/", 1)[-1]


def _inside(row: Mapping[str, Any]) -> str:
    if row["relevance_mass_accuracy"] is None:
        reason = "the region is too small" if row["map_mass"] else "the map shows nothing"
        return row["note"] or ("no region" if row["region_area"] is None else reason)
    return f"{row['relevance_mass_accuracy']:.0%} inside, area {row['region_area']:.0%}"
