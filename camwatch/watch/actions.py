"""What is done about a finding."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

from camwatch.errors import AlarmWarning, InputError
from camwatch.records import Finding

Action = Callable[[Finding], Any]


def warn_of(finding: Finding) -> None:
    """Warns with the finding's message."""
    warnings.warn(finding.message, AlarmWarning, stacklevel=2)


NAMED: Mapping[str, Action] = {"warn": warn_of}


def actions(argument: str, given: Any, named: Mapping[str, Action] = NAMED) -> tuple[Action, ...]:
    """Makes callables of a name, a callable, or a sequence of these.

    Args:
        argument: Which argument this was, for the message.
        given: What arrived.
        named: Name -> what is done.

    Raises:
        InputError: Something else arrived.

    Example:
        >>> actions("on_alarm", ["warn"]) == (warn_of,)
        True
    """
    several = list(given) if isinstance(given, (list, tuple)) else [given]
    made: list[Action] = []
    for one in several:
        known = named.get(one) if isinstance(one, str) else one
        if not callable(known):
            valid = ", ".join(map(repr, named))
            raise InputError(f"{argument} is {one!r}; valid are {valid}, a callable, or a sequence of these")
        made.append(known)
    return tuple(made)


def trainer_actions(
    argument: str, given: Any, trainer: Any, stop: Callable[[], None], warns: bool = True
) -> tuple[Action, ...]:
    """Makes callables of what a trainer's callback takes: "warn", "stop", callables (finding, trainer).

    Args:
        argument: Which argument this was, for the message.
        given: What arrived; None: nothing is done.
        trainer: Handed to callables.
        stop: What "stop" does.
        warns: Whether this process warns.

    Raises:
        InputError: Something else arrived.
    """

    def bound(action: Callable[..., Any]) -> Action:
        return lambda finding: action(finding, trainer)

    named: dict[str, Callable[..., Any]] = {
        "warn": lambda finding, trainer: warn_of(finding) if warns else None,
        "stop": lambda finding, trainer: stop(),
    }
    return tuple(map(bound, actions(argument, () if given is None else given, named)))
