"""Detectors: snapshots in, findings out; they never run a model, so they can be replayed over an archive.

An alarm says that on this panel the share of the map inside the regions fell, or that the answers follow what lies
outside of them, by so much, with this interval. No alarm does not mean that there is no shortcut: a cue inside the
region, or one that no panel image carries, cannot be seen, and one that is not at a place (a tint, a blur) may be
missed. A hidden or swapped region makes an image that the model was never trained on, and legitimate context (the water
under a boat) also scores.

- ``drop``: the paired share of mass inside the regions fell below that of the first snapshots, by more than a margin
  and the run's own jitter, at two looks in a row, the error probability spent over all looks.
- ``level``: the share is surely below a uniform map's or your floor; more than its area lies in a forbidden zone; or it
  never rose from the start.
- ``probe``: regions are pasted onto six images of other classes each, and the answer follows the context more often
  than that class is answered where it is on neither side, surely and by more than .05, at two looks in a row. On two
  classes nothing tells what confusion does: there the label also has to be given still when regions are hidden.
- ``dead_maps``: more than a fifth of the maps of images answered rightly are blank.
- ``map_change`` (on request; needs no regions): the maps have become unlike the first snapshot's.

A finding about maps says whether the probes agree with it or the behaviour is unconfirmed. Measured error rates stand
in tests/benchmarks/drift/RESULTS.md.

A detector of your own is a function (snapshot) -> Finding | None, or has a ``name``, ``update(snapshot)``,
``finish(last)``, and its state as plain data in ``state_dict()`` and ``load_state_dict(state)``.
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
