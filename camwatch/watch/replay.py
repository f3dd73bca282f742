"""The detectors over an archive: what would they have said, with these detectors, or with regions drawn later?"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from camwatch.archive.reading import ArchivedRun
from camwatch.detectors.judging import advance, finish, make_detectors, with_cue, with_since
from camwatch.errors import InputError
from camwatch.measures import measure_layers, measure_of, panel_means
from camwatch.panel.archived import regions_of
from camwatch.records import Finding, Snapshot
from camwatch.regions.regions import Regions


def replay(snapshots: Any, detectors: Any = "default", ended: bool = True, regions: Any = None) -> list[Finding]:
    """Answers "would it have said something?" without training again; equal to the live run.

    Args:
        snapshots: Snapshots in their order, or an archive that has them. Without their maps a finding cannot say where
            the mass went.
        detectors: As ``CAMMonitor`` takes them; detectors are copied, and ought to be fresh.
        ended: Whether training came to its end, so that the end is judged too.
        regions: Regions drawn later, by which the maps of an archive are measured again: one entry per panel image as
            ``Panel`` takes them, a mapping from image id to entry, or a COCO JSON file; on the pixels of the images as
            the model takes them. What the probes asked with other regions is left out.

    Raises:
        InputError: Regions were given without an archive.
        RegionError: A region does not fit its image.

    Example:
        >>> replay([], ["drop"])
        []
    """
    history: Sequence[Snapshot] = getattr(snapshots, "snapshots", snapshots)
    if regions is not None:
        if not isinstance(snapshots, ArchivedRun):
            raise InputError("regions= needs an archive, as load_archive returns it: it has the maps of every snapshot")
        history = measured_again(snapshots, regions_of(snapshots, regions))
    judges = make_detectors(detectors)
    found: list[Finding] = []
    last: Snapshot | None = None
    for snapshot in history:
        now = with_since(advance(judges, snapshot), found)
        found += now if snapshot.cue is None else [with_cue(one, snapshot.cue) for one in now]
        last = last if snapshot.error is not None else snapshot
    return found + (with_since(finish(judges, last), found) if ended and last is not None else [])


def measured_again(run: ArchivedRun, regions: Regions) -> list[Snapshot]:
    """Returns an archive's snapshots with their maps measured by other regions."""
    reference: dict[str, Tensor] = {}
    found = []
    for snapshot in run.snapshots:
        if snapshot.error is None:
            reference = reference or dict(snapshot.maps)
            snapshot = _measured(snapshot, run.layers, regions, reference, run.panel.get("labels") is not None)
        found.append(snapshot)
    return found


def _measured(
    snapshot: Snapshot, layers: Sequence[str], regions: Regions, reference: Mapping[str, Tensor], labelled: bool
) -> Snapshot:
    kept = {key: values for key, values in snapshot.per_image.items() if not _asks_regions(key)}
    kept |= measure_layers(snapshot.maps, layers, regions, reference)
    right = snapshot.predicted == snapshot.labels if labelled else None
    return dataclasses.replace(snapshot, per_image=kept, scalars=panel_means(kept, right), intervals={}, pastes=None)


def _asks_regions(key: str) -> bool:
    measure = measure_of(key)
    return measure is not None and bool(measure.needs & {"regions", "forbidden", "probes"})
