"""A run's detectors, what they have found so far, and what is done about it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from camwatch.detectors.judging import advance, finish, judge_each, make_detectors, with_since
from camwatch.errors import CamwatchWarning
from camwatch.records import Finding, Snapshot
from camwatch.watch.actions import actions


class Judging:
    """Hands snapshots to the detectors and keeps their findings; a detector that fails keeps no other from its word.

    Args:
        detectors: As ``detectors.coercion.coerce`` takes them.
        on_alarm: As ``actions`` takes it; for findings of severity "alarm".
        on_finding: The same, for all findings; None: nothing.
        warn_once: Callable (kind, message), for what goes wrong.
    """

    def __init__(self, detectors: Any, on_alarm: Any, on_finding: Any, warn_once: Callable[[str, str], None]) -> None:
        self.detectors = make_detectors(detectors)
        self.raised: list[Finding] = []
        self._at_end: list[Finding] = []
        self._on_alarm = actions("on_alarm", on_alarm)
        self._on_finding = () if on_finding is None else actions("on_finding", on_finding)
        self._warn_once = warn_once

    @property
    def findings(self) -> list[Finding]:
        """Every finding so far, oldest first; those of the end of training last."""
        return self.raised + self._at_end

    def judge(self, snapshot: Snapshot) -> list[Finding]:
        """Returns what the detectors say of one more snapshot."""
        return with_since(judge_each(self.detectors, advance, snapshot, self._warn_once), self.raised)

    def judge_end(self, last: Snapshot) -> list[Finding]:
        """Returns what they say of a training that ended with this snapshot."""
        return with_since(judge_each(self.detectors, finish, last, self._warn_once), self.raised)

    def add(self, findings: Sequence[Finding]) -> None:
        """Keeps what was found at a snapshot; the run goes on, so nothing was found at its end."""
        self.raised, self._at_end = [*self.raised, *findings], []

    def end(self, findings: list[Finding]) -> list[Finding]:
        """Keeps what was found at the end, apart: of a run that is continued after all it is no part."""
        self._at_end = findings
        return findings

    def act(self, findings: Sequence[Finding]) -> None:
        """Does what was asked for about findings; an action that fails ends nothing."""
        for finding in findings:
            asked = [("on_finding", action) for action in self._on_finding]
            asked += [("on_alarm", action) for action in self._on_alarm if finding.severity == "alarm"]
            for kind, action in asked:
                try:
                    action(finding)
                except CamwatchWarning:  # a warning turned into an error by the user's filter
                    raise
                except Exception as error:
                    self._warn_once(kind, f"{kind} failed; training goes on. {type(error).__name__}: {error}")

    def state_dict(self) -> dict[str, Any]:
        """Returns findings and the detectors' states as plain data."""
        return {
            "findings": [dict(vars(finding)) for finding in self.raised],
            "findings_at_end": [dict(vars(finding)) for finding in self._at_end],
            "detectors": {detector.name: detector.state_dict() for detector in self.detectors},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from a state; a detector that it does not know begins anew."""
        self.raised = [Finding(**one) for one in state["findings"]]
        self._at_end = [Finding(**one) for one in state["findings_at_end"]]
        for detector in self.detectors:
            if detector.name in state["detectors"]:
                detector.load_state_dict(state["detectors"][detector.name])
