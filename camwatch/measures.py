"""The one table of measures: tags, means, columns and charts come from it, and nothing from how a name begins."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from camwatch.metrics.table import LINES, WATCHED, measure_maps
from camwatch.probes.table import PROBES
from camwatch.records import Measure
from camwatch.regions.regions import Regions
from camwatch.statistics import normal_quantile, t_quantile, wilson

LABELS = frozenset({"labels"})
ANSWERS = (
    Measure("correct", "accuracy on the panel", "rate", 0.0, 1.0, "high", "model", LABELS, 0.0, logged=True),
    Measure("label_probability", "probability of the label", "probability", 0.0, 1.0, "high", "model", LABELS, 0.0),
)
BLANK = Measure("blank_maps", "share of blank maps", "rate", 0.0, 1.0, "low", "layer", frozenset(), 0.0, logged=True)
# Panel means that follow from another measure's values; a snapshot does not keep their own.
FOLLOWING: dict[str, tuple[Measure, Callable[[Tensor], Tensor]]] = {
    "map_mass": (BLANK, lambda mass: (~(mass > 0)).float()),
}
TABLE: dict[str, Measure] = {
    measure.name: measure
    for measure in (
        *(measure for measure, _ in LINES),
        *(measure for line in PROBES for measure in line.measures),
        *ANSWERS,
        *(measure for measure, _ in FOLLOWING.values()),
    )
}
GROUPS = ("right", "wrong")


def key_of(layer: str, name: str, layers: Sequence[str]) -> str:
    """Returns under which name a layer's measure is recorded: the first layer's without a prefix.

    Example:
        >>> [key_of(layer, "map_mass", ["layer4", "layer3"]) for layer in ("layer4", "layer3")]
        ['map_mass', 'layer3/map_mass']
    """
    return name if layer == layers[0] else f"{layer}/{name}"


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
    name, _, group = key.rpartition("/")
    if group not in GROUPS:
        name, group = key, ""
    layer, _, last = name.rpartition("/")
    measure = TABLE.get(last)
    if measure is None or (group and not measure.split) or (layer and layer not in layers[1:]):
        return None
    if measure.of == "model":
        return None if layer else (None, measure, group or None)
    return layer or next(iter(layers), None), measure, group or None


def measure_of(name: str) -> Measure | None:
    """Returns the measure of a name in ``per_image``, whichever layer it is of.

    Example:
        >>> measure_of("layer3/map_entropy").unit
        'share'
    """
    return TABLE.get(name.rpartition("/")[2])


def measure_layers(
    maps: Mapping[str, Tensor], layers: Sequence[str], regions: Regions | None, reference: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Measures a snapshot's maps: key -> (N,) float32.

    Args:
        maps: Layer -> (N, h, w) raw maps.
        layers: Of the run.
        regions: Of the images, or None.
        reference: Layer -> maps of the first snapshot; empty at the first one, which is compared with itself.

    Example:
        >>> import torch
        >>> sorted(measure_layers({"layer4": torch.ones(2, 3, 3)}, ["layer4"], None, {}))
        ['map_entropy', 'map_mass', 'map_similarity']
    """
    return {
        key_of(layer, name, layers): values
        for layer in layers
        for name, values in measure_maps(maps[layer], regions, reference.get(layer, maps[layer]), WATCHED).items()
    }


def _members(per_image: Mapping[str, Tensor], right: Tensor | None) -> Iterator[tuple[str, Tensor, Measure | None]]:
    """Yields the keys of the panel means, each with the values that it is the mean of, and their measure."""
    for name, values in per_image.items():
        measure = measure_of(name)
        yield name, values, measure
        if measure is None:
            continue
        if right is not None and measure.split:
            yield f"{name}/right", values[right], measure
            yield f"{name}/wrong", values[~right], measure
        if measure.name in FOLLOWING:
            following, of = FOLLOWING[measure.name]
            yield f"{name.removesuffix(measure.name)}{following.name}", of(values), following


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
    means = {key: float(values.nanmean()) for key, values, _ in _members(per_image, right)}
    return {key: mean for key, mean in means.items() if math.isfinite(mean)}


def panel_intervals(per_image: Mapping[str, Tensor], right: Tensor | None) -> dict[str, tuple[float, float]]:
    """Returns the 95 % interval of each panel mean: Wilson's for a rate, else by Student's t, within the range.

    Means of fewer than two images have none.

    Example:
        >>> import torch
        >>> [round(v, 2) for v in panel_intervals({"correct": torch.tensor([1.0, 1.0, 0.0, 1.0])}, None)["correct"]]
        [0.3, 0.95]
    """
    found = {}
    for key, values, measure in _members(per_image, right):
        finite = values[values.isfinite()].double()
        if len(finite) >= 2 and measure is not None:
            found[key] = _interval(finite, measure)
    return found


def _interval(values: Tensor, measure: Measure) -> tuple[float, float]:
    mean, n = float(values.mean()), len(values)
    if measure.unit == "rate":
        return wilson(mean, n, normal_quantile(0.025))
    half = t_quantile(0.975, n - 1) * math.sqrt(float(values.var()) / n)
    low = mean - half if measure.low is None else max(mean - half, measure.low)
    return low, mean + half if measure.high is None else min(mean + half, measure.high)


def recorded(regions: Regions | None, labels: Tensor | None, probes: bool = True) -> list[Measure]:
    """Returns the measures that snapshots of a panel can have."""
    known = {"reference"}
    known |= set() if labels is None else {"labels"}
    known |= set() if regions is None else {"regions", *(["forbidden"] if regions.forbidden is not None else [])}
    known |= {"probes"} if probes else set()
    of_maps = {*WATCHED, *(measure.name for measure, _ in FOLLOWING.values())}
    watched = (measure for measure in TABLE.values() if measure.of == "model" or measure.name in of_maps)
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
        areas["region_area"] = float(regions.area().nanmean().nan_to_num(0.0))  # NaN where no image has a region
        if regions.forbidden is not None:
            areas["forbidden_area"] = float(regions.forbidden.float().mean())
    found: dict[str, float] = {}
    for measure in recorded(regions, labels, probes):
        value = measure.uninformative
        value = areas[value] if isinstance(value, str) else 0.0 if value is None else value
        keys = [measure.name, *(f"{measure.name}/{group}" for group in GROUPS if measure.split and labels is not None)]
        of = layers if measure.of == "layer" else layers[:1]
        found |= {key_of(layer, key, layers): value for layer in of for key in keys}
    return found


def tags(values: Mapping[str, float], layers: Sequence[str], name: str) -> dict[str, float]:
    """Returns scalars under their logged tags: the first layer's both with and without its name.

    Example:
        >>> tags({"pointing_game": 0.5, "correct": 1.0}, ["layer4"], "camwatch")
        {'camwatch/pointing_game': 0.5, 'camwatch/layer4/pointing_game': 0.5, 'camwatch/correct': 1.0}
    """
    tagged: dict[str, float] = {}
    for key, value in values.items():
        tagged[f"{name}/{key}"] = value
        parts = split_key(key, layers)
        if parts is not None and parts[0] == layers[0]:
            tagged[f"{name}/{layers[0]}/{key}"] = value
    return tagged


def measured_lines(regions: Regions | None, labels: Tensor | None) -> list[dict[str, Any]]:
    """Returns a run's lines of the table as plain data, for whoever reads its archive without this table."""
    shown = ("name", "title", "unit", "low", "high", "better", "of", "uninformative")
    return [{key: getattr(measure, key) for key in shown} for measure in recorded(regions, labels)]
