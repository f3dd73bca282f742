"""What the rows of an audit add up to."""

from __future__ import annotations

import heapq
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from camwatch.auditing.verdicts import COLUMNS, RIGHT, UNMEASURED, UNREADABLE, VERDICTS, WRONG, WRONG_REASON, Row
from camwatch.metrics.table import AUDITED

# What comes first on the sheet of the worst images.
WORST_FIRST = (WRONG_REASON, WRONG, RIGHT, UNMEASURED)


@dataclass(frozen=True)
class ClassSummary:
    """The images of one class, or of all.

    Attributes:
        label: The class's index; None for images without a label, and for all.
        name: The class's name.
        images: How many there are.
        accuracy: Share of the right answers among the images with a label and an answer; NaN without any.
        verdicts: Verdict -> number of images.
        means: Measure -> mean over the images where it is defined; NaN where it never is.
    """

    label: int | None
    name: str
    images: int
    accuracy: float
    verdicts: Mapping[str, int] = field(repr=False)
    means: Mapping[str, float] = field(repr=False)

    @property
    def wrong_reason(self) -> float:
        """Share of "right for the wrong reason" among the right answers that can be judged; NaN without any."""
        judged = self.verdicts[RIGHT] + self.verdicts[WRONG_REASON]
        return self.verdicts[WRONG_REASON] / judged if judged else math.nan


@dataclass(frozen=True)
class Audit:
    """A finished audit; ``print`` shows its summary.

    Attributes:
        table: The table's file, one row per image.
        sheet: The picture of the worst images; None where there was none to show.
        layer: The layer that was explained.
        method: The method's name.
        total: All images.
        classes: Each class, in order; images without a label come last.
        worst: The rows of the worst images, by column: right for the wrong reason first.
    """

    table: Path
    sheet: Path | None
    layer: str
    method: str
    total: ClassSummary
    classes: tuple[ClassSummary, ...] = field(repr=False)
    worst: tuple[Mapping[str, Any], ...] = field(repr=False)

    def __str__(self) -> str:
        total = self.total
        found = " · ".join(f"{total.verdicts[verdict]} {verdict}" for verdict in VERDICTS)
        lines = [f"audit of {total.images} images, {self.method} at {self.layer}", found, ""]
        shown = sorted(self.classes, key=lambda one: (math.isnan(one.wrong_reason), -_known(one.wrong_reason)))[:20]
        width = max(len("all"), *(len(one.name[:32]) for one in shown)) if shown else 3
        head = ("images", "accuracy", "wrong reason", "mass inside", "area", "centre", "not measurable", "unreadable")
        lines.append("  ".join([f"{'class':{width}}", *head]))
        for one in [*shown, total]:
            cells = (
                str(one.images),
                _percent(one.accuracy),
                _percent(one.wrong_reason),
                _percent(one.means["relevance_mass_accuracy"]),
                _percent(one.means["region_area"]),
                _percent(one.means["centre_mass_accuracy"]),
                str(one.verdicts[UNMEASURED]),
                str(one.verdicts[UNREADABLE]),
            )
            aligned = (f"{cell:>{len(title)}}" for cell, title in zip(cells, head, strict=True))
            lines.append("  ".join([f"{one.name[:32]:{width}}", *aligned]))
        if len(self.classes) > len(shown):
            lines.append(f"… and {len(self.classes) - len(shown)} more classes, all in {summary_path(self.table)}")
        lines += ["", "area and centre: the mass inside of a map that looks everywhere, or at the centre"]
        if total.verdicts[UNMEASURED] + total.verdicts[UNREADABLE]:
            lines.append("why an image is not measurable or unreadable stands in the table's column note")
        lines += ["", f"table: {self.table}", f"per class: {summary_path(self.table)}"]
        return "\n".join([*lines, *([f"worst images: {self.sheet}"] if self.sheet else [])])


class Tally:
    """Sums over rows as they pass by: memory grows with the classes, not with the images."""

    def __init__(self) -> None:
        self._verdicts: dict[int | None, dict[str, int]] = defaultdict(lambda: dict.fromkeys(VERDICTS, 0))
        self._answers: dict[int | None, list[int]] = defaultdict(lambda: [0, 0])
        self._sums: dict[int | None, dict[str, tuple[float, int]]] = defaultdict(
            lambda: dict.fromkeys(AUDITED, (0.0, 0))
        )

    def watch(self, rows: Iterable[Row]) -> Iterator[Row]:
        """Hands on the rows and counts them on the way."""
        for row in rows:
            self._add(named(row))
            yield row

    def _add(self, row: Mapping[str, Any]) -> None:
        label = row["label"]
        self._verdicts[label][row["verdict"]] += 1
        if label is not None and row["verdict"] != UNREADABLE:
            right = row["label"] == row["predicted"]
            self._answers[label] = [self._answers[label][0] + right, self._answers[label][1] + 1]
        sums = self._sums[label]
        for measure in AUDITED:
            if row[measure] is not None:
                total, count = sums[measure]
                sums[measure] = (total + row[measure], count + 1)

    def classes(self, names: Sequence[str] | None) -> tuple[ClassSummary, ...]:
        """Returns one summary per class, in order; images without a label come last."""
        labels = sorted(self._verdicts, key=lambda label: (label is None, label or 0))
        return tuple(self._summary(label, _name(label, names), [label]) for label in labels)

    def total(self) -> ClassSummary:
        """Returns the summary of all images."""
        return self._summary(None, "all", list(self._verdicts))

    def _summary(self, label: int | None, name: str, members: Sequence[int | None]) -> ClassSummary:
        verdicts = {verdict: sum(self._verdicts[m][verdict] for m in members) for verdict in VERDICTS}
        right, answers = (sum(self._answers[m][k] for m in members) for k in (0, 1))
        means = {}
        for measure in AUDITED:
            total, count = (sum(self._sums[m][measure][k] for m in members) for k in (0, 1))
            means[measure] = total / count if count else math.nan
        accuracy = right / answers if answers else math.nan
        return ClassSummary(label, name, sum(verdicts.values()), accuracy, verdicts, means)


def named(row: Row) -> dict[str, Any]:
    """Returns a row as column -> value."""
    return dict(zip(COLUMNS, row, strict=True))


def worst_of(rows: Iterable[Row], k: int) -> tuple[dict[str, Any], ...]:
    """Returns the k worst rows, and reads all of them on the way.

    Right for the wrong reason comes first, the least mass inside the region first; then wrong answers, the
    surest first.
    """
    kept = heapq.nsmallest(max(k, 1), map(named, rows), key=_severity)[:k]
    return tuple(row for row in kept if row["verdict"] != UNREADABLE)


def _severity(row: Mapping[str, Any]) -> tuple[Any, ...]:
    if row["verdict"] not in WORST_FIRST:
        return (len(WORST_FIRST), 0.0, 0.0, row["index"])
    skill = math.inf if row["skill"] is None else row["skill"]
    sure = -row["probability"]
    rank = WORST_FIRST.index(row["verdict"])
    return (rank, *((sure, skill) if row["verdict"] == WRONG else (skill, sure)), row["index"])


def summary_path(table: Path) -> Path:
    """Returns where the summary per class of a table stands."""
    return table.with_name(f"{table.stem}.classes.csv")


def summary_rows(summaries: Iterable[ClassSummary]) -> Iterator[list[Any]]:
    """Yields the lines of the summary per class, the head first."""
    yield ["label", "name", "images", "accuracy", "wrong_reason", *VERDICTS, *AUDITED]
    for one in summaries:
        numbers = [one.accuracy, one.wrong_reason]
        means = [one.means[measure] for measure in AUDITED]
        yield [
            one.label,
            one.name,
            one.images,
            *map(_cell, numbers),
            *(one.verdicts[verdict] for verdict in VERDICTS),
            *map(_cell, means),
        ]


def _name(label: int | None, names: Sequence[str] | None) -> str:
    if label is None:
        return "(no label)"
    return names[label] if names is not None and label < len(names) else str(label)


def _cell(value: float) -> float | None:
    return None if math.isnan(value) else float(f"{value:.6g}")


def _known(value: float) -> float:
    return 0.0 if math.isnan(value) else value


def _percent(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.1%}"
