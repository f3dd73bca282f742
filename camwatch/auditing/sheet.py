"""The contact sheet of the worst images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from camwatch import imaging
from camwatch.auditing.examine import WRONG_REASON, Examined
from camwatch.auditing.parts import write_whole
from camwatch.regions import Regions
from camwatch.watch.render import overlay_sheet

Picture = tuple[torch.Tensor, torch.Tensor, Regions | None]  # image (C, H, W), map (h, w), its region


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

    Args:
        path: Of the PNG.
        rows: By column, in order.
        pictures: By index.
        names: Of the classes.
        title: Above the sheet.
        **true_colours: ``denormalize=`` and ``rgb=``; see ``Panel``.
    """
    size = pictures[rows[0]["index"]][0].shape[1:]
    same = [row for row in rows if row["index"] in pictures and pictures[row["index"]][0].shape[1:] == size]
    images, maps, regions = zip(*(pictures[row["index"]] for row in same), strict=True)
    n = len(same)
    # A caption has the names of two classes: more is said in their places.
    captions = [f"{_class(row['label'], names)} · {_last(row['id'])}" for row in same]
    answers = [f"{_class(row['predicted'], names)}{_inside(row)}" for row in same]
    sheet = overlay_sheet(
        imaging.true_colours(torch.stack(images), **true_colours),
        torch.stack(maps),
        _stack(regions, (int(size[0]), int(size[1]))),
        labels=torch.arange(n),
        predicted=torch.arange(n, 2 * n),
        probability=torch.tensor([row["probability"] for row in same]),
        correct=torch.tensor([row["label"] == row["predicted"] for row in same]),
        class_names=captions + answers,
        title=title,
    )
    write_whole(path, imaging.to_png(sheet))
    return path


def _stack(regions: Sequence[Regions | None], size: tuple[int, int]) -> Regions | None:
    if all(region is None for region in regions):
        return None
    return Regions.coerce([None if r is None or not r.annotated[0] else r for r in regions], len(regions), size)


def _class(index: int | None, names: Sequence[str] | None) -> str:
    if index is None:
        return "?"
    return names[index] if names is not None and index < len(names) else str(index)


def _last(name: str) -> str:
    return name.replace("\\", "/").rsplit("/", 1)[-1]


def _inside(row: Mapping[str, Any]) -> str:
    if row["verdict"] == WRONG_REASON:
        return ", wrong reason"
    return "" if row["relevance_mass_accuracy"] is None else f", {row['relevance_mass_accuracy']:.0%} inside"
