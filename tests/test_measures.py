"""The one table of measures, line by line: whatever is added to it is tested here."""

from __future__ import annotations

import json
import math
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from camwatch import Panel, Watcher
from camwatch.auditing.verdicts import COLUMNS
from camwatch.detectors.report import TOLD
from camwatch.measures import (
    GROUPS,
    TABLE,
    before_measuring,
    key_of,
    measured_lines,
    panel_intervals,
    panel_means,
    recorded,
    split_key,
    tags,
)
from camwatch.metrics.table import AUDITED
from camwatch.records import Measure
from tests.support.nets import SmallNet

MEASURES = list(TABLE.values())
NAMES = st.text("ab./", min_size=1, max_size=6).filter(lambda name: name.strip("/"))
LAYERS = st.lists(NAMES | st.sampled_from(["right", "map_mass", "a/map_mass"]), min_size=1, max_size=3, unique=True)
NUMBERS = st.floats(0, 1, width=32) | st.just(math.nan)


def named(measure: Measure) -> str:
    return measure.name


@pytest.mark.parametrize("measure", MEASURES, ids=named)
def test_a_line_is_whole(measure: Measure) -> None:
    assert measure.name.isidentifier() and measure.name not in GROUPS  # names are joined by slashes
    assert 0 < len(measure.title) <= 80 and [one.title for one in MEASURES].count(measure.title) == 1
    assert measure.needs <= {"labels", "regions", "forbidden", "probes", "reference"}
    assert measure.low is None or measure.high is None or measure.low < measure.high
    if measure.unit in ("share", "rate", "probability"):
        assert measure.high == 1.0 and measure.low in (0.0, None)
    value = measure.uninformative
    if isinstance(value, str):
        assert TABLE[value].unit == "share" and TABLE[value].needs <= measure.needs
    elif value is not None:
        assert (measure.low is None or value >= measure.low) and (measure.high is None or value <= measure.high)


def test_a_name_stands_once_and_whoever_names_one_finds_it() -> None:
    from camwatch.measures import ANSWERS, FOLLOWING, LINES, PROBES

    probes = sum(len(line.measures) for line in PROBES)
    assert len(TABLE) == len(LINES) + probes + len(ANSWERS) + len(FOLLOWING)
    assert set(AUDITED) <= set(TABLE) and {"label_probability", *AUDITED} <= set(COLUMNS)
    assert set(TOLD) <= set(TABLE)


@pytest.mark.parametrize("measure", MEASURES, ids=named)
@given(layers=LAYERS, at=st.integers(0, 2), group=st.sampled_from(["", *GROUPS]))
@settings(max_examples=25, deadline=None)
def test_splitting_undoes_joining(measure: Measure, layers: list[str], at: int, group: str) -> None:
    layer = layers[min(at, len(layers) - 1)]
    key = key_of(layer, measure.name, layers) if measure.of == "layer" else measure.name
    if group and not measure.split:
        assert split_key(f"{key}/{group}", layers) is None
        return
    found = split_key(f"{key}/{group}" if group else key, layers)
    assert found == (layer if measure.of == "layer" else None, measure, group or None)


@pytest.mark.parametrize(
    "key", ["", "/", "right", "nonsense", "layer1/map_mass", "layer4/map_mass", "layer3/correct", "map_mass/right"]
)
def test_what_is_no_recorded_name_is_none(key: str) -> None:
    assert split_key(key, ["layer4", "layer3"]) is None


def test_a_layer_is_told_by_the_table_and_not_by_how_a_name_begins() -> None:
    values = {"map_mass": 1.0, "hide": 0.5, "region_area": 0.2, "layer3/map_mass": 2.0, "map_entropy/right": 0.3}
    assert tags(values | {"mapped": 4.0}, ["layer4", "layer3"], "run") == {
        "run/map_mass": 1.0,
        "run/layer4/map_mass": 1.0,
        "run/hide": 0.5,
        "run/region_area": 0.2,
        "run/layer4/region_area": 0.2,
        "run/layer3/map_mass": 2.0,
        "run/map_entropy/right": 0.3,
        "run/layer4/map_entropy/right": 0.3,
        "run/mapped": 4.0,
    }
    for measure in MEASURES:
        assert (f"run/layer4/{measure.name}" in tags({measure.name: 0.0}, ["layer4"], "run")) == (measure.of == "layer")


@given(st.lists(NUMBERS, min_size=1, max_size=20), st.data())
@settings(deadline=None)
def test_means_are_over_the_images_where_the_number_is_defined(numbers: list[float], data: st.DataObject) -> None:
    right = torch.tensor(data.draw(st.lists(st.booleans(), min_size=len(numbers), max_size=len(numbers))))
    values = torch.tensor(numbers)
    found = panel_means({"l/pointing_game": values, "region_area": values, "mine": values}, right)
    everything = {"l/pointing_game": values, "region_area": values, "mine": values}
    everything |= {"l/pointing_game/right": values[right], "l/pointing_game/wrong": values[~right]}
    assert set(found) == {key for key, members in everything.items() if members.isfinite().any()}
    for key, mean in found.items():
        assert mean == pytest.approx(float(np.nanmean(everything[key].double())), rel=1e-6)
    assert set(panel_means({"l/pointing_game": values}, None)) <= {"l/pointing_game"}


def test_blank_maps_are_counted_in_each_layer_and_nowhere_else() -> None:
    mass = torch.tensor([0.0, 2.0, math.nan, 0.0])
    found = panel_means({"map_mass": mass, "l/map_mass": mass[1:], "heatmap_mass": mass}, None)
    blank = {key: value for key, value in found.items() if "blank" in key}
    assert blank == pytest.approx({"blank_maps": 0.75, "l/blank_maps": 2 / 3})
    assert panel_intervals({"map_mass": mass}, None)["blank_maps"][1] < 1


@pytest.mark.parametrize("measure", MEASURES, ids=named)
@given(data=st.data())
@settings(max_examples=30, deadline=None)
def test_an_interval_is_the_fields_and_stays_within_the_range(measure: Measure, data: st.DataObject) -> None:
    low = -3.0 if measure.low is None else measure.low
    inside = st.floats(low, 3.0 if measure.high is None else measure.high, width=32)
    each = st.sampled_from([0.0, 1.0]) if measure.unit == "rate" else inside
    values = torch.tensor(data.draw(st.lists(each | st.just(math.nan), max_size=12)))
    found = panel_intervals({measure.name: values}, None).get(measure.name)
    known = values[values.isfinite()].double().numpy()
    if len(known) < 2:
        assert found is None
        return
    assert found is not None
    if measure.unit == "rate":
        exact = stats.binomtest(int(known.sum()), len(known)).proportion_ci(0.95, "wilson")
        expected = exact.low, exact.high
    elif np.ptp(known) == 0:
        expected = known[0], known[0]
    else:
        expected = stats.t.interval(0.95, len(known) - 1, known.mean(), stats.sem(known))
    assert found == pytest.approx(np.clip(expected, measure.low, measure.high), abs=1e-6)
    assert found[0] - 1e-9 <= known.mean() <= found[1] + 1e-9


def panels() -> dict[str, Panel]:
    images = torch.rand(16, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    labels, mask = torch.arange(16) % 2, torch.zeros(16, 16, dtype=torch.bool)
    mask[2:10, 2:10] = True
    zones = {"allowed": mask, "forbidden": mask.flip(0, 1) & ~mask}
    return {
        "images": Panel(images),
        "labels": Panel(images, labels),
        "regions": Panel(images, regions=[mask, None] * 8),
        "both": Panel(images, labels, regions=[mask] * 16),
        "zones": Panel(images, labels, regions=[zones, None] * 8),
        "nowhere": Panel(images, labels, regions=[{"ignore": mask}] * 16),
    }


@pytest.mark.parametrize("kind", panels())
@pytest.mark.parametrize("detectors", [[], ["probe"]])
def test_what_can_be_measured_is_known_before_it_is(kind: str, detectors: list[Any]) -> None:
    panel = panels()[kind]
    layers = ["features.1", "features.0"]
    watcher = Watcher(SmallNet(), panel, layer=layers, target=1, detectors=detectors, on_alarm=[])
    before = dict(watcher.published)
    assert before == {"alarm": 0.0} | before_measuring(panel.regions, panel.labels, layers, bool(detectors))
    assert all(math.isfinite(value) for value in before.values())
    snapshot = watcher.snapshot(0, 0)
    assert snapshot.error is None and set(snapshot.scalars) <= set(before)
    assert all(split_key(key, layers) is not None for key in snapshot.scalars)
    # What was measured of an image is what the table lists for such a panel, in each layer.
    listed = {measure.name: measure for measure in recorded(panel.regions, panel.labels, bool(detectors))}
    assert {key.rpartition("/")[2] for key in snapshot.per_image} <= set(listed)
    for name, measure in listed.items():
        if "probes" not in measure.needs and name != "blank_maps":
            assert name in snapshot.per_image
            assert (f"features.0/{name}" in snapshot.per_image) == (measure.of == "layer")


def test_before_it_is_measured_a_number_is_what_a_map_that_looks_everywhere_has() -> None:
    panel = panels()["both"]
    found = before_measuring(panel.regions, panel.labels, ["layer4"], probes=True)
    for name in ("relevance_mass_accuracy", "relevance_mass_accuracy/wrong", "pointing_game", "region_area"):
        assert found[name] == 0.25
    assert found["region_auroc"] == 0.5 and found["map_entropy"] == 1.0 and found["hide"] == 0.0


@pytest.mark.parametrize("kind", panels())
def test_a_runs_lines_are_plain_data(kind: str) -> None:
    panel = panels()[kind]
    lines = measured_lines(panel.regions, panel.labels)
    assert json.loads(json.dumps(lines, allow_nan=False)) == lines
    assert [line["name"] for line in lines] == [one.name for one in recorded(panel.regions, panel.labels)]
    assert all(line["title"] == TABLE[line["name"]].title for line in lines)
    assert {"lift", "skill", "region_iou"}.isdisjoint(line["name"] for line in lines)  # a snapshot has none of these


def test_a_summary_names_measures_by_their_titles() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        watcher = Watcher(SmallNet(), panels()["both"], on_alarm=[])
    watcher.snapshot(0, 0)
    said = watcher.summary()
    for name in ("relevance_mass_accuracy", "region_area", "hide", "correct"):
        assert f"- {TABLE[name].title}: " in said
