"""What the probes say about behaviour: does the answer come from outside of the regions?"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from camwatch.drift.statistics import above_chance, class_average, normal_quantile, wilson
from camwatch.records import Snapshot


@dataclass(frozen=True)
class Reliance:
    """The probes at one look, over the images that are answered rightly; rates are means over classes.

    Attributes:
        accuracy: Of the plain panel.
        chance: One over the number of classes: what a fixed answer gets on average.
        n: Images judged.
        hide: Share that keep their label with the region hidden, under both fills.
        hide_low: Its lower bound.
        elsewhere: Share that keep it with as large a box hidden outside; None where no such box fits.
        region: Share of swaps that follow the region.
        context: Share of swaps that follow the context.
        score: ``context`` beyond what confusion alone explains; 0 for a model that only looks at regions.
        score_low: Its lower bound.
    """

    accuracy: float
    chance: float
    n: int
    hide: float
    hide_low: float
    elsewhere: float | None
    region: float
    context: float
    score: float
    score_low: float


def reliance(snapshot: Snapshot, alpha: float = 0.05, accuracy_margin: float = 0.1) -> Reliance | None:
    """Reads the probes of a snapshot.

    A pasted seam and a weak model both cost answers. Such answers are spread over all classes, answers that
    follow the context are not: with K > 2 classes on the panel ``score`` is the rate of the context's class
    less the mean rate of the K - 2 third classes; with two it is that rate less the error on plain images.

    Args:
        snapshot: With ``hide``, ``swap_region`` and ``swap_context``.
        alpha: Level of the one-sided Wilson bounds.
        accuracy_margin: How far above the most frequent class's share the accuracy has to be. A model that
            knows nothing relies on nothing.

    Returns:
        None where the probes are missing, fewer than two images can be judged, or accuracy is near chance.
    """
    per_image, labels = snapshot.per_image, snapshot.labels
    if not {"hide", "swap_region", "swap_context"} <= set(per_image):
        return None
    correct = right(snapshot)
    classes = torch.unique(labels)
    accuracy = float(correct.nanmean())
    majority = float(torch.unique(labels, return_counts=True)[1].max()) / len(labels)
    if len(classes) < 2 or accuracy < majority + accuracy_margin or not above_chance(correct, labels, 0.01):
        return None
    hide, region, context = (per_image[name] for name in ("hide", "swap_region", "swap_context"))
    asked = (correct == 1) & hide.isfinite() & region.isfinite() & context.isfinite()
    if int(asked.sum()) < 2:
        return None
    z = normal_quantile(alpha)
    hide_rate, n_effective = class_average(hide[asked], labels[asked])
    region_rate, _ = class_average(region[asked], labels[asked])
    context_rate, _ = class_average(context[asked], labels[asked])
    third = max(1 - region_rate - context_rate, 0.0)
    confusion = third / (len(classes) - 2) if len(classes) > 2 else 1 - accuracy
    beside = per_image.get("hide_elsewhere", torch.full_like(hide, float("nan")))
    fits = asked & beside.isfinite()
    return Reliance(
        accuracy=accuracy,
        chance=1 / len(torch.unique(labels[asked])),
        n=int(asked.sum()),
        hide=hide_rate,
        hide_low=wilson(hide_rate, n_effective, z)[0],
        elsewhere=class_average(beside[fits], labels[fits])[0] if fits.any() else None,
        region=region_rate,
        context=context_rate,
        score=context_rate - confusion,
        score_low=wilson(context_rate, n_effective, z)[0] - confusion,
    )


def right(snapshot: Snapshot) -> torch.Tensor:
    """Returns (N,): 1 where the plain image is answered rightly."""
    return snapshot.per_image.get("correct", (snapshot.predicted == snapshot.labels).float())


def knows(snapshot: Snapshot) -> bool:
    """Whether the model answers better than chance: not the random head of a new task."""
    return above_chance(right(snapshot), snapshot.labels)


def relies(
    found: Reliance,
    swap_margin: float = 0.05,
    hide_margin: float = 0.15,
    retained: float = 0.5,
    swap_alone: float = 0.02,
    overwhelming: float = 0.25,
) -> bool:
    """Whether the probes surely show reliance on something outside of the regions.

    Hiding saturates: a model may know a cue and still follow the region where it sees both. And a model may
    follow a cue where it sees both and give no label where the region is hidden. So a small score needs hiding
    to agree, and a larger one does not, where third classes have measured what confusion alone does.

    Args:
        found: What ``reliance`` read.
        swap_margin: What the score has to exceed, its lower bound being above 0.
        hide_margin: How far above chance the lower bound of ``hide`` has to be.
        retained: Share of what hiding as large a box elsewhere leaves that hiding the region has to leave.
        swap_alone: Lower bound of the score that needs no agreement on more than two classes.
        overwhelming: Lower bound of the score that needs none on two either.
    """
    if found.score_low > overwhelming:
        return True
    if not (found.score_low > 0 and found.score > swap_margin):
        return False
    if found.score_low > swap_alone and found.chance < 0.5:
        return True
    beside = 1.0 if found.elsewhere is None else found.elsewhere
    kept = found.hide - found.chance >= retained * (beside - found.chance)
    return found.hide_low > found.chance + hide_margin and kept
