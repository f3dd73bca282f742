"""Rules over the history of snapshots: records in, findings out; they never run a model.

A detector has a ``name``, ``update(snapshot) -> Finding | None``, and its state as plain data in ``state_dict()``
and ``load_state_dict(state)``. One that also judges the end of training has ``finish(snapshot)``.
"""

from camwatch._lazy import attach

__all__, __getattr__, __dir__ = attach(
    __name__,
    {
        "Custom": "detector",
        "DeadMaps": "dead_maps",
        "Detector": "detector",
        "Drop": "drop",
        "Level": "level",
        "Limits": "behaviour",
        "MapChange": "map_change",
        "Probe": "probe",
        "Reliance": "behaviour",
        "reliance": "behaviour",
    },
)
