"""The harness of the alarms' error rates: one short run, and a report on it."""

from __future__ import annotations

import csv
import dataclasses
import sys
from pathlib import Path

import pytest
import torch

HARNESS = Path(__file__).parent / "benchmarks" / "drift"


@pytest.fixture
def harness(monkeypatch):
    pytest.importorskip("sklearn")
    monkeypatch.syspath_prepend(str(HARNESS))
    names = ("judging", "plan", "report", "training", "worlds")
    yield {name: __import__(name) for name in names}
    for name in names:
        sys.modules.pop(name)


def test_a_run_and_its_report_fit_together(harness, tmp_path, monkeypatch):
    training, report = harness["training"], harness["report"]
    monkeypatch.setattr(training, "TRAIN", 160)
    monkeypatch.setattr(training, "HELD", 60)
    monkeypatch.setattr(training, "PANEL", 32)
    seed = next(seed for seed in harness["plan"].REPORTED if seed // 2 % 2)  # on shapes
    run = training.Run(seed, "shapes", "corner", "1", epochs=2)
    for step, ending in ((training.train, ".pt"), (training.name_cue, ".place")):
        training.ensure(step, ending, tmp_path, run)
    first = (tmp_path / f"{run.key}.pt").stat().st_mtime_ns
    training.ensure(training.train, ".pt", tmp_path, run)
    assert (tmp_path / f"{run.key}.pt").stat().st_mtime_ns == first  # what is there is not trained again

    lines = report.report(tmp_path, tmp_path / "out")
    assert any("1 runs" in line for line in lines)
    with (tmp_path / "out" / "results" / "runs.csv").open() as file:
        [row] = csv.DictReader(file)
    assert row["key"] == run.key and row["tier"] == "S"
    assert (tmp_path / "out" / "results" / "alarms.png").stat().st_size > 1000


def test_arms_of_a_pair_differ_in_the_cue_alone(harness):
    worlds, training = harness["worlds"], harness["training"]
    given = worlds.scenes("shapes", 40, seed=3)
    again = worlds.scenes("shapes", 40, seed=3)
    assert torch.equal(given.images, again.images)
    for cue in ("corner", "border", "watermark", "stamp"):
        planted = worlds.plant(cue, given, given.labels, 1)
        changed = (planted != given.images).any(1).any(0)
        assert changed.any() and not (changed & ~worlds.place_of(cue, 48)).any()
        assert not (changed[None] & given.masks).any()
    sure = worlds.draw_cues(given.labels, 1.0, 0)
    assert torch.equal(sure, given.labels) and (worlds.draw_cues(given.labels, 0.0, 0) != given.labels).all()
    often, chance = (worlds.draw_cues(given.labels, rho, 0) for rho in (0.8, 0.2))
    assert torch.equal(often[chance == given.labels], given.labels[chance == given.labels])
    run = training.Run(3, "shapes", "corner", "1")
    control = dataclasses.replace(run, arm="chance")
    assert torch.equal(training.panel_images(run)[0], training.panel_images(control)[0])


def test_rates_and_areas_equal_scipy_and_a_hand_computation(harness):
    report = harness["report"]
    assert report.one_sided(0, 59) == pytest.approx(1 - 0.05 ** (1 / 59))
    assert report.auroc([0.1, 0.4, 0.35, 0.8], [False, False, True, True]) == 0.75
    assert report.rate([True] * 5)["interval"] == "0.57 to 1.00"
