"""What the probes say about behaviour: does the answer come from outside of the regions?"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from camwatch.records import Snapshot
from camwatch.statistics import above_chance, class_average, effective_trials, normal_quantile, wilson


@dataclass(frozen=True)
class Limits:
    """What the probes have to show for an alarm. Chosen on runs whose reliance on a cue was known.

    Attributes:
        margin: What the score has to exceed: accuracy owed to a cue up to which a model counts as clean.
        sure: What its lower bound has to exceed. In the clean runs it was never above 0 at two looks in a row.
        overwhelming: Lower bound of the score that needs neither a second look nor, on two classes, hiding to agree.
        hide_margin: How far above chance the lower bound of hiding has to be, where hiding has to agree.
        retained: Share of what hiding as large a box elsewhere leaves that hiding the region has to leave.
        accuracy_margin: How far above the most frequent class's share the accuracy has to be. A model that beats_chance
            nothing relies on nothing.
    """

    margin: float = 0.05
    sure: float = 0.005
    overwhelming: float = 0.25
    hide_margin: float = 0.15
    retained: float = 0.5
    accuracy_margin: float = 0.1


@dataclass(frozen=True)
class Reliance:
    """The probes at one look, over the images that are answered rightly.

    Attributes:
        accuracy: Of the plain panel.
        chance: One over the number of classes: what a fixed answer gets on average.
        n: Images judged.
        hide: Share that keep their label with the region hidden, under both fills; mean over classes.
        hide_low: Its lower bound.
        elsewhere: Share that keep it with as large a box hidden outside; None where no such box fits.
        region: Share of swaps that follow the region.
        context: Share of swaps that follow the context.
        confusion: Share that would by confusion alone; None where there is no third class to tell.
        score: ``context`` beyond what confusion explains; 0 for a model that only looks at regions.
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
    confusion: float | None
    score: float
    score_low: float


def reliance(snapshot: Snapshot, alpha: float = 0.05, limits: Limits = Limits()) -> Reliance | None:
    """Reads the probes of a snapshot.

    A pasted seam and a weak model both cost answers, and a model may prefer a class. What follows the context is
    therefore compared with how often the same class is answered where it is on neither side of a swap. With two
    classes there are no such swaps, and the score is the rate less the error on plain images.

    Args:
        snapshot: With ``hide``, ``swap_region`` and ``swap_context``.
        alpha: Level of the one-sided bounds: Wilson's, that of the score with the number of independent swaps that
            the images' are worth, on two classes one an image.
        limits: Of these the accuracy's.

    Returns:
        None where the probes are missing, fewer than two images can be judged, or accuracy is near chance.
    """
    per_image, labels = snapshot.per_image, snapshot.labels
    if not {"hide", "swap_region", "swap_context"} <= set(per_image):
        return None
    correct = is_correct(snapshot)
    classes = torch.unique(labels)
    accuracy = float(correct.nanmean())
    majority = float(torch.unique(labels, return_counts=True)[1].max()) / len(labels)
    if len(classes) < 2 or accuracy < majority + limits.accuracy_margin or not above_chance(correct, labels, 0.01):
        return None
    hide, region, context = (per_image[name] for name in ("hide", "swap_region", "swap_context"))
    asked = (correct == 1) & hide.isfinite() & region.isfinite() & context.isfinite()
    n = int(asked.sum())
    if n < 2:
        return None
    z = normal_quantile(alpha)
    hide_rate, n_effective = class_average(hide[asked], labels[asked])
    context_rate = float(context[asked].mean())
    expected = per_image.get("swap_confusion", torch.full_like(context, float("nan")))[asked]
    confusion = float(expected.nanmean()) if expected.isfinite().any() else None
    # Where nothing tells what a seam confuses, more swaps of an image make the rate no surer.
    base, trials = 1 - accuracy, float(n)
    if confusion is not None:
        base, trials = confusion, effective_trials(context[asked], per_image["swaps"][asked])
    beside = per_image.get("hide_elsewhere", torch.full_like(hide, float("nan")))
    fits = asked & beside.isfinite()
    return Reliance(
        accuracy=accuracy,
        chance=1 / len(torch.unique(labels[asked])),
        n=n,
        hide=hide_rate,
        hide_low=wilson(hide_rate, n_effective, z)[0],
        elsewhere=class_average(beside[fits], labels[fits])[0] if fits.any() else None,
        region=float(region[asked].mean()),
        context=context_rate,
        confusion=confusion,
        score=context_rate - base,
        score_low=wilson(context_rate, trials, z)[0] - base,
    )


def is_correct(snapshot: Snapshot) -> torch.Tensor:
    """Returns (N,): 1 where the plain image is answered rightly."""
    return snapshot.per_image.get("correct", (snapshot.predicted == snapshot.labels).float())


def beats_chance(snapshot: Snapshot) -> bool:
    """Whether the model answers better than chance: not the random head of a new task."""
    return above_chance(is_correct(snapshot), snapshot.labels)


def follows_context(found: Reliance, limits: Limits = Limits()) -> bool:
    """Whether the probes show reliance on something outside of the regions.

    Hiding saturates: a model may know a cue and still follow the region where it sees both. And a model may
    follow a cue where it sees both and give no label where the region is hidden. So swaps decide alone where third
    classes have measured what confusion does. On two classes they have not: there hiding has to agree, unless the
    swaps are overwhelming.

    Args:
        found: What ``reliance`` read.
        limits: What it takes.
    """
    if not (found.score > limits.margin and found.score_low > limits.sure):
        return False
    if found.confusion is not None or found.score_low > limits.overwhelming:
        return True
    beside = 1.0 if found.elsewhere is None else found.elsewhere
    kept = found.hide - found.chance >= limits.retained * (beside - found.chance)
    return found.hide_low > found.chance + limits.hide_margin and kept
