"""The summary at the end of a run: what was measured, and what cannot be concluded from it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from camwatch.detectors.behaviour import reliance
from camwatch.measures import TABLE
from camwatch.records import Finding, Snapshot

TOLD = ("relevance_mass_accuracy", "region_area", "forbidden_mass", "hide", "swap_context", "correct")


def summary(history: Sequence[Snapshot], alarms: Sequence[Finding], detectors: Iterable[Any]) -> str:
    """Says in a few lines what was measured, what was found, and what cannot be concluded.

    Args:
        history: The run's snapshots, oldest first.
        alarms: Those raised.
        detectors: As they are at the end of the run.

    Example:
        >>> print(summary([], [], []))
        Nothing was measured: no snapshot was taken. Nothing can be concluded.
    """
    sound = [snapshot for snapshot in history if snapshot.error is None]
    if not sound:
        reason = f"all {len(history)} snapshots failed" if history else "no snapshot was taken"
        return f"Nothing was measured: {reason}. Nothing can be concluded."
    first, last = sound[0], sound[-1]
    failed = len(history) - len(sound)
    lines = [
        f"{len(sound)} snapshots of {len(last.labels)} images, epoch {first.epoch} to {last.epoch}"
        + (f"; {failed} more failed." if failed else ".")
    ]
    for key in TOLD:
        values = [s.per_image[key] for s in sound if key in s.per_image and s.per_image[key].isfinite().any()]
        if values:
            count = int(values[-1].isfinite().sum())
            start, end = float(values[0].nanmean()), float(values[-1].nanmean())
            lines.append(f"- {TABLE[key].title}: {start:.2f} at first, {end:.2f} at last ({count} images)")
    lines.append(_alarms_said(alarms))
    lines.extend(f"- {said}" for said in _cannot(sound, detectors))
    return "\n".join(lines)


def _alarms_said(alarms: Sequence[Finding]) -> str:
    if not alarms:
        return "No alarm was raised. That does not mean that there is no shortcut:"
    raised = ", ".join(f"{alarm.detector} at epoch {alarm.epoch}" for alarm in alarms)
    return f"{len(alarms)} alarm{'s' if len(alarms) > 1 else ''}: {raised}. What cannot be concluded:"


def _cannot(sound: Sequence[Snapshot], detectors: Iterable[Any]) -> list[str]:
    """Returns what the run leaves open."""
    said = []
    usable = [int(s.per_image["relevance_mass_accuracy"].isfinite().sum()) for s in sound if _has_regions(s)]
    if not usable:
        said.append("the panel has no measurable regions, so nothing says where the evidence ought to be")
    elif usable[-1] < 32:
        said.append(f"only {usable[-1]} images could be measured; 32 or more make the tests dependable")
    if not any(reliance(snapshot) for snapshot in sound):
        said.append("behaviour was not measured (no probes, or accuracy near chance): maps alone do not show it")
    for detector in detectors:
        looks = detector.state_dict().get("looks")
        if looks is not None and not looks["tests"]:
            said.append(f"{detector.name} never had enough to judge a single snapshot")
    said.append(
        "a cue that is not spatial, lies inside the regions, or is absent from the panel cannot be seen; "
        "neither can one that was known before the first snapshot, other than by the probes"
    )
    return said


def _has_regions(snapshot: Snapshot) -> bool:
    values = snapshot.per_image.get("relevance_mass_accuracy")
    return values is not None and bool(values.isfinite().any())
