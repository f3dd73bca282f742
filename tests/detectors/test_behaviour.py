"""State, replay, coercion and reporting of detectors."""

from __future__ import annotations

import io
import math

import pytest
import torch

from camwatch.detectors.coercion import coerce, default_detectors
from camwatch.detectors.dead_maps import DeadMaps
from camwatch.detectors.detector import Custom, Detector
from camwatch.detectors.drop import Drop
from camwatch.detectors.judging import advance, finish
from camwatch.detectors.level import Level
from camwatch.detectors.map_change import MapChange
from camwatch.detectors.probe import Probe
from camwatch.detectors.report import summary
from camwatch.errors import CamwatchWarning, InputError
from camwatch.records import Finding, Snapshot
from camwatch.watch.replay import replay

N = 32


def course(n=N, looks=16):
    """A run in which everything goes wrong from look 6 on, with a failed snapshot and an undefined image."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(n) % 4
    snapshots = []
    for k in range(looks):
        bad = min(max(k - 5, 0) / 4, 1)
        scatter = 0.02 * torch.randn(n, generator=generator)
        draw = torch.rand(n, generator=generator)
        share = 0.6 - 0.5 * bad + scatter
        share[3] = math.nan
        measured = {
            "relevance_mass_accuracy": share,
            "region_area": torch.full((n,), 0.25),
            "map_similarity": 0.9 - 0.8 * bad + scatter,
            "map_mass": torch.where(torch.arange(n) < 20 * bad, 0.0, 1.0),
            "correct": torch.ones(n),
            "hide": (torch.rand(n, generator=generator) < 0.2 + 0.8 * bad).float(),
            "swap_context": (draw < 0.5 * bad).float(),
            "swap_region": (draw >= 0.5 * bad).float(),
        }
        error = "out of memory" if k == 4 else None
        measured = {} if error else measured
        maps = {"layer": torch.rand(n, 4, 4, generator=generator)}
        scores = torch.ones(n)
        snapshots.append(Snapshot(k, 10 * k, k, looks, labels, labels, scores, measured, {}, maps, error=error))
    return snapshots


def all_detectors() -> list[Detector]:
    return [*default_detectors(), MapChange(), Level(floor=0.5, name="floor")]


def same(a: list[Finding], b: list[Finding]) -> bool:
    return [vars(alarm) | {"since": None} for alarm in a] == [vars(alarm) | {"since": None} for alarm in b]


def test_every_detector_has_its_say_once_in_a_run_that_goes_wrong():
    alarms = replay(course(), all_detectors())
    names = sorted(alarm.detector for alarm in alarms)
    assert names == ["dead_maps", "drop", "floor", "floor", "level", "map_change", "probe"]
    assert [a.evidence["conditions"] for a in alarms if a.detector == "floor"] == [["floor"], ["uniform"]]
    for alarm in alarms:
        assert "nan" not in alarm.message and alarm.message.endswith((".", ").")) and "  " not in alarm.message


@pytest.mark.parametrize("cut", [1, 3, 5, 8, 10])
def test_state_midway_through_a_weights_only_file_equals_an_undisturbed_run(cut):
    snapshots = course()
    before, after = all_detectors(), all_detectors()
    alarms = [alarm for snapshot in snapshots[:cut] for alarm in advance(before, snapshot)]
    file = io.BytesIO()
    torch.save({detector.name: detector.state_dict() for detector in before}, file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    for detector in after:
        detector.load_state_dict(state[detector.name])
    alarms += [alarm for snapshot in snapshots[cut:] for alarm in advance(after, snapshot)]
    alarms += finish(after, snapshots[-1])
    assert alarms and same(alarms, replay(snapshots, all_detectors()))


def test_state_is_a_copy_and_another_detectors_state_is_refused():
    detector = Drop()
    state = detector.state_dict()
    detector.update(course()[0])
    assert state["baseline"]["rows"] == [] and len(detector.state_dict()["baseline"]["rows"]) == 1
    with pytest.raises(InputError, match=r"expected a state with \['episode'\], got \['baseline', 'before'"):
        DeadMaps().load_state_dict(state)


def test_evidence_is_plain_data_that_a_weights_only_file_takes():
    file = io.BytesIO()
    alarms = replay(course(), all_detectors())
    torch.save([dict(alarm.evidence) for alarm in alarms], file)
    file.seek(0)
    assert torch.load(file, weights_only=True) == [alarm.evidence for alarm in alarms]


def test_replay_takes_an_archive_and_leaves_the_detectors_alone():
    class Archive:
        snapshots = course()

    given = all_detectors()
    before = [detector.state_dict() for detector in given]
    assert same(replay(Archive(), given), replay(Archive.snapshots, given))
    assert [detector.state_dict() for detector in given] == before


def test_failed_snapshots_are_judged_by_none():
    failed = [snapshot for snapshot in course() if snapshot.error]
    asked = []
    assert len(failed) == 1 and replay(failed, [asked.append]) == [] and asked == []
    for detector in all_detectors():
        assert detector.update(failed[0]) is None


def test_snapshots_without_regions_or_probes_are_no_trouble():
    labels = torch.arange(N) % 4
    bare = [Snapshot(k, k, k, 5, labels, labels, torch.ones(N)) for k in range(5)]
    assert replay(bare, all_detectors()) == []
    text = summary(bare, [], default_detectors())
    assert "no measurable regions" in text and "behaviour was not measured" in text
    assert "drop never had enough to judge" in text


def test_small_panels_are_warned_about_once():
    detector = Drop()
    with pytest.warns(CamwatchWarning, match="only 11 images of the panel can be judged: below 16") as caught:
        for snapshot in course(n=12)[:4]:
            detector.update(snapshot)
    assert len(caught) == 1


def test_functions_are_detectors():
    def every_third(snapshot):
        if snapshot.look % 3 == 0:
            return Finding("every_third", snapshot.epoch, snapshot.global_step, "three")
        return None

    assert [alarm.epoch for alarm in replay(course(), [every_third])] == [0, 3, 6, 9, 12, 15]
    [detector] = coerce(every_third)
    assert isinstance(detector, Custom) and detector.name == "every_third" and detector.state_dict() == {}
    with pytest.raises(InputError, match=r"'<lambda>' has to return a Finding or None, got bool"):
        replay(course(), [lambda snapshot: True])


def test_coerce_takes_what_the_argument_may_hold():
    assert [d.name for d in coerce("default")] == ["drop", "level", "probe", "dead_maps"]
    assert coerce([]) == []
    assert [type(d) for d in coerce(("probe", DeadMaps(), "map_change"))] == [Probe, DeadMaps, MapChange]
    own = Level()
    assert coerce(own) == [own] and [d.name for d in coerce("drop")] == ["drop"]


@pytest.mark.parametrize(
    ("given", "match"),
    [
        (["drp"], "unknown detector 'drp'; did you mean 'drop'"),
        ("defualt", "unknown detector 'defualt'"),
        ([3], "a detector cannot be made of int; valid are 'default'"),
        (None, "detectors cannot be made of NoneType"),
        ([Drop], r"got the class Drop; pass a detector: Drop\(\)"),
        ([Level(), Level(floor=0.5)], "two detectors have the name 'level'"),
    ],
)
def test_coerce_names_what_is_wrong(given, match):
    with pytest.raises(InputError, match=match):
        coerce(given)


def test_counts_of_looks_below_one_are_refused():
    with pytest.raises(InputError, match="baseline and looks of 1 at least, got 0 and 2"):
        Drop(baseline=0)


def test_summary_says_what_was_measured_and_what_stays_open():
    snapshots, detectors = course(), all_detectors()
    alarms = [alarm for snapshot in snapshots for alarm in advance(detectors, snapshot)]
    text = summary(snapshots, alarms, detectors)
    assert text.startswith("15 snapshots of 32 images, epoch 0 to 15; 1 more failed.")
    assert "share of the map inside the regions: 0.6" in text and "drop at epoch" in text
    assert "lies inside the regions, or is absent from the panel" in text
    quiet = summary(snapshots[:3], [], detectors)
    assert "No alarm was raised. That does not mean that there is no shortcut" in quiet
    assert summary(snapshots[4:5], [], []).startswith("Nothing was measured: all 1 snapshots failed")
