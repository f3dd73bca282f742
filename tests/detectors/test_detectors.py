"""Detectors against hand computations, scipy, and simulations of runs whose truth is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
import torch

from camwatch import statistics
from camwatch.detectors import state
from camwatch.detectors.behaviour import Limits, reliance
from camwatch.detectors.dead_maps import DeadMaps
from camwatch.detectors.drop import Drop
from camwatch.detectors.level import Level
from camwatch.detectors.map_change import MapChange
from camwatch.detectors.probe import Probe
from camwatch.errors import InputError
from camwatch.records import Snapshot
from camwatch.watch.replay import replay

N, CLASSES = 32, 4


def look(k, planned=20, n=N, right=1.0, error=None, maps=None, **per_image):
    """A snapshot at look k; numbers become the same for all images."""
    labels = torch.arange(n) % CLASSES
    predicted = torch.where(torch.arange(n) < right * n, labels, (labels + 1) % CLASSES)
    measured = {
        key: value.float() if isinstance(value, torch.Tensor) else torch.full((n,), float(value))
        for key, value in per_image.items()
    }
    measured.setdefault("correct", (predicted == labels).float())
    return Snapshot(k, 10 * k, k, planned, labels, predicted, torch.ones(n), measured, {}, maps or {}, error=error)


def shares(k, share, noise=0.02, **more):
    """A look whose shares scatter around a mean, with a region of a quarter of the image."""
    scatter = noise * torch.randn(N, generator=torch.Generator().manual_seed(k))
    more = {"region_area": 0.25} | more
    return look(k, relevance_mass_accuracy=share + scatter, **more)


def epochs(detector, snapshots):
    return [snapshot.epoch for snapshot in snapshots if detector.update(snapshot) is not None]


# DROP


def test_drop_equals_its_formula_computed_by_hand_and_scipy():
    generator = torch.Generator().manual_seed(0)
    values = 0.6 + 0.1 * torch.randn(6, N, generator=generator)
    values[4:] -= 0.4
    detector = Drop()
    alarms = [detector.update(look(k, relevance_mass_accuracy=row)) for k, row in enumerate(values)]
    assert [alarm is not None for alarm in alarms] == [False] * 5 + [True]
    rows = values.double().numpy()
    d = rows[:3].mean(0) - rows[5]
    means = rows.mean(1)
    differences = sorted((means[1:] - means[:-1]) ** 2)[:-1]  # without the largest, the drop itself
    square = max(0.01**2, 0.5 * sum(differences) / 4)
    z = (d.mean() - 0.05) / math.sqrt(d.var(ddof=1) / N + square * (1 + 1 / 3))
    found = alarms[5].evidence
    assert found["p"] == pytest.approx(scipy.stats.t.sf(z, N - 1), rel=1e-4)
    assert found["level"] == pytest.approx(sum(open_rule(k) for k in range(1, 21)) / 20) and found[
        "effect"
    ] == pytest.approx(d.mean(), abs=1e-6)
    half = scipy.stats.t.ppf(0.975, N - 1) * math.sqrt(d.var(ddof=1) / N + square * (1 + 1 / 3))
    assert found["interval"] == pytest.approx([d.mean() - half, d.mean() + half], abs=1e-5)
    assert found["worst"][0] == d.argmax() and found["fell"] == (d > 0.05).sum()
    assert [c["label"] for c in found["classes"]] == [0, 1, 2, 3]


def test_drop_without_jitter_and_margin_is_scipys_t_test():
    found = statistics.mean_test(torch.tensor([0.3, 0.1, 0.25, math.nan, 0.05]), margin=0.02)
    oracle = scipy.stats.ttest_1samp([0.3, 0.1, 0.25, 0.05], 0.02, alternative="greater")
    assert found.p == pytest.approx(oracle.pvalue, rel=1e-5)
    assert found.interval() == pytest.approx(
        tuple(scipy.stats.ttest_1samp([0.3, 0.1, 0.25, 0.05], 0).confidence_interval()), rel=1e-5
    )


def run_of(seed, drop, tau, sd, ramp, n=32, looks=20):
    generator = torch.Generator().manual_seed(seed)
    base = 0.6 + 0.1 * torch.randn(n, generator=generator)
    shocks, noise = torch.randn(looks, generator=generator), torch.randn(looks, n, generator=generator)
    fallen = ((torch.arange(looks) - 4) / ramp).clamp(0, 1) * drop
    rows = base - fallen[:, None] + tau * shocks[:, None] + sd * noise
    return [look(k, n=n, relevance_mass_accuracy=row) for k, row in enumerate(rows)]


@pytest.mark.parametrize(
    ("drop", "n", "least", "most"),
    [
        (0.0, 32, 0.0, 0.0),
        (0.0, 256, 0.0, 0.02),
        (0.15, 32, 0.6, 1.0),
        (0.2, 32, 0.92, 1.0),
        (0.3, 32, 1.0, 1.0),
    ],
)
@pytest.mark.parametrize("ramp", [1, 4])
def test_drop_keeps_its_error_rate_and_detects_as_simulated(drop, n, least, most, ramp):
    """Jitter .02, noise .08; at least what a simulation of the published rule gave: .58, .95 and 1.0."""
    runs = 60 if drop else 150
    alarmed = sum(bool(epochs(Drop(), run_of(seed, drop, 0.02, 0.08, ramp, n))) for seed in range(runs))
    assert least <= alarmed / runs <= most


def test_drop_finds_a_sudden_drop_one_look_after_it():
    """A rule that counts the drop itself as jitter needs seven looks for this."""
    delays = [epochs(Drop(), run_of(seed, 0.3, 0.02, 0.08, 1))[0] - 5 for seed in range(40)]
    assert sorted(delays)[20] == 1 and max(delays) <= 3


def test_drop_ignores_jitter_that_moves_all_images():
    """The rule that a t-test at every look gets wrong in nine runs of ten."""
    alarmed = [bool(epochs(Drop(), run_of(seed, 0.0, 0.04, 0.08, 4, n=256))) for seed in range(60)]
    assert sum(alarmed) <= 1


def test_drop_takes_no_baseline_from_a_random_head():
    random_head = [shares(k, 0.9, right=0.25) for k in range(2)]
    learned = [shares(k, 0.5) for k in range(2, 10)]
    assert epochs(Drop(), [*random_head, *learned]) == []
    assert epochs(Drop(), [shares(k, 0.9) for k in range(3)] + [shares(k, 0.5) for k in range(3, 12)])


def test_drop_compares_with_a_trusted_checkpoint():
    detector = Drop(reference=torch.full((N,), 0.6))
    assert epochs(detector, [shares(k, 0.3) for k in range(4)]) == [1]
    with pytest.raises(InputError, match="the panel has 32 images, the baseline 5"):
        Drop(reference=torch.ones(5)).update(shares(0, 0.3))


def test_drop_alarms_once_per_episode_and_again_after_recovery():
    course = [0.6] * 8 + [0.1] * 4 + [0.6] * 3 + [0.1] * 4
    snapshots = [shares(k, share, noise=0.005, planned=19) for k, share in enumerate(course)]
    assert epochs(Drop(margin=0.02, alpha=0.5), snapshots) == [9, 16]


def test_drop_leaves_out_images_that_are_undefined():
    alive = torch.ones(N)
    alive[::2] = math.nan
    snapshots = [look(k, relevance_mass_accuracy=alive * share) for k, share in enumerate([0.6] * 6 + [0.2] * 9)]
    detector = Drop()
    [alarm] = [found for found in map(detector.update, snapshots) if found]
    assert alarm.evidence["n"] == 16 and all(i % 2 for i in alarm.evidence["worst"])
    nothing = look(3, relevance_mass_accuracy=torch.full((N,), math.nan))
    assert Drop().update(nothing) is None


def test_drop_says_where_the_mass_went_and_in_which_class():
    before, after = torch.full((N, 4, 4), 1.0), torch.full((N, 4, 4), 0.1)
    after[:, 0, 0] = 5.0
    falls = torch.where(torch.arange(N) % CLASSES >= 2, 0.5, 0.0)
    snapshots = [
        look(k, relevance_mass_accuracy=0.6 - falls * (k > 6), maps={"layer": after if k > 6 else before})
        for k in range(14)
    ]
    detector = Drop(jitter=0.001)
    [alarm] = [found for found in map(detector.update, snapshots) if found]
    assert alarm.evidence["went"] == {
        "to": "a place",
        "row": 0,
        "column": 0,
        "grid": [4, 4],
        "where": "top left",
    }
    assert "The mass went to the top left (row 0, column 0 of the 4x4 grid)." in alarm.message
    assert "It surely fell in class 2 (by 0.50), 3 (by 0.50)." in alarm.message
    assert all(i % CLASSES >= 2 for i in alarm.evidence["worst"])
    forbidden = [shares(k, 0.6 - 0.5 * (k > 6), forbidden_mass=0.6 * (k > 6), noise=0.0, planned=14) for k in range(14)]
    [alarm] = [found for found in map(Drop().update, forbidden) if found]
    assert alarm.evidence["went"] == {"to": "forbidden", "forbidden_gain": pytest.approx(0.6)}


@pytest.mark.parametrize(
    ("probes", "label", "said"),
    [
        ({}, "not measured", "Behaviour was not measured"),
        (
            {"hide": 0.0, "swap_region": 1.0, "swap_context": 0.0},
            "unconfirmed",
            "Map moved, behaviour unconfirmed",
        ),
        ({"hide": 1.0, "swap_region": 0.5, "swap_context": 0.5}, "agrees", "Behaviour agrees"),
    ],
)
def test_alarms_about_maps_say_whether_behaviour_agrees(probes, label, said):
    detector = Drop(reference=torch.full((N,), 0.6))
    [alarm] = [found for found in (detector.update(shares(k, 0.2, **probes)) for k in range(3)) if found]
    assert alarm.evidence["behaviour"] == label and said in alarm.message
    assert (len(alarm.evidence["wrong_reason"]) == N) == (label == "agrees")


# alpha spending


def open_rule(k, alpha=0.05):
    return 6 * alpha / (math.pi * k) ** 2


def test_level_of_a_look_is_shared_over_planned_looks_and_spent_where_the_plan_changes():
    looks = state.Looks()
    share = sum(open_rule(k) for k in range(1, 21)) / 20
    assert [looks.level(look(k), 0.05) for k in range(3)] == pytest.approx([share] * 3)
    assert looks.level(look(3, planned=40), 0.05) == pytest.approx(open_rule(4))
    assert looks.level(look(4, planned=40), 0.05) == pytest.approx(open_rule(5))
    unknown = state.Looks()
    assert unknown.level(look(0, planned=None), 0.05) == pytest.approx(open_rule(1))
    beyond = state.Looks()
    assert beyond.level(look(20, planned=20), 0.05) == pytest.approx(open_rule(1))


@pytest.mark.parametrize("plans", [[2] * 2000, [9] * 2000, [20] * 7 + [40] * 2000, [None] * 2000, [5] * 5 + [8] * 2000])
def test_levels_add_up_to_alpha_at_most_whatever_becomes_of_the_plan(plans):
    looks, total = state.Looks(), 0.0
    for k, planned in enumerate(plans):
        if k == 6:  # an interrupted run goes on
            resumed = state.Looks()
            vars(resumed).update(vars(looks))
            looks = resumed
        total += looks.level(look(k, planned=planned), 0.05)
    assert 0.02 < total <= 0.05


# LEVEL


@pytest.mark.parametrize(("share", "alarms"), [(0.1, [1]), (0.24, []), (0.4, [])])
def test_level_alarms_where_maps_are_worse_than_uniform(share, alarms):
    assert epochs(Level(), [shares(k, share) for k in range(6)]) == alarms


def test_level_watches_a_floor_and_a_forbidden_zone():
    assert epochs(Level(floor=0.5), [shares(k, 0.4) for k in range(4)]) == [1]
    detector = Level()
    forbidden = [shares(k, 0.4, forbidden_mass=0.3, forbidden_area=0.1) for k in range(4)]
    [alarm] = [found for found in map(detector.update, forbidden) if found]
    assert alarm.evidence["conditions"] == ["forbidden"]
    assert alarm.evidence["forbidden"]["effect"] == pytest.approx(0.2)


def test_level_does_not_judge_a_random_head():
    assert epochs(Level(), [shares(k, 0.1, right=0.25) for k in range(6)]) == []


def test_level_says_at_the_end_that_maps_never_arrived():
    stayed = [shares(k, 0.27) for k in range(4)]
    arrived = [shares(k, 0.27 + 0.1 * k) for k in range(4)]
    already = [shares(k, 0.5) for k in range(4)]
    left = [shares(k, 0.5 - 0.08 * k) for k in range(4)]
    for snapshots, expected in ((stayed, 1), (arrived, 0), (already, 0), (left, 0)):
        alarms = replay(snapshots, ["level"])
        assert len(alarms) == expected and replay(snapshots, ["level"], ended=False) == []
    assert replay(stayed, ["level"])[0].evidence["conditions"] == ["never arrived"]


# PROBE


def probes(k, hide, context, region=None, elsewhere=1.0, seed=0, **more):
    """A look whose probes are drawn with the given rates, one swap an image; confusion is what is left, shared."""
    generator = torch.Generator().manual_seed(100 * seed + k)
    n = more.pop("n", 64)
    region = 0.95 * (1 - context) if region is None else region
    draw = torch.rand(n, generator=generator)
    if more.pop("thirds", True):
        more |= {"swap_confusion": (1 - context - region) / (CLASSES - 2), "swaps": 1.0}
    return look(
        k,
        n=n,
        hide=torch.rand(n, generator=generator) < hide,
        hide_elsewhere=torch.rand(n, generator=generator) < elsewhere,
        swap_context=draw < context,
        swap_region=(draw >= context) & (draw < context + region),
        **more,
    )


@pytest.mark.parametrize("context", [0.27, 0.36])
def test_probe_finds_the_measured_cheats(context):
    """drift.md: hides to 1.00, swaps follow the context in .27 and .36."""
    found = [epochs(Probe(), [probes(k, 1.0, context, seed=s) for k in range(6)]) for s in range(20)]
    assert all(len(alarms) == 1 and alarms[0] <= 3 for alarms in found)


@pytest.mark.parametrize(
    ("hide", "context", "region"),
    [
        (0.18, 0.02, None),  # the measured controls
        (0.18, 0.005, None),
        (1.0, 0.02, None),  # knows the cue and does not follow it
        (0.18, 0.10, 0.7),  # weak under pasted seams: confusion spread over the classes
    ],
)
def test_probe_keeps_silent_where_behaviour_is_sound(hide, context, region):
    found = [epochs(Probe(), [probes(k, hide, context, region, seed=s) for k in range(20)]) for s in range(25)]
    assert sum(map(bool, found)) <= 1


def test_probe_is_not_fooled_by_confusion_alone():
    """Answers that a seam costs go to all other classes alike: a third to each of three."""
    found = [epochs(Probe(), [probes(k, 0.9, 0.15, 0.55, seed=s) for k in range(20)]) for s in range(25)]
    assert sum(map(bool, found)) <= 1


def test_on_two_classes_hiding_is_compared_with_as_large_a_box_elsewhere():
    harmless = [probes(k, 0.7, 0.3, elsewhere=1.0, thirds=False) for k in range(6)]
    assert epochs(Probe(Limits(retained=0.9, overwhelming=1.0)), harmless) == []
    assert epochs(Probe(Limits(retained=0.1, overwhelming=1.0)), harmless) == [1]


def test_swaps_surely_above_measured_confusion_need_no_agreement():
    rates = {"hide": 0.25, "context": 0.4}
    assert epochs(Probe(Limits(overwhelming=1.0)), [probes(k, **rates) for k in range(6)]) == [1]
    assert epochs(Probe(Limits(overwhelming=1.0)), [probes(k, **rates, thirds=False) for k in range(6)]) == []


def test_probe_does_not_judge_a_model_that_knows_nothing():
    assert epochs(Probe(), [probes(k, 1.0, 0.9, right=0.3) for k in range(6)]) == []


def test_probe_waits_for_a_second_look_unless_the_first_is_overwhelming():
    assert epochs(Probe(), [probes(k, 1.0, 0.9) for k in range(3)]) == [0]
    assert epochs(Probe(Limits(overwhelming=1.0)), [probes(k, 1.0, 0.9) for k in range(3)]) == [1]


def test_probe_reads_rates_of_right_images():
    """Hiding as a mean over classes; swaps as a mean over images, with as many trials as they are worth."""
    context = torch.tensor([1, 0, 0, 0, 0.5, 0, 0, 0])
    rates = {
        "hide": torch.tensor([1, 0, 0, 0, 1, 0, 0, 0]),
        "swap_region": torch.tensor([0, 1, 1, 1, 0, 1, 1, 0.5]),
        "swap_context": context,
    }
    measured = {"swap_confusion": torch.full((8,), 0.0625), "swaps": torch.full((8,), 4)}
    found = reliance(look(0, n=8, right=1.0, **rates, **measured))
    assert (found.hide, found.context, found.confusion, found.chance, found.n) == (0.25, 0.1875, 0.0625, 0.25, 8)
    assert found.region == 0.6875 and found.elsewhere is None
    assert found.score == pytest.approx(0.1875 - 0.0625)
    low = scipy.stats.binomtest(2, 8).proportion_ci(0.9, method="wilson").low
    assert found.hide_low == pytest.approx(low)
    trials = max(8, 0.1875 * 0.8125 / (context.numpy().var(ddof=1) / 8))
    z = scipy.stats.norm.ppf(0.95)
    centre, half = 0.1875 + z**2 / (2 * trials), z * math.sqrt(0.1875 * 0.8125 / trials + z**2 / (4 * trials**2))
    assert trials > 8 and found.score_low == pytest.approx((centre - half) / (1 + z**2 / trials) - 0.0625)
    binary = reliance(look(0, n=8, right=1.0, **rates, swaps=torch.full((8,), 4)))
    assert binary.confusion is None and binary.score == 0.1875  # every plain answer is right
    centre, half = 0.1875 + z**2 / 16, z * math.sqrt(0.1875 * 0.8125 / 8 + z**2 / 256)
    assert binary.score_low == pytest.approx((centre - half) / (1 + z**2 / 8))  # one trial an image


@pytest.mark.parametrize(("spread", "swaps"), [(0.0, 6), (0.3, 6), (2.0, 6), (0.3, 2)])
def test_bound_of_the_score_holds_at_its_level_whatever_images_have_in_common(spread, swaps):
    """Each image's swaps follow the context with a probability of its own: the bound is rarely above the truth."""
    generator = np.random.default_rng(0)
    mean, above, runs = 0.08, 0, 1000
    for _ in range(runs):
        weight = generator.gamma(1 / spread, spread, 64) if spread else np.ones(64)
        rates = torch.from_numpy(generator.binomial(swaps, np.minimum(mean * weight, 1)) / swaps)
        trials = statistics.effective_trials(rates, torch.full((64,), swaps))
        above += statistics.wilson(float(rates.mean()), trials, statistics.normal_quantile(0.05))[0] > mean
    assert above / runs <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / runs)


def test_probe_says_what_it_saw():
    [alarm] = replay([probes(0, 1.0, 0.9)], ["probe"])
    assert alarm.detector == "probe" and alarm.evidence["behaviour"] == "agrees"
    for piece in (
        "The answers follow what lies outside",
        "(chance 25%)",
        "The context won at least once on",
        "right for what may",
    ):
        assert piece in alarm.message
    assert len(alarm.evidence["classes"]) == CLASSES and all(c["p"] < 0.05 for c in alarm.evidence["classes"])


# MAP CHANGE and DEAD MAPS


def test_map_change_alarms_where_maps_stop_looking_like_the_reference():
    def course(values):
        return [look(k, map_similarity=value * torch.linspace(0.95, 1, N)) for k, value in enumerate(values)]

    reference = look(0, map_similarity=1.0)
    assert epochs(MapChange(), [reference, *course([0.9] * 12)[1:]]) == []
    moving = [reference, *course([1.0, 0.9, 0.9, 0.9, 0.7, 0.5, 0.3, 0.2, 0.2, 0.2, 0.2])[1:]]
    assert len(epochs(MapChange(), moving)) == 1
    random_head = look(0, map_similarity=1.0, right=0.2)  # nothing that is learned later looks like it
    assert epochs(MapChange(), [random_head, *course([0.3] * 12)[1:]]) == []


def test_dead_maps_alarm_above_a_fifth_of_the_panel():
    def dead(k, count, value=0.0):
        return look(k, map_mass=torch.where(torch.arange(N) < count, value, 3.0))

    assert epochs(DeadMaps(), [dead(k, 6) for k in range(4)]) == []
    assert epochs(DeadMaps(), [dead(k, 7) for k in range(4)]) == [1]
    assert epochs(DeadMaps(), [dead(k, 7, math.nan) for k in range(4)]) == [1]
    assert epochs(DeadMaps(), [dead(k, count) for k, count in enumerate([7, 7, 0, 7, 0, 0, 7, 7])]) == [1, 7]
    [alarm] = replay([dead(0, 7), dead(1, 7)], [DeadMaps()])
    assert alarm.evidence["dead"] == list(range(7)) and "7 of the 32 maps of images answered rightly" in alarm.message


def test_only_images_answered_rightly_count_as_dead_unless_none_is():
    wrong = torch.arange(N) < 16
    blank_where_wrong = look(0, map_mass=torch.where(wrong, 0.0, 3.0), correct=(~wrong).float())
    assert replay([blank_where_wrong] * 3, [DeadMaps()]) == []
    few = torch.where(torch.arange(N) < 20, 0.0, 3.0)  # 4 of the 16 right ones
    assert len(replay([look(0, map_mass=few, correct=(~wrong).float())] * 3, [DeadMaps()])) == 1
    [alarm] = replay([look(0, map_mass=torch.zeros(N), correct=torch.zeros(N))] * 3, [DeadMaps()])
    assert alarm.evidence["dead"] == list(range(N)) and "all images" in alarm.message


# The null of all of them together


def test_default_detectors_keep_silent_on_clean_runs():
    """Shares that rise and jitter, probes of a clean model, 60 runs of 20 looks: at most the nominal 5 %."""
    alarmed = 0
    for seed in range(60):
        generator = torch.Generator().manual_seed(seed)
        base = 0.5 + 0.1 * torch.randn(64, generator=generator)
        snapshots = []
        for k in range(20):
            shock = 0.02 * torch.randn(1, generator=generator)
            share = base + 0.003 * k + shock + 0.08 * torch.randn(64, generator=generator)
            snapshots.append(
                probes(k, 0.2, 0.02, seed=seed, relevance_mass_accuracy=share, region_area=0.25, map_mass=1.0)
            )
        alarmed += bool(replay(snapshots))
    assert alarmed <= 3
