"""PROBE: what the answers follow when regions are hidden or swapped; no baseline, and no map."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from camwatch.drift import evidence
from camwatch.drift.probes import Reliance, reliance, relies, right
from camwatch.drift.state import Episode, Looks, restore, save
from camwatch.drift.statistics import at_least, holm
from camwatch.records import Alarm, Snapshot


@dataclass(eq=False)
class Probe:
    """The answers follow what lies outside of the regions.

    At each look with probes, over the images that are answered rightly and as means over classes: an alarm
    needs the swaps to follow the context (the score, see ``reliance``, surely above 0 and more than
    ``swap_margin``) *and* the labels to survive the hiding of their region (lower bound above chance +
    ``hide_margin``, and ``retained`` of what survives hiding as large a box elsewhere), or, with more than two
    classes, a score surely above ``swap_alone``; either at ``looks`` looks in a row, or a score surely above
    ``overwhelming`` at one. Bounds are Wilson's at the level of the look.

    Hiding alone says little of a model that follows the region where it sees both, so it never alarms alone. With
    two classes no third one tells what a seam confuses, so short of ``overwhelming`` the swap needs hiding to agree.
    A model whose accuracy is less than ``accuracy_margin`` above the most frequent class is not judged. Legitimate
    context also scores, and a cue inside the regions does not.

    Args:
        swap_margin: What the score has to exceed, its lower bound being above 0.
        hide_margin: How far above chance the lower bound of hiding has to be. In the clean runs on which it was
            chosen that bound stayed below chance.
        retained: Share of the survival of hiding elsewhere.
        swap_alone: Lower bound of the score that needs no agreement. In the clean runs on which it was chosen it
            never exceeded .01 at two looks in a row.
        overwhelming: Score that needs neither agreement nor a second look.
        accuracy_margin: How far above chance the accuracy has to be.
        alpha: Probability of any false alarm in a run.
        looks: Looks in a row that must agree.
        name: Under which alarms and states go.
    """

    swap_margin: float = 0.05
    hide_margin: float = 0.15
    retained: float = 0.5
    swap_alone: float = 0.02
    overwhelming: float = 0.25
    accuracy_margin: float = 0.1
    alpha: float = 0.05
    looks: int = 2
    name: str = "probe"
    _looks: Looks = field(default_factory=Looks, init=False, repr=False)
    _episode: Episode = field(default_factory=Episode, init=False, repr=False)

    def update(self, snapshot: Snapshot) -> Alarm | None:
        """Judges one more snapshot."""
        if snapshot.error is not None or reliance(snapshot, accuracy_margin=self.accuracy_margin) is None:
            return None
        level = self._looks.level(snapshot, self.alpha)
        found = reliance(snapshot, level, self.accuracy_margin)
        assert found is not None  # the level does not decide whether it can be read
        self._looks.check_size(found.n)
        limits = (self.swap_margin, self.hide_margin, self.retained, self.swap_alone, self.overwhelming)
        hit, at_once = relies(found, *limits), found.score_low > self.overwhelming
        if not self._episode.step(hit, found.score <= self.swap_margin, self.looks, at_once):
            return None
        return self._alarm(snapshot, found, level)

    def _alarm(self, snapshot: Snapshot, found: Reliance, level: float) -> Alarm:
        context = snapshot.per_image["swap_context"]
        followed = (right(snapshot) == 1) & (context > 0)
        worst = [i for i in evidence.worst(context, len(context)) if followed[i]]
        classes = self._by_class(snapshot)
        beside = "" if found.elsewhere is None else f", {found.elsewhere:.0%} with as large a box hidden elsewhere"
        sentences = [
            f"The answers follow what lies outside of the regions. With a region pasted onto an image of another "
            f"class {found.context:.0%} of the answers follow the context and {found.region:.0%} the region: "
            f"{found.score:.2f} beyond confusion, surely above {found.score_low:.2f} ({found.n} images answered "
            f"rightly, level {level:.1e}).",
            f"With the region hidden under both fills {found.hide:.0%} still get their label (chance "
            f"{found.chance:.0%}){beside}.",
            f"The context won on {len(worst)} images: {evidence.listing(worst)}.",
        ]
        sure = [str(c["label"]) for c in classes if c["p"] < 0.05]
        if sure and len(sure) < len(classes):
            sentences.append(f"Surely so in class {', '.join(sure)}.")
        return evidence.alarm(
            self.name,
            snapshot,
            [*sentences, *evidence.wrong_said(snapshot)],
            {
                "effect": found.score,
                "level": level,
                "n": found.n,
                "worst": worst,
                "classes": classes,
                "behaviour": "agrees",
                "reliance": asdict(found),
                "wrong_reason": evidence.wrong_reason(snapshot),
            },
            evidence.NEXT["agrees"],
        )

    def _by_class(self, snapshot: Snapshot, smallest: int = 8) -> list[dict[str, Any]]:
        """Returns the rate of answers that follow the context, by class, with p-values adjusted after Holm."""
        context, labels = snapshot.per_image["swap_context"], snapshot.labels
        asked = (right(snapshot) == 1) & context.isfinite()
        rates = {k: context[asked & (labels == k)] for k in sorted(set(labels.tolist()))}
        rates = {k: values for k, values in rates.items() if len(values) >= smallest}
        p = holm({k: at_least(float(v.sum()), len(v), self.swap_margin) for k, v in rates.items()})
        return [{"label": k, "context": float(v.mean()), "n": len(v), "p": p[k]} for k, v in rates.items()]

    def state_dict(self) -> dict[str, Any]:
        """Returns the state as plain data."""
        return save({"looks": self._looks, "episode": self._episode})

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Puts a state back."""
        restore({"looks": self._looks, "episode": self._episode}, state)
