"""Detectors made of what an argument holds."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from camwatch.detectors.dead_maps import DeadMaps
from camwatch.detectors.detector import Custom, Detector, Endless
from camwatch.detectors.drop import Drop
from camwatch.detectors.level import Level
from camwatch.detectors.map_change import MapChange
from camwatch.detectors.probe import Probe
from camwatch.errors import InputError, unknown

# By name, in the order in which they judge.
DETECTORS: dict[str, Callable[[], Detector]] = {
    "drop": Drop,
    "level": Level,
    "probe": Probe,
    "dead_maps": DeadMaps,
    "map_change": MapChange,
}
# Where nobody said where the evidence ought to be, a map that moves is no fault.
ON_REQUEST = ("map_change",)
OWN = ("name", "update", "state_dict", "load_state_dict")  # what a user's own detector has at least


def default_detectors() -> list[Detector]:
    """Returns the detectors of ``detectors="default"``.

    Example:
        >>> [detector.name for detector in default_detectors()]
        ['drop', 'level', 'probe', 'dead_maps']
    """
    return [make() for name, make in DETECTORS.items() if name not in ON_REQUEST]


def coerce(given: Any) -> list[Detector]:
    """Makes detectors of what an argument holds.

    Args:
        given: "default", or a sequence (empty for none) of detectors, of their names, and of functions
            (snapshot) -> Finding | None; one of these alone is taken as well.

    Raises:
        InputError: A name is unknown, an entry is none of these, or two detectors have one name.

    Example:
        >>> [detector.name for detector in coerce(["probe", Level(floor=0.4)])]
        ['probe', 'level']
    """
    if isinstance(given, str) and given == "default":
        return default_detectors()
    if isinstance(given, str) or _is_detector(given) or callable(given):
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


_VALID = f"'default', or a sequence of detectors, functions (snapshot) -> Finding | None, and {sorted(DETECTORS)}"


def _is_detector(given: Any) -> bool:
    return all(hasattr(given, name) for name in OWN)


def _one(entry: Any) -> Detector:
    if isinstance(entry, str):
        if entry not in DETECTORS:
            raise InputError(unknown("detector", entry, DETECTORS))
        return DETECTORS[entry]()
    if isinstance(entry, type):
        raise InputError(f"got the class {entry.__name__}; pass a detector: {entry.__name__}()")
    if isinstance(entry, Detector):
        return entry
    if _is_detector(entry):
        return Endless(entry)
    if callable(entry):
        return Custom(entry, getattr(entry, "__name__", type(entry).__name__))
    raise InputError(f"a detector cannot be made of {type(entry).__name__}; valid are {_VALID}")
