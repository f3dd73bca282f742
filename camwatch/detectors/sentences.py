"""What a finding shows: numbers read from snapshots, and the sentences made of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from camwatch.detectors.behaviour import Limits, follows_context, is_correct, reliance
from camwatch.records import Finding, Snapshot
from camwatch.statistics import MeanTest

SHARE = "relevance_mass_accuracy"


NEXT = {
    "agrees": "Look at the overlays of these images, find what they share outside of their regions, and take it "
    "out of the training images (crop, cover, or give it to every class alike).",
    "unconfirmed": "Look at the overlays, and test on images without the suspected cue before changing anything.",
    "not measured": "Look at the overlays, and find out whether the answers follow: test on images without the "
    "suspected cue, or let the probes run (they need regions and labels of two classes at least).",
}


def wrong_reason(snapshot: Snapshot) -> list[int]:
    """Returns the images that are right and stay right with their region hidden under both fills."""
    hide = snapshot.per_image.get("hide")
    return [] if hide is None else ((is_correct(snapshot) == 1) & (hide == 1)).nonzero().flatten().tolist()


def behaviour(snapshot: Snapshot, limits: Limits) -> tuple[str, str]:
    """Returns ``agrees``, ``unconfirmed`` or ``not measured``, and a sentence that says so."""
    found = reliance(snapshot, limits=limits)
    if found is None:
        return "not measured", "Behaviour was not measured at this look: only the map is known to have it."
    numbers = (
        f"with the region hidden {found.hide:.0%} keep their label (chance {found.chance:.0%}), and "
        f"{found.context:.0%} of the swaps follow the context"
    )
    if follows_context(found, limits):
        return "agrees", f"Behaviour agrees: {numbers}."
    return "unconfirmed", f"Map moved, behaviour unconfirmed: {numbers}."


@dataclass(frozen=True)
class Said:
    """What a detector has found, in words and as data.

    Attributes:
        title: At most 80 characters.
        sentences: For a person.
        evidence: The same as plain data.
        cause: Tells what was found from what else the detector finds; "" where it finds one thing.
    """

    title: str
    sentences: Sequence[str]
    evidence: Mapping[str, Any]
    cause: str = ""


def map_finding(detector: str, snapshot: Snapshot, said: Said, limits: Limits | None) -> Finding:
    """Makes a finding about maps, and says whether behaviour agrees with it."""
    limits = limits or Limits()
    label, sentence = behaviour(snapshot, limits)
    found = reliance(snapshot, limits=limits)
    more: dict[str, Any] = {"behaviour": label, "reliance": None if found is None else asdict(found)}
    more |= {"wrong_reason": wrong_reason(snapshot)}
    lines = [*said.sentences, sentence, *(wrong_said(snapshot) if label == "agrees" else [])]
    return finding(detector, snapshot, replace(said, sentences=lines, evidence={**said.evidence, **more}), NEXT[label])


def finding(detector: str, snapshot: Snapshot, said: Said, advice: str) -> Finding:
    """Makes a finding of what was said, and of what a person can do next."""
    return Finding(
        detector=detector,
        epoch=snapshot.epoch,
        global_step=snapshot.global_step,
        message=" ".join([*said.sentences, advice]),
        evidence={**said.evidence, "next": advice},
        title=said.title,
        next=advice,
        key=f"{detector}:{said.cause}" if said.cause else detector,
    )


def wrong_said(snapshot: Snapshot) -> list[str]:
    """Returns a sentence about the images of ``wrong_reason``, where there are any."""
    wrong = wrong_reason(snapshot)
    if not wrong:
        return []
    return [f"{len(wrong)} images are right for what may be the wrong reason: {listing(wrong)}."]


def statistics_as_data(test: MeanTest, level: float, margin: float) -> dict[str, Any]:
    """Returns a test as plain data."""
    return {
        "effect": test.mean,
        "interval": list(test.interval()),
        "p": test.p,
        "level": level,
        "margin": margin,
        "n": test.n,
    }


def effect_with_interval(test: MeanTest) -> str:
    """Returns an effect with its interval, for a sentence."""
    low, high = test.interval()
    return f"{test.mean:.2f} (95 % interval {low:.2f} to {high:.2f})"


def worst(values: Tensor, count: int = 5) -> list[int]:
    """Returns the images with the largest finite values, largest first."""
    order = values.nan_to_num(-torch.inf).argsort(descending=True, stable=True)[:count]
    return [int(i) for i in order if values[i].isfinite()]


def listing(indices: Sequence[int], limit: int = 8) -> str:
    """Returns image indices for a sentence.

    Example:
        >>> listing([3, 1, 4], limit=2)
        '3, 1, … (3 in all)'
    """
    shown = ", ".join(map(str, indices[:limit]))
    return shown + (f", … ({len(indices)} in all)" if len(indices) > limit else "")


def mean_map(snapshot: Snapshot) -> Tensor | None:
    """Returns (h, w): the mean over images of the first layer's maps, each of sum 1; None where there are none."""
    if not snapshot.maps:
        return None
    maps = next(iter(snapshot.maps.values())).double()
    return (maps / maps.sum((1, 2), keepdim=True)).nan_to_num(torch.nan, torch.nan).nanmean(0)


def mass_shift(before: Tensor, after: Tensor, focus: float = 0.3) -> dict[str, Any] | None:
    """Says where the mass of the mean map went.

    Args:
        before: (h, w) of sum 1.
        after: (h, w) of sum 1.
        focus: Share of the gained mass that has to lie within a cell of the largest gain to be called a place.

    Returns:
        ``to`` ("a place" or "spread out"), and the place's cell (``row``, ``column``, ``grid``, ``where``).

    Example:
        >>> before, after = torch.full((4, 4), 1 / 16), torch.zeros(4, 4)
        >>> after[0, 3] = 1.0
        >>> mass_shift(before, after)
        {'to': 'a place', 'row': 0, 'column': 3, 'grid': [4, 4], 'where': 'top right'}
    """
    if before.shape != after.shape:
        return None
    gain = (after - before).clamp(min=0)
    total = float(gain.sum())
    if not total > 0:
        return None
    row, column = divmod(int(gain.argmax()), gain.shape[1])
    near = float(gain[max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2].sum())
    return {
        "to": "a place" if near >= focus * total else "spread out",
        "row": row,
        "column": column,
        "grid": list(gain.shape),
        "where": position(row, column, (int(gain.shape[0]), int(gain.shape[1]))),
    }


def position(row: int, column: int, grid: tuple[int, int]) -> str:
    """Returns where a cell lies on the image, in words.

    Example:
        >>> position(0, 0, (7, 7)), position(3, 3, (7, 7)), position(3, 6, (7, 7))
        ('top left', 'centre', 'right')
    """
    down = ("top", "", "bottom")[min(3 * row // grid[0], 2)]
    across = ("left", "", "right")[min(3 * column // grid[1], 2)]
    return f"{down} {across}".strip() or "centre"


def describe_cell(where: Mapping[str, Any]) -> str:
    """Returns a place that ``mass_shift`` found, for a sentence."""
    rows, columns = where["grid"]
    return f"{where['where']} (row {where['row']}, column {where['column']} of the {rows}x{columns} grid)"
