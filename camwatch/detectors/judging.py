"""A run's detectors, and what they say about its snapshots."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from camwatch.detectors.behaviour import Limits
from camwatch.detectors.coercion import coerce
from camwatch.detectors.detector import Custom, Detector, MapDetector
from camwatch.detectors.probe import Probe
from camwatch.errors import CamwatchWarning
from camwatch.probes.cue import cue_sentence
from camwatch.records import Finding, Snapshot


def advance(detectors: Iterable[Detector], snapshot: Snapshot) -> list[Finding]:
    """Hands a snapshot to every detector and returns their findings; a failed snapshot is judged by none."""
    if snapshot.error is not None:
        return []
    return [found for detector in detectors if (found := detector.update(snapshot)) is not None]


def finish(detectors: Iterable[Detector], snapshot: Snapshot) -> list[Finding]:
    """Hands the last sound snapshot of a training that has ended to every detector."""
    if snapshot.error is not None:
        return []
    return [found for detector in detectors if (found := detector.finish(snapshot)) is not None]


Judge = Callable[[list[Any], Snapshot], list[Finding]]


def make_detectors(given: Any, states: Mapping[str, Any] | None = None) -> list[Any]:
    """Makes the detectors of a run: copies, which carry nothing over from another run of the same objects.

    What counts as behaviour is one thing in a run: its ``Probe``'s limits hold for the detectors of maps, too, unless
    they have their own.

    Args:
        given: As ``coerce`` takes them. A function, or another callable of the user's own, is not copied.
        states: Name -> state that a detector goes on from, where there is one.

    Example:
        >>> from camwatch.detectors.level import Level
        >>> given = Level(floor=0.4)
        >>> [made] = make_detectors([given])
        >>> made is given, made.floor
        (False, 0.4)
    """
    made = [one if isinstance(one, Custom) else copy.deepcopy(one) for one in coerce(given)]
    limits = next((one.limits for one in made if isinstance(one, Probe)), Limits())
    for detector in made:
        if isinstance(detector, MapDetector) and detector.limits is None:
            detector.limits = limits
        if states and detector.name in states:
            detector.load_state_dict(states[detector.name])
    return made


def judge_each(
    detectors: list[Any], judge: Judge, snapshot: Snapshot, warn_once: Callable[[str, str], None]
) -> list[Finding]:
    """Lets every detector judge; one that fails keeps none of the others from it."""
    alarms: list[Finding] = []
    for detector in detectors:
        try:
            alarms += judge([detector], snapshot)
        except CamwatchWarning:  # a warning turned into an error by the user's filter
            raise
        except Exception as error:
            warn_once(
                f"detector {detector.name}",
                f"the detector {detector.name!r} failed and was passed over: {type(error).__name__}: {error}",
            )
    return alarms


def with_since(findings: Sequence[Finding], earlier: Sequence[Finding]) -> list[Finding]:
    """Returns the findings with the epoch in which the run first found the same, which is now where it is new.

    Example:
        >>> first, again = Finding("drop", 3, 30, "fell"), Finding("drop", 7, 70, "fell")
        >>> [found.since for found in with_since([again], with_since([first], []))]
        [3]
    """
    known = {finding.key: finding.since for finding in reversed(earlier)}
    return [dataclasses.replace(one, since=known.get(one.key, one.epoch)) for one in findings]


def with_cue(finding: Finding, cue: Mapping[str, Any]) -> Finding:
    """Returns a finding that also says where the cue lies, from the evidence that ``Cue.evidence`` gave."""
    evidence = {**finding.evidence, "cue": dict(cue)}
    return dataclasses.replace(finding, message=f"{finding.message} {cue_sentence(cue)}", evidence=evidence)
