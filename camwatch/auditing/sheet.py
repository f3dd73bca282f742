"""The contact sheet of the worst images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from camwatch.auditing.examine import Examined
from camwatch.auditing.verdicts import RIGHT, VERDICTS, WRONG, WRONG_REASON
from camwatch.files import write_whole
from camwatch.pictures import sheets
from camwatch.pictures.colours import Denormalize, true_colours
from camwatch.pictures.encoding import to_png
from camwatch.pictures.outlines import legend
from camwatch.pictures.text import shorten
from camwatch.regions.annotations import ZONES
from camwatch.regions.regions import Regions

Picture = tuple[Tensor, Tensor, Regions | None]  # image (C, H, W), map (h, w), its region

# Verdict -> colour of its frame and caption, and that in a word.
INKS = dict.fromkeys(VERDICTS, (sheets.UNKNOWN, "grey")) | {
    RIGHT: (sheets.RIGHT, "blue"),
    WRONG_REASON: ((160, 60, 120), "purple"),
    WRONG: (sheets.WRONG, "orange"),
}
NARROWEST, TITLE = 192, 640  # widths in pixels: of a cell, whose caption is long, and of the title's lines


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
    denormalize: Denormalize | None = None,
    rgb: Sequence[int] = (0, 1, 2),
) -> Path:
    """Draws the worst images, worst first, and writes them as PNG.

    Each has its index in the table and its id, its label, the answer with its probability, and how much of the
    map lies inside the region. The frame's colour is the verdict.

    Args:
        path: Of the PNG.
        rows: By column, in order; those without a picture are left out.
        pictures: By index.
        names: Of the classes.
        title: Above the sheet; it may have several lines.
        denormalize: See ``Panel``.
        rgb: See ``Panel``.
    """
    rows = [row for row in rows if row["index"] in pictures]
    shown = []
    for image, values, regions in (pictures[row["index"]] for row in rows):
        plain = sheets.cell_pictures(true_colours(image[None], denormalize, rgb))
        shown.append(sheets.overlaid(plain, values[None], regions)[0])
    height, width = (max(picture.shape[side] for picture in shown) for side in (1, 2))
    width = max(width, NARROWEST)
    cells = []
    for row, picture in zip(rows, shown, strict=True):
        ink, whole = INKS[row["verdict"]][0], sheets.centred(picture, height, width)
        cells.append(sheets.framed(sheets.captioned(whole, _caption(row, names, width), ink), ink))
    legends = [_frames({row["verdict"] for row in rows}), *_outlines([pictures[row["index"]][2] for row in rows])]
    write_whole(path, to_png(sheets.sheet(cells, [*title.split("\n"), *legends], TITLE)))
    return path


def _caption(row: Mapping[str, Any], names: Sequence[str] | None, width: int) -> list[str]:
    mark = "" if row["label"] is None else "✓ " if row["label"] == row["predicted"] else "✗ "
    label = "unknown" if row["label"] is None else sheets.class_name(row["label"], names)
    lines = [
        f"index {row['index']}" + ("" if row["id"] == str(row["index"]) else f" · {sheets.last_part(row['id'])}"),
        f"label {label}",
        f"{mark}{row['probability']:.2f} {sheets.class_name(row['predicted'], names)}",
    ]
    return [*(shorten(line, width) for line in lines), _inside(row)]


def _inside(row: Mapping[str, Any]) -> str:
    if row["relevance_mass_accuracy"] is None:
        reason = "the region is too small" if row["map_mass"] else "the map shows nothing"
        return row["note"] or ("no region" if row["region_area"] is None else reason)
    return f"{row['relevance_mass_accuracy']:.0%} inside, area {row['region_area']:.0%}"


def _frames(verdicts: set[str]) -> str:
    return "frames: " + ", ".join(f"{verdict} {INKS[verdict][1]}" for verdict in VERDICTS if verdict in verdicts)


def _outlines(regions: Sequence[Regions | None]) -> list[str]:
    masks = {zone: [getattr(one, zone, None) for one in regions] for zone in ZONES}
    return legend(zone for zone, found in masks.items() if any(mask is not None and mask.any() for mask in found))
