"""PROBE: what the answers follow when regions are hidden or swapped; no baseline, and no map."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from camwatch.detectors import sentences
from camwatch.detectors.behaviour import Limits, Reliance, follows_context, is_correct, reliance
from camwatch.detectors.sentences import Said
from camwatch.detectors.state import Episode, Looks, Remembering
from camwatch.records import Finding, Snapshot
from camwatch.statistics import at_least, holm


@dataclass(eq=False)
class Probe(Remembering):
    """The answers follow what lies outside of the regions.

    At each look with probes, over the images that are answered rightly, an alarm needs the swaps to follow the
    context: the score of ``reliance`` above ``limits.margin`` and surely above ``limits.sure``, at ``looks`` looks in
    a row, or surely above ``limits.overwhelming`` at one. On two classes no third one tells what a seam confuses;
    there, short of overwhelming, the labels must also survive the hiding of their region. Bounds are at the level of
    the look.

    Hiding alone says little of a model that follows the region where it sees both, so it never alarms alone. A
    model whose accuracy is near chance is not judged. Legitimate context also scores, and a cue inside the regions
    does not.

    Args:
        limits: What the probes have to show.
        alpha: Probability of any false alarm in a run.
        looks: Looks in a row that must agree.
        name: Under which alarms and states go.
    """

    limits: Limits = field(default_factory=Limits)
    alpha: float = 0.05
    looks: int = 2
    name: str = "probe"
    _looks: Looks = field(default_factory=Looks, init=False, repr=False)
    _episode: Episode = field(default_factory=Episode, init=False, repr=False)

    def update(self, snapshot: Snapshot) -> Finding | None:
        """Judges one more snapshot."""
        if snapshot.error is not None or reliance(snapshot, limits=self.limits) is None:
            return None
        level = self._looks.level(snapshot, self.alpha)
        found = reliance(snapshot, level, self.limits)
        assert found is not None  # the level does not decide whether it can be read
        self._looks.check_size(found.n)
        hit, at_once = follows_context(found, self.limits), found.score_low > self.limits.overwhelming
        if not self._episode.step(hit, found.score <= self.limits.margin, self.looks, at_once):
            return None
        return self._alarm(snapshot, found, level)

    def _alarm(self, snapshot: Snapshot, found: Reliance, level: float) -> Finding:
        context = snapshot.per_image["swap_context"]
        followed = (is_correct(snapshot) == 1) & (context > 0)
        worst = [i for i in sentences.worst(context, len(context)) if followed[i]]
        classes = self._by_class(snapshot, found)
        beside = "" if found.elsewhere is None else f", {found.elsewhere:.0%} with as large a box hidden elsewhere"
        lines = [
            f"The answers follow what lies outside of the regions. With a region pasted onto an image of another "
            f"class {found.context:.0%} of the answers follow the context and {found.region:.0%} the region: "
            f"{found.score:.2f} beyond confusion, surely above {found.score_low:.2f} ({found.n} images answered "
            f"rightly, level {level:.1e}).",
            f"With the region hidden under both fills {found.hide:.0%} still get their label (chance "
            f"{found.chance:.0%}){beside}.",
            f"The context won at least once on {len(worst)} images: {sentences.listing(worst)}.",
        ]
        sure = [str(c["label"]) for c in classes if c["p"] < 0.05]
        if sure and len(sure) < len(classes):
            lines.append(f"Surely so in class {', '.join(sure)}.")
        evidence = {
            "effect": found.score,
            "level": level,
            "n": found.n,
            "worst": worst,
            "classes": classes,
            "behaviour": "agrees",
            "reliance": asdict(found),
            "wrong_reason": sentences.wrong_reason(snapshot),
        }
        lines += sentences.wrong_said(snapshot)
        said = Said("The answers follow what lies outside of the regions", lines, evidence)
        return sentences.finding(self.name, snapshot, said, sentences.NEXT["agrees"])

    def finish(self, last: Snapshot) -> Finding | None:
        """Says nothing of the end."""
        return None

    def _by_class(self, snapshot: Snapshot, found: Reliance, smallest: int = 8) -> list[dict[str, Any]]:
        """Returns the rate of answers that follow the context, by class, with p-values adjusted after Holm."""
        context, labels = snapshot.per_image["swap_context"], snapshot.labels
        asked = (is_correct(snapshot) == 1) & context.isfinite()
        rates = {k: context[asked & (labels == k)] for k in sorted(set(labels.tolist()))}
        rates = {k: values for k, values in rates.items() if len(values) >= smallest}
        clean = found.context - found.score + self.limits.margin
        p = holm({k: at_least(math.floor(float(v.sum()) + 1e-6), len(v), clean) for k, v in rates.items()})
        return [{"label": k, "context": float(v.mean()), "n": len(v), "p": p[k]} for k, v in rates.items()]
