"""Detectors: records in, alarms out; they never run a model, so they can be replayed over an archive.

A detector has a ``name``, ``update(snapshot) -> Alarm | None``, and its state as plain data in ``state_dict()``
and ``load_state_dict(state)``. One that also judges the end of training has ``finish(snapshot)``.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from camwatch.drift.behaviour import Probe
from camwatch.drift.change import MapChange
from camwatch.drift.dead import DeadMaps
from camwatch.drift.drop import Drop
from camwatch.drift.level import Level
from camwatch.drift.probes import Limits, Reliance, reliance, relies
from camwatch.drift.report import summary
from camwatch.errors import InputError, unknown
from camwatch.records import Alarm, Snapshot

__all__ = [
    "Custom",
    "DeadMaps",
    "Detector",
    "Drop",
    "Level",
    "Limits",
    "MapChange",
    "Probe",
    "Reliance",
    "advance",
    "coerce",
    "default_detectors",
    "finish",
    "reliance",
    "relies",
    "replay",
    "summary",
]


@runtime_checkable
class Detector(Protocol):
    """A rule over the history of snapshots."""

    name: str

    def update(self, snapshot: Snapshot) -> Alarm | None:
        """Judges one more snapshot, which was measured without an error."""

    def state_dict(self) -> dict[str, Any]:
        """Returns the state as plain data that a weights-only checkpoint takes."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Puts a state back."""


@dataclass(eq=False)
class Custom:
    """A function of one's own as a detector. It keeps no state: what it says at a look is its own affair.

    Example:
        >>> import torch
        >>> def sees_blue(snapshot):
        ...     return Alarm("sees_blue", snapshot.epoch, snapshot.global_step, "It is blue.")
        >>> [detector] = coerce([sees_blue])
        >>> label = torch.zeros(1, dtype=torch.int64)
        >>> detector.name, detector.update(Snapshot(3, 30, 3, None, label, label, torch.ones(1))).message
        ('sees_blue', 'It is blue.')
    """

    function: Callable[[Snapshot], Alarm | None]
    name: str

    def update(self, snapshot: Snapshot) -> Alarm | None:
        """Asks the function.

        Raises:
            InputError: It returned something else than an Alarm or None.
        """
        found = self.function(snapshot)
        if found is not None and not isinstance(found, Alarm):
            raise InputError(f"the detector {self.name!r} has to return an Alarm or None, got {type(found).__name__}")
        return found

    def state_dict(self) -> dict[str, Any]:
        """Returns nothing: the function's own state is not known."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Has nothing to put back."""


_DETECTORS: dict[str, Callable[[], Detector]] = {
    "dead_maps": DeadMaps,
    "drop": Drop,
    "level": Level,
    "map_change": MapChange,
    "probe": Probe,
}


def default_detectors() -> list[Detector]:
    """Returns the detectors of ``detectors="default"``.

    ``MapChange`` is not among them: where nobody said where the evidence ought to be, a map that moves is no
    fault.

    Example:
        >>> [detector.name for detector in default_detectors()]
        ['drop', 'level', 'probe', 'dead_maps']
    """
    return [Drop(), Level(), Probe(), DeadMaps()]


def coerce(given: Any) -> list[Detector]:
    """Makes detectors of what an argument holds.

    Args:
        given: "default", or a sequence (empty for none) of detectors, of their names, and of functions
            (snapshot) -> Alarm | None; one of these alone is taken as well.

    Raises:
        InputError: A name is unknown, an entry is none of these, or two detectors have one name.

    Example:
        >>> [detector.name for detector in coerce(["probe", Level(floor=0.4)])]
        ['probe', 'level']
    """
    if isinstance(given, str) and given == "default":
        return default_detectors()
    if isinstance(given, (str, Detector)) or callable(given):
        given = [given]
    if not isinstance(given, Iterable):
        raise InputError(f"detectors cannot be made of {type(given).__name__}; valid are {_VALID}")
    found = [_one(entry) for entry in given]
    names = [detector.name for detector in found]
    for name in names:
        if names.count(name) > 1:
            raise InputError(
                f"two detectors have the name {name!r}; give one of them another: name=, or Custom(function, name)"
            )
    return found


_VALID = f"'default', or a sequence of detectors, functions (snapshot) -> Alarm | None, and {sorted(_DETECTORS)}"


def _one(entry: Any) -> Detector:
    if isinstance(entry, str):
        if entry not in _DETECTORS:
            raise InputError(unknown("detector", entry, _DETECTORS))
        return _DETECTORS[entry]()
    if isinstance(entry, type):
        raise InputError(f"got the class {entry.__name__}; pass a detector: {entry.__name__}()")
    if isinstance(entry, Detector):
        return entry
    if callable(entry):
        return Custom(entry, getattr(entry, "__name__", type(entry).__name__))
    raise InputError(f"a detector cannot be made of {type(entry).__name__}; valid are {_VALID}")


def advance(detectors: Iterable[Detector], snapshot: Snapshot) -> list[Alarm]:
    """Hands a snapshot to every detector and returns their alarms; a failed snapshot is judged by none."""
    if snapshot.error is not None:
        return []
    return [alarm for detector in detectors if (alarm := detector.update(snapshot)) is not None]


def finish(detectors: Iterable[Detector], snapshot: Snapshot) -> list[Alarm]:
    """Hands the last snapshot of a training that has ended to the detectors that judge the end."""
    enders = [detector for detector in detectors if hasattr(detector, "finish")]
    if snapshot.error is not None:
        return []
    return [alarm for ender in enders if (alarm := ender.finish(snapshot)) is not None]


def replay(snapshots: Any, detectors: Any = "default", ended: bool = True) -> list[Alarm]:
    """Answers "would it have alarmed?" without training again; equal to the live run.

    Args:
        snapshots: Snapshots in their order, or an archive that has them as ``snapshots``. Without their maps an
            alarm cannot say where the mass went.
        detectors: As ``coerce`` takes them; detectors are copied, and ought to be fresh.
        ended: Whether training came to its end, so that the end is judged too.

    Example:
        >>> replay([], ["drop"])
        []
    """
    history: Sequence[Snapshot] = list(getattr(snapshots, "snapshots", snapshots))
    judges = copy.deepcopy(coerce(detectors))
    alarms = [alarm for snapshot in history for alarm in advance(judges, snapshot)]
    sound = [snapshot for snapshot in history if snapshot.error is None]
    return alarms + (finish(judges, sound[-1]) if ended and sound else [])
