"""Naming the cue: where on the image the patch lies that carries the answers, and what it looks like."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from camwatch.errors import InputError
from camwatch.panel.panel import Panel
from camwatch.probes.composing import PredictScores
from camwatch.probes.transplanting import transplant

GRID = (8, 8)


@dataclass(frozen=True, eq=False)
class Cue:
    """What the transplant probe found.

    Attributes:
        box: x1, y1, x2, y2 in pixels of the place whose patch carries most of the answer; None where none stands out.
        rate: How much of the way to the answer of the image it was taken from that patch goes.
        next_rate: The same of the best other window, which may overlap.
        rates: (rows, columns) float32, of every window; NaN where too few pairs could be asked.
        images: (n,) indices of one image per class, to look at.
    """

    box: tuple[int, int, int, int] | None
    rate: float
    next_rate: float
    rates: Tensor
    images: Tensor

    @property
    def evidence(self) -> dict[str, Any]:
        """The same as plain data, None where a rate is undefined."""
        rates = [[rate if math.isfinite(rate) else None for rate in row] for row in self.rates.tolist()]
        box = None if self.box is None else list(self.box)
        return {"box": box, "rate": self.rate, "next_rate": self.next_rate, "rates": rates}


def cue_sentence(evidence: Mapping[str, Any]) -> str:
    """Says for a person what ``Cue.evidence`` says as data.

    Example:
        >>> cue_sentence({"box": [0, 0, 2, 2], "rate": 0.5})[:38]
        'The cue lies at x 0 to 2, y 0 to 2: th'
    """
    if evidence["box"] is None:
        return "No single place outside of the regions carries the answers when its patch is moved between images."
    x1, y1, x2, y2 = evidence["box"]
    return (
        f"The cue lies at x {x1} to {x2}, y {y1} to {y2}: the patch of another class's image, moved there, goes "
        f"{evidence['rate']:.0%} of the way to that image's answer."
    )


def find_cue(predict: PredictScores, panel: Panel, grid: tuple[int, int] = GRID) -> Cue:
    """Runs the transplant probe on a panel; windows that touch a region are left out where there are regions.

    Runs (rows - 1) x (columns - 1) x N forward passes of one image.

    Args:
        predict: From images (N, C, H, W) to scores (N, classes).
        panel: With labels of two classes or more.
        grid: (rows, columns) of cells; 2 x 2 of them are tried together.

    Raises:
        InputError: The panel has no labels.

    Example:
        >>> images = torch.zeros(16, 1, 8, 8)
        >>> images[8:, 0, 0, 0] = 1
        >>> reads_the_corner = lambda x: torch.stack([0.5 - x[:, 0, 0, 0], x[:, 0, 0, 0] - 0.5], 1)
        >>> find_cue(reads_the_corner, Panel(images, torch.arange(16) // 8), grid=(4, 4)).box
        (0, 0, 2, 2)
    """
    if panel.labels is None:
        raise InputError("naming the cue needs a panel with labels")
    boxes = None if panel.regions is None else panel.regions.boxes()
    found = transplant(predict, panel.images, panel.labels, grid=grid, boxes=boxes)
    best = found.rates.flatten().nan_to_num(-1).sort(descending=True).values.clamp(min=0)
    firsts = [int((panel.labels == label).nonzero()[0]) for label in sorted(set(panel.labels.tolist()))]
    return Cue(
        box=found.box if found.cell is not None else None,
        rate=float(best[0]),
        next_rate=float(best[1]) if len(best) > 1 else 0.0,
        rates=found.rates,
        images=torch.tensor(firsts),
    )
