"""What is done about an alarm."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

from camwatch.errors import AlarmWarning, InputError
from camwatch.records import Alarm

OnAlarm = Callable[[Alarm], Any]


def alarm_actions(given: Any) -> tuple[OnAlarm, ...]:
    """Makes callables of "warn", a callable, or a sequence of these.

    Raises:
        InputError: Something else arrived.
    """
    several = list(given) if isinstance(given, (list, tuple)) else [given]
    actions: list[OnAlarm] = []
    for one in several:
        if one == "warn":
            actions.append(warn_of)
        elif callable(one):
            actions.append(one)
        else:
            raise InputError(
                f"on_alarm is {one!r}; valid are 'warn', 'stop' (with a trainer), a callable, or a sequence"
            )
    return tuple(actions)


def warn_of(alarm: Alarm) -> None:
    """Warns with the alarm's message."""
    warnings.warn(alarm.message, AlarmWarning, stacklevel=2)
