"""The one table of measures: tags, means, columns and charts come from it, and nothing from how a name begins."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from camwatch.metrics.table import LINES, WATCHED
from camwatch.probes.table import PROBES
from camwatch.records import Measure
from camwatch.regions.regions import Regions
from camwatch.statistics import t_quantile, wilson

LABELS = frozenset({"labels"})
ANSWERS = (
    Measure("correct", "accuracy on the panel", "rate", 0.0, 1.0, "high", "model", LABELS, 0.0, logged=True),
    Measure("label_probability", "probability of the label", "probability", 0.0, 1.0, "high", "model", LABELS, 0.0),
)
# A panel mean that no image has: the share of the maps that are zero everywhere.
BLANK = Measure("blank_maps", "share of blank maps", "share", 0.0, 1.0, "low", "layer", frozenset(), 0.0, logged=True)
TABLE: dict[str, Measure] = {
    measure.name: measure
    for measure in (
        *(measure for measure, _ in LINES),
        *(measure for line in PROBES for measure in line.measures),
        *ANSWERS,
        BLANK,
    )
}
GROUPS = ("right", "wrong")


def split_key(key: str, layers: Sequence[str]) -> tuple[str | None, Measure, str | None] | None:
    """Takes a recorded name apart: its layer, its measure, and whether it is of right or wrong answers alone.

    Args:
        key: ``pointing_game``, ``<layer>/pointing_game``, ``pointing_game/right``.
        layers: Of the run; the first one's measures have no prefix.

    Returns:
        Layer (None for a measure of the model), measure, group (None for all images); None for a name that is none.

    Example:
        >>> layer, measure, group = split_key("layer3/map_entropy/wrong", ["layer4", "layer3"])
        >>> layer, measure.title, group
        ('layer3', 'how spread out the map is', 'wrong')
    """
    layer = next((one for one in layers[1:] if key.startswith(f"{one}/")), None)
    name, _, group = (key if layer is None else key[len(layer) + 1 :]).partition("/")
    measure = TABLE.get(name)
    if measure is None or (group and group not in GROUPS):
        return None
    return (layer or layers[0] if measure.of == "layer" and layers else None), measure, group or None


def _members(name: str, values: Tensor, right: Tensor | None) -> Iterator[tuple[str, Tensor]]:
    """Yields the keys of a measure's panel means, each with the values that it is the mean of."""
    measure = TABLE.get(name.rsplit("/", 1)[-1])
    yield name, values
    if right is not None and measure is not None and measure.split:
        yield f"{name}/right", values[right]
        yield f"{name}/wrong", values[~right]


def panel_means(per_image: Mapping[str, Tensor], right: Tensor | None) -> dict[str, float]:
    """Returns the mean over the images where a measure is defined, for some also of right and wrong ones apart.

    Args:
        per_image: Name -> (N,), NaN where undefined.
        right: (N,) bool, which images are answered rightly; None where that is not known.

    Example:
        >>> import torch
        >>> panel_means({"pointing_game": torch.tensor([1.0, float("nan"), 0.0])}, torch.tensor([True, True, False]))
        {'pointing_game': 0.5, 'pointing_game/right': 1.0, 'pointing_game/wrong': 0.0}
    """
    means: dict[str, float] = {}
    for name, values in per_image.items():
        prefix, _, measure = name.rpartition("map_mass")
        if not measure and name.endswith("map_mass"):
            means[f"{prefix}{BLANK.name}"] = float((~(values > 0)).float().mean())
        for key, members in _members(name, values, right):
            mean = float(members.nanmean())
            if math.isfinite(mean):
                means[key] = mean
    return means


def panel_intervals(per_image: Mapping[str, Tensor], right: Tensor | None) -> dict[str, tuple[float, float]]:
    """Returns the 95 % interval of each panel mean: Wilson's for a rate, else by Student's t, within the range.

    Means of fewer than two images have none.

    Example:
        >>> import torch
        >>> [round(v, 2) for v in panel_intervals({"correct": torch.tensor([1.0, 1.0, 0.0, 1.0])}, None)["correct"]]
        [0.3, 0.95]
    """
    found = {}
    for name, values in per_image.items():
        measure = TABLE.get(name.rsplit("/", 1)[-1])
        for key, members in _members(name, values, right):
            finite = members[members.isfinite()].double()
            if len(finite) >= 2 and measure is not None:
                found[key] = _interval(finite, measure)
    return found


def _interval(values: Tensor, measure: Measure) -> tuple[float, float]:
    mean, n = float(values.mean()), len(values)
    if measure.unit == "rate":
        return wilson(mean, n, t_quantile(0.975, 10**9))
    half = t_quantile(0.975, n - 1) * math.sqrt(float(values.var()) / n)
    low = mean - half if measure.low is None else max(mean - half, measure.low)
    return low, mean + half if measure.high is None else min(mean + half, measure.high)


def recorded(regions: Regions | None, labels: Tensor | None, probes: bool = True) -> list[Measure]:
    """Returns the measures that snapshots of a panel can have."""
    known = {"reference"}
    known |= set() if labels is None else {"labels"}
    known |= set() if regions is None else {"regions", *(["forbidden"] if regions.forbidden is not None else [])}
    known |= {"probes"} if probes else set()
    watched = (measure for measure in TABLE.values() if measure.of == "model" or measure.name in (*WATCHED, BLANK.name))
    return [measure for measure in watched if measure.needs <= known]


def before_measuring(
    regions: Regions | None, labels: Tensor | None, layers: Sequence[str], probes: bool
) -> dict[str, float]:
    """Returns the scalars that snapshots can have, with what an uninformative map has.

    Whoever monitors one of them finds it before it is first measured.

    Args:
        regions: The panel's, or None.
        labels: The panel's, or None.
        layers: Of the run.
        probes: Whether probes run.

    Example:
        >>> before_measuring(None, None, ["layer4"], probes=False)
        {'map_entropy': 1.0, 'map_mass': 0.0, 'map_similarity': 1.0, 'blank_maps': 0.0}
    """
    areas: dict[str, float] = {}
    if regions is not None:
        areas["region_area"] = float(regions.area().nanmean())
        if regions.forbidden is not None:
            areas["forbidden_area"] = float(regions.forbidden.float().mean())
    found: dict[str, float] = {}
    for measure in recorded(regions, labels, probes):
        value = measure.uninformative
        value = areas[value] if isinstance(value, str) else 0.0 if value is None else value
        keys = [measure.name, *(f"{measure.name}/{group}" for group in GROUPS if measure.split and labels is not None)]
        prefixes = ["", *(f"{layer}/" for layer in layers[1:] if measure.of == "layer")]
        found |= {f"{prefix}{key}": value for prefix in prefixes for key in keys}
    return found


def tags(values: Mapping[str, float], layers: Sequence[str], name: str) -> dict[str, float]:
    """Returns scalars under their logged tags: the first layer's both with and without its name.

    Example:
        >>> tags({"pointing_game": 0.5, "correct": 1.0}, ["layer4"], "camwatch")
        {'camwatch/pointing_game': 0.5, 'camwatch/layer4/pointing_game': 0.5, 'camwatch/correct': 1.0}
    """
    tagged = {}
    for key, value in values.items():
        tagged[f"{name}/{key}"] = value
        parts = split_key(key, layers)
        if parts is not None and parts[0] == layers[0]:
            tagged[f"{name}/{layers[0]}/{key}"] = value
    return tagged


def measured_lines(regions: Regions | None, labels: Tensor | None) -> list[dict[str, Any]]:
    """Returns a run's lines of the table as plain data, for whoever reads its archive without this table."""
    shown = ("name", "title", "unit", "low", "high", "better", "of")
    return [{key: getattr(measure, key) for key in shown} for measure in recorded(regions, labels)]
