"""The exceptions and warnings that camwatch raises."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class CamwatchError(Exception):
    """Base class of every exception raised by camwatch."""


class InputError(CamwatchError, ValueError):
    """An argument cannot be used; the message says what arrived and what is valid."""


class LayerError(InputError):
    """A layer does not exist, never ran, or has no spatial grid."""


class TargetError(InputError):
    """A target does not fit the model's output."""


class RegionError(InputError):
    """A region does not fit its image."""


class PanelError(InputError):
    """No panel can be made from what was given."""


class UnsupportedError(CamwatchError, RuntimeError):
    """The model, strategy or context cannot be supported."""


class CamwatchWarning(UserWarning):
    """Something was not done as asked; the run goes on."""


class AlarmWarning(CamwatchWarning):
    """An alarm was raised by a detector."""


class DisplayWarning(CamwatchWarning):
    """Pictures do not show what was asked for; no measure is touched by it."""


def unknown(kind: str, name: object, valid: Iterable[str], limit: int = 8) -> str:
    """Returns the message for a name that is not among the valid ones, near names first.

    Example:
        >>> unknown("method", "gradcm", ["gradcam", "scorecam"])
        "unknown method 'gradcm'; did you mean 'gradcam'? Valid: gradcam, scorecam"
    """
    names = list(valid)
    near = difflib.get_close_matches(str(name), names, n=3, cutoff=0.5)
    hint = f"; did you mean {' or '.join(repr(n) for n in near)}?" if near else "."
    shown = ", ".join(names[:limit]) + (f", … ({len(names)} in all)" if len(names) > limit else "")
    return f"unknown {kind} {name!r}{hint} Valid: {shown}"


def check_at_least(least: int, **values: int) -> None:
    """Raises InputError for a value that is no integer, or below the least.

    Example:
        >>> check_at_least(1, panel=64)
    """
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise InputError(f"{name} must be an integer of {least} or more, got {value!r}")
