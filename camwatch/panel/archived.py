"""Regions for the panel of a run that is over."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from camwatch.archive.reading import ArchivedRun
from camwatch.panel.files import match_regions
from camwatch.regions.annotations import ZONES
from camwatch.regions.readers.formats import read_regions
from camwatch.regions.regions import Regions


def regions_of(run: ArchivedRun, given: Any) -> Regions:
    """Makes regions of an archived panel's images, on their pixels as the model takes them.

    Args:
        run: The archive.
        given: One entry per image as ``Regions.coerce`` takes them, a mapping from image id (or its file's name)
            to entry, or the path of annotations in any format of
            ``camwatch.regions.readers.formats``.

    Raises:
        RegionError: A region does not fit its image.
        PanelError: No image is found in the mapping.
    """
    ids, size = run.panel["ids"], (int(run.run["size"][0]), int(run.run["size"][1]))
    if isinstance(given, (str, Path)):
        given = read_regions(given)
    if isinstance(given, Mapping) and not set(given) <= set(ZONES):
        given = match_regions(ids, given, run.panel["labels"])
    return Regions.coerce(given, len(ids), size)
