"""The detectors over an archive: would they have said something?"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from camwatch.detectors.coercion import coerce
from camwatch.detectors.judging import advance, finish
from camwatch.records import Alarm, Snapshot


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
