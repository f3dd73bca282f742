"""The table of probes: a new one is a function and its line."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial

import torch
from torch import Tensor

from camwatch.panel.panel import Panel
from camwatch.probes.composing import Box, PredictScores, best_class
from camwatch.probes.hiding import hide, hide_elsewhere
from camwatch.probes.swapping import swap
from camwatch.records import Measure, Pastes
from camwatch.regions.regions import Regions


def softmax(scores: Tensor) -> Tensor:
    """Returns probabilities of scores (N, classes)."""
    return scores.softmax(1)


class Ledger:
    """What was composed and answered, row by row; see ``Pastes``.

    Example:
        >>> ledger = Ledger()
        >>> ledger.add("hide/mean", (0, 0, 4, 4), (3, -1, 1), (0.25, math.nan))
        >>> ledger.pastes().rows.tolist()
        [[0, 3, -1, 0, 1]]
    """

    def __init__(self) -> None:
        self._probes: dict[str, int] = {}
        self._places: dict[Box, int] = {}
        self._rows: list[tuple[int, ...]] = []
        self._chances: list[tuple[float, float]] = []

    def add(
        self, probe: str, place: Box, taker_donor_answer: tuple[int, int, int], chances: tuple[float, float]
    ) -> None:
        """Adds a paste: what was put where on which image, what was answered, and how probable both classes were."""
        taker, donor, answer = taker_donor_answer
        p = self._probes.setdefault(probe, len(self._probes))
        self._rows.append((p, taker, donor, self._places.setdefault(place, len(self._places)), answer))
        self._chances.append(chances)

    def pastes(self) -> Pastes | None:
        """Returns all rows; None without any."""
        if not self._rows:
            return None
        return Pastes(
            tuple(self._probes),
            torch.tensor(list(self._places), dtype=torch.int16),
            torch.tensor(self._rows, dtype=torch.int16),
            torch.tensor(self._chances, dtype=torch.float16),
        )


@dataclass(frozen=True, eq=False)
class Asked:
    """What the probes of one look ask, of which images.

    Attributes:
        predict: From images (N, C, H, W) to scores (N, classes).
        panel: With labels and regions.
        grid: (rows, columns) of the map, by one cell of which boxes are dilated.
        right: (N,) bool, the images answered rightly, whose regions alone are worth a swap; None: all.
        batch_size: How many images ``predict`` is given at once.
        chances: From scores to probabilities.
        ledger: Keeps what was composed and answered.
    """

    predict: PredictScores
    panel: Panel
    grid: tuple[int, int]
    right: Tensor | None = None
    batch_size: int = 64
    chances: Callable[[Tensor], Tensor] = softmax
    ledger: Ledger = field(default_factory=Ledger)

    @property
    def labels(self) -> Tensor:
        """(N,) int64."""
        assert self.panel.labels is not None  # a probe's line needs them
        return self.panel.labels

    @cached_property
    def boxes(self) -> Tensor:
        """(N, 4) the regions' bounding boxes, dilated by one cell of the map's grid."""
        regions, (height, width) = self.panel.regions, self.panel.size
        assert isinstance(regions, Regions)
        return regions.boxes((math.ceil(height / self.grid[0]), math.ceil(width / self.grid[1])))

    def note(self, probe: str) -> Callable[[str, list[tuple[int, Box]], Tensor], None]:
        """Returns what a probe calls with its fill, the images and boxes that it hid, and the scores it got."""

        def keep(fill: str, hidden: list[tuple[int, Box]], scores: Tensor) -> None:
            chances, answers = self.chances(scores), best_class(scores)
            for (taker, box), chance, answer in zip(hidden, chances, answers.tolist(), strict=True):
                own = float(chance[int(self.labels[taker])])
                self.ledger.add(f"{probe}/{fill}", box, (taker, -1, answer), (own, math.nan))

        return keep


@dataclass(frozen=True)
class ProbeLine:
    """A probe: its measures, and the function that asks and returns them as (N,) float32."""

    measures: tuple[Measure, ...]
    run: Callable[[Asked], Mapping[str, Tensor]]


def _hide(asked: Asked) -> dict[str, Tensor]:
    note = asked.note("hide")
    return {
        "hide": hide(
            asked.predict, asked.panel.images, asked.labels, asked.boxes, batch_size=asked.batch_size, note=note
        )
    }


def _hide_elsewhere(asked: Asked) -> dict[str, Tensor]:
    found = hide_elsewhere(asked.predict, asked.panel.images, asked.labels, asked.boxes, batch_size=asked.batch_size)
    return {"hide_elsewhere": found}


def _swap(asked: Asked) -> dict[str, Tensor]:
    found = swap(asked.predict, asked.panel.images, asked.labels, asked.boxes, asked.right, batch_size=asked.batch_size)
    return {
        "swap_region": found.region,
        "swap_context": found.context,
        "swap_confusion": found.confusion,
        "swaps": found.asked,
    }


_rate = partial(
    Measure,
    unit="rate",
    low=0.0,
    high=1.0,
    of="model",
    needs=frozenset({"labels", "regions", "probes"}),
    uninformative=0.0,
)
PROBES: tuple[ProbeLine, ...] = (
    ProbeLine((_rate(name="hide", title="label kept with the region hidden", better="low", logged=True),), _hide),
    ProbeLine(
        (_rate(name="hide_elsewhere", title="label kept with as large a box hidden elsewhere", better="high"),),
        _hide_elsewhere,
    ),
    ProbeLine(
        (
            _rate(name="swap_region", title="swaps that follow the region", better="high", logged=True),
            _rate(name="swap_context", title="swaps that follow the context", better="low", logged=True),
            _rate(name="swap_confusion", title="swaps that would follow the context by confusion alone", better=None),
            _rate(name="swaps", title="swaps asked of an image", unit="amount", high=None, better=None),
        ),
        _swap,
    ),
)


def measure_probes(asked: Asked) -> dict[str, Tensor]:
    """Runs every probe of the table.

    Returns:
        Name -> (N,) float32, NaN where it could not be asked; what could not be asked of any image is left out.

    Example:
        >>> images = torch.zeros(4, 1, 8, 8)
        >>> images[2:, :, 3:5, 3:5] = 1  # the object
        >>> panel = Panel(images, [0, 0, 1, 1], regions=[[(3, 3, 5, 5)]] * 4)
        >>> def predict(x):
        ...     return torch.stack([-x[:, 0, 3, 3] + 0.5, x[:, 0, 3, 3] - 0.5], 1)
        >>> found = measure_probes(Asked(predict, panel, grid=(8, 8)))
        >>> found["hide"].tolist(), found["swap_region"].tolist(), found["swap_context"].tolist()
        ([1.0, 1.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0])
    """
    found = {name: values for line in PROBES for name, values in line.run(asked).items()}
    return {name: values for name, values in found.items() if not values.isnan().all()}
