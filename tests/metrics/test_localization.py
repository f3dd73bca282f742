"""Numbers about maps, against hand computations, scikit-learn, the published formulas and their invariances."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import roc_auc_score

from camwatch import metrics
from camwatch.errors import InputError
from camwatch.metrics import (
    between_class_agreement,
    centre_point,
    centre_prior,
    lift,
    map_entropy,
    map_rank_similarity,
    map_similarity,
    pointing_game,
    region_auroc,
    region_iou,
    relevance_mass_accuracy,
    relevance_rank_accuracy,
    runner_up,
    skill,
    uniform_map,
    within_class_agreement,
)
from camwatch.regions import Regions

LOCALIZATION = [
    relevance_mass_accuracy,
    relevance_rank_accuracy,
    region_auroc,
    region_iou,
    pointing_game,
    lift,
    skill,
]
BOUNDED = LOCALIZATION[:5]
AREA_OF_UNIFORM = [relevance_mass_accuracy, relevance_rank_accuracy, region_iou, pointing_game]
RANKED = [relevance_rank_accuracy, region_auroc, pointing_game]

cases = given(st.integers(1, 6), st.integers(2, 6), st.integers(1, 3), st.integers(0, 10_000))
many = settings(deadline=None, max_examples=40)


def draw(h, w, n, seed, levels=4):
    """Maps with ties and zeros, and regions that are neither empty nor everything."""
    generator = torch.Generator().manual_seed(seed)
    maps = torch.randint(0, levels, (n, h, w), generator=generator).float()
    maps[:, 0, 0] += 1
    regions = torch.rand(n, h, w, generator=generator) > 0.6
    regions[:, -1, -1], regions[:, 0, 0] = True, False
    return maps, regions


def nearly(actual, expected):
    torch.testing.assert_close(
        actual, torch.as_tensor(expected, dtype=torch.float32), atol=1e-6, rtol=1e-5, equal_nan=True
    )


# By hand: four cells, the upper row is the region.
MAP = torch.tensor([[[4.0, 1.0], [2.0, 1.0]]])
UPPER = torch.tensor([[[True, True], [False, False]]])


@pytest.mark.parametrize(
    "function, expected",
    [
        (relevance_mass_accuracy, 5 / 8),
        (lift, (5 / 8) / (1 / 2)),
        (skill, (5 / 8 - 1 / 2) / (1 - 1 / 2)),
        (relevance_rank_accuracy, 1 / 2),  # the top two cells are 4 and 2
        (region_auroc, (1 + 1 + 0 + 0.5) / 4),  # 4 > 2, 4 > 1, 1 < 2, 1 = 1
        (region_iou, 1 / 3),  # from 2 on: 4 and 2; of three cells one is in both
        (pointing_game, 1.0),
    ],
)
def test_localization_equals_the_hand_computation(function, expected):
    nearly(function(MAP, UPPER), [expected])


@pytest.mark.parametrize(
    "function, expected",
    [
        # The region covers the left cell and half of the middle one; the maps are 2, 4, 2.
        (relevance_mass_accuracy, (2 + 4 / 2) / 8),
        (relevance_rank_accuracy, (0.5 + 0.25 * (1 + 0)) / 1.5),  # the middle, then a quarter of both others
        # Inside 1 of value 2 and 1/2 of value 4; outside 1/2 of value 4 and 1 of value 2.
        (region_auroc, (1 * (0 * 0.5 + 0.5 * 1) + 0.5 * (0.5 * 0.5 + 1 * 1)) / (1.5 * 1.5)),
        (lambda m, r: region_iou(m, r, threshold=0.75), 0.5 / (1 + 1.5 - 0.5)),
        (lift, 0.5 / 0.5),
        (skill, 0.0),
    ],
)
def test_localization_of_a_fractional_region_equals_the_hand_computation(function, expected):
    region = torch.zeros(1, 2, 6, dtype=torch.bool)
    region[:, :, :3] = True
    nearly(function(torch.tensor([[[2.0, 4.0, 2.0]]]), region), [expected])


@many
@cases
def test_region_auroc_equals_scikit_learn(h, w, n, seed):
    maps, regions = draw(h, w, n, seed)
    expected = [roc_auc_score(r.flatten(), m.flatten()) for m, r in zip(maps, regions, strict=True)]
    nearly(region_auroc(maps, regions), expected)


@many
@cases
def test_region_auroc_of_fractional_regions_equals_scikit_learn_with_weights(h, w, n, seed):
    maps, _ = draw(h, w, n, seed)
    shares = torch.rand(n, h, w, generator=torch.Generator().manual_seed(seed)).clamp(0.01, 0.99)
    labels = np.repeat([1, 0], h * w)
    expected = [
        roc_auc_score(labels, m.flatten().tile(2), sample_weight=torch.cat([r.flatten(), 1 - r.flatten()]))
        for m, r in zip(maps, shares, strict=True)
    ]
    nearly(region_auroc(maps, shares), expected)


@many
@cases
def test_rank_accuracy_without_ties_equals_the_published_formula(h, w, n, seed):
    maps, regions = draw(h, w, n, seed)
    maps = torch.rand(n, h, w, generator=torch.Generator().manual_seed(seed))
    expected = []
    for values, mask in zip(maps.flatten(1), regions.flatten(1), strict=True):
        k = int(mask.sum())
        expected.append(len(set(values.topk(k).indices.tolist()) & set(mask.nonzero().flatten().tolist())) / k)
    nearly(relevance_rank_accuracy(maps, regions), expected)


@many
@cases
def test_rank_accuracy_with_ties_is_the_mean_over_all_orders(h, w, n, seed):
    maps, regions = draw(h, w, 1, seed, levels=2)
    k, generator, found = int(regions.sum()), torch.Generator().manual_seed(seed), []
    for _ in range(400):
        noise = 0.5 * torch.rand(h * w, generator=generator)
        found.append(regions.flatten()[(maps.flatten() + noise).topk(k).indices].float().mean())
    assert relevance_rank_accuracy(maps, regions).item() == pytest.approx(np.mean(found), abs=0.12)


@many
@cases
def test_mass_accuracy_of_a_divisible_region_equals_that_of_the_enlarged_map(h, w, n, seed):
    maps, _ = draw(h, w, n, seed)
    regions = torch.rand(n, 3 * h, 2 * w, generator=torch.Generator().manual_seed(seed)) > 0.5
    regions[:, 0, 0] = True
    large = maps.repeat_interleave(3, 1).repeat_interleave(2, 2)
    for function in (relevance_mass_accuracy, lift, region_auroc, relevance_rank_accuracy):
        nearly(function(maps, regions), function(large, regions))


@pytest.mark.parametrize("function", LOCALIZATION)
@many
@cases
def test_localization_does_not_depend_on_the_scale(function, h, w, n, seed):
    maps, regions = draw(h, w, n, seed)
    for scale in (1e-30, 0.3, 1e30):
        nearly(function(maps * scale, regions), function(maps, regions))


@pytest.mark.parametrize("function", RANKED)
@many
@cases
def test_ranked_measures_do_not_depend_on_monotone_changes(function, h, w, n, seed):
    maps, regions = draw(h, w, n, seed)
    for change in (torch.square, torch.expm1, lambda m: m + 1):
        nearly(function(change(maps), regions), function(maps, regions))


@pytest.mark.parametrize("function", BOUNDED)
@many
@cases
def test_bounded_measures_stay_within_zero_and_one(function, h, w, n, seed):
    maps, _ = draw(h, w, n, seed)
    shares = torch.rand(n, 2 * h + 1, 3 * w, generator=torch.Generator().manual_seed(seed))
    values = function(maps, shares)
    assert ((values >= 0) & (values <= 1)).all()


@pytest.mark.parametrize("function", BOUNDED)
def test_bounded_measures_of_a_perfect_map_are_one(function):
    nearly(function(UPPER.float(), UPPER), [1.0])


@pytest.mark.parametrize("function", AREA_OF_UNIFORM)
@many
@cases
def test_a_uniform_map_scores_the_area(function, h, w, n, seed):
    _, regions = draw(h, w, n, seed)
    nearly(function(uniform_map(n, (h, w)), regions), regions.float().mean((1, 2)))


@many
@cases
def test_a_uniform_map_has_no_lift_no_skill_and_auroc_one_half(h, w, n, seed):
    _, regions = draw(h, w, n, seed)
    flat = uniform_map(n, (h, w))
    nearly(lift(flat, regions), torch.ones(n))
    nearly(skill(flat, regions), torch.zeros(n))
    nearly(region_auroc(flat, regions), torch.full((n,), 0.5))


@pytest.mark.parametrize("function", LOCALIZATION)
@many
@cases
def test_localization_of_an_image_does_not_depend_on_its_batch(function, h, w, n, seed):
    maps, regions = draw(h, w, n, seed)
    alone = torch.cat([function(m[None], r[None]) for m, r in zip(maps, regions, strict=True)])
    nearly(function(maps, regions), alone)


@pytest.mark.parametrize("function", LOCALIZATION)
def test_localization_is_undefined_for_empty_regions_and_unsound_maps(function):
    maps = MAP.repeat(5, 1, 1)
    maps[1] = 0
    maps[2, 0, 0] = torch.nan
    maps[3, 1, 1] = torch.inf
    regions = UPPER.repeat(5, 1, 1)
    regions[4] = False
    assert function(maps, regions).isnan().tolist() == [False, True, True, True, True]


@pytest.mark.parametrize("function", [skill, region_auroc])
def test_skill_and_auroc_are_undefined_for_a_region_that_covers_everything(function):
    assert function(MAP, torch.ones(1, 2, 2)).isnan().all()


@pytest.mark.parametrize("function", LOCALIZATION)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_localization_of_any_precision_is_float32(function, dtype):
    value = function(MAP.to(dtype), UPPER)
    assert value.dtype == torch.float32
    nearly(value, function(MAP, UPPER))


@pytest.mark.parametrize("function", LOCALIZATION)
def test_localization_leaves_the_ignore_zone_out(function):
    maps = torch.tensor([[[4.0, 1.0, 9.0], [2.0, 1.0, 3.0]]])
    zones = {"allowed": torch.zeros(1, 2, 3, dtype=torch.bool), "ignore": torch.zeros(1, 2, 3, dtype=torch.bool)}
    zones["allowed"][:, 0], zones["ignore"][:, :, 2] = True, True
    nearly(function(maps, Regions.coerce(zones, 1, (2, 3))), function(MAP, UPPER))


@pytest.mark.parametrize("function", LOCALIZATION)
def test_localization_is_undefined_without_annotation_or_mass_that_counts(function):
    masks = torch.zeros(2, 2, dtype=torch.bool)
    masks[0, 0] = True
    blind = {"allowed": masks, "ignore": ~masks & torch.tensor([[True, True], [True, False]])}
    regions = Regions.coerce([None, masks, blind], 3, (2, 2))
    maps = torch.tensor([[[1.0, 2.0], [3.0, 4.0]], [[1.0, 2.0], [3.0, 4.0]], [[0.0, 2.0], [3.0, 0.0]]])
    assert function(maps, regions).isnan().tolist() == [True, False, True]


def test_pointing_game_equals_torchrays_rule_on_the_pixel_grid():
    generator = torch.Generator().manual_seed(0)
    maps = torch.rand(30, 24, 20, generator=generator)
    regions = torch.rand(30, 24, 20, generator=generator) > 0.99
    regions[:, 3, 5] = True
    v, u = torch.meshgrid(torch.arange(24), torch.arange(20), indexing="ij")
    for tolerance in (2, 5, 15):
        expected = []
        for values, mask in zip(maps, regions, strict=True):
            y, x = divmod(int(values.argmax()), 20)
            near = (v - y) ** 2 + (u - x) ** 2 < tolerance**2
            expected.append(float((near & mask).any()))
        assert 0 < sum(expected) <= 30
        nearly(pointing_game(maps, regions, tolerance), expected)


def test_pointing_game_measures_tolerance_in_pixels_of_the_region():
    maps = torch.tensor([[[1.0, 0.0], [0.0, 0.0]]])  # the centre of its cell: pixel corner (8, 8)
    region = torch.zeros(1, 32, 32, dtype=torch.bool)
    region[:, 8, 12] = True  # centre at (8.5, 12.5), so 4.53 away
    hits = [pointing_game(maps, region, tolerance).item() for tolerance in (0, 4.5, 4.6)]
    assert hits == [0, 0, 1]


def test_pointing_game_averages_over_a_plateau():
    nearly(pointing_game(torch.tensor([[[2.0, 2.0], [2.0, 1.0]]]), UPPER), [2 / 3])


def test_localization_baselines_beside_each_other():
    region = torch.zeros(1, 30, 30, dtype=torch.bool)
    region[:, 10:20, 10:20] = True
    centre = centre_prior(1, (6, 6))
    assert pointing_game(centre, region) == 1
    assert relevance_mass_accuracy(centre, region) > relevance_mass_accuracy(uniform_map(1, (6, 6)), region)
    assert centre.amax() == centre[0, 2, 2] and centre.equal(centre.flip(1)) and centre.equal(centre.flip(2))


@pytest.mark.parametrize(("grid", "cells"), [((5, 7), 1), ((5, 4), 2), ((6, 4), 4), ((1, 1), 1)])
def test_centre_point_is_the_middle_cell_or_those_around_the_middle(grid, cells):
    point = centre_point(2, grid)
    assert point.sum((1, 2)).tolist() == [cells, cells] and point.equal(point.flip(1, 2))
    region = torch.zeros(2, 60, 60, dtype=torch.bool)
    region[:, 20:40, 20:40] = True
    assert pointing_game(point, region).eq(1).all()
    if cells < point[0].numel():
        assert pointing_game(point, ~region).eq(0).all()


@pytest.mark.parametrize("function", LOCALIZATION)
@pytest.mark.parametrize("regions", [255 * UPPER.int(), UPPER.float() - 0.5, UPPER / torch.zeros(1)])
def test_localization_refuses_regions_that_are_no_shares(function, regions):
    with pytest.raises(InputError, match=r"regions of bool or of shares in \[0, 1\], got .*pass masks > 0"):
        function(MAP, regions)


def test_map_entropy_is_one_for_uniform_and_zero_for_one_cell():
    one_cell = torch.zeros(1, 3, 5)
    one_cell[0, 1, 2] = 7
    nearly(map_entropy(torch.cat([uniform_map(1, (3, 5)), one_cell, torch.zeros(1, 3, 5)])), [1, 0, torch.nan])
    nearly(map_entropy(torch.tensor([[[1.0, 3.0]]])), [-(0.25 * np.log2(0.25) + 0.75 * np.log2(0.75))])
    assert map_entropy(torch.ones(1, 1, 1)).isnan().all()


@many
@cases
def test_map_similarity_equals_scipy(h, w, n, seed):
    a, _ = draw(h, w, n, seed)
    b, _ = draw(h, w, n, seed + 1)
    a[:, 0, 0] += 5
    b[:, 0, 0] += 5
    pairs = list(zip(a.flatten(1).double(), b.flatten(1).double(), strict=True))
    nearly(map_similarity(a * 1e-25, b), [pearsonr(x, y).statistic for x, y in pairs])
    nearly(map_rank_similarity(a, b), [spearmanr(x, y).statistic for x, y in pairs])


def test_map_similarity_of_a_map_without_contrast_is_undefined():
    flat = uniform_map(1, (2, 2)) * 0.1
    assert map_similarity(MAP, flat).isnan().all() and map_rank_similarity(flat, MAP).isnan().all()


def test_within_class_agreement_is_the_mean_over_the_others():
    maps, labels = torch.rand(5, 3, 3), torch.tensor([0, 0, 1, 0, 2])
    maps[3] = 0
    values = within_class_agreement(maps, labels)
    similar = map_similarity(maps[:1], maps[1:2])
    nearly(values, [similar.item(), similar.item(), torch.nan, torch.nan, torch.nan])
    maps[3] = torch.rand(3, 3)
    expected = (map_similarity(maps[:1], maps[1:2]) + map_similarity(maps[:1], maps[3:4])) / 2
    nearly(within_class_agreement(maps, labels)[:1], expected)


def test_between_class_agreement_is_one_for_a_map_that_ignores_the_class():
    same = torch.rand(2, 1, 4, 4).expand(2, 3, 4, 4)
    nearly(between_class_agreement(same), [1, 1])
    apart = torch.eye(4).view(1, 4, 2, 2)
    nearly(between_class_agreement(apart), [-1 / 3])


def test_runner_up_is_the_best_class_beside_the_label():
    scores = torch.tensor([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0]])
    assert runner_up(scores, torch.tensor([0, 2])).tolist() == [1, 0]


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: relevance_mass_accuracy(torch.ones(2, 2), UPPER), r"expected maps of shape \(N, h, w\), got \(2, 2\)"),
        (lambda: relevance_mass_accuracy(MAP, UPPER.repeat(3, 1, 1)), r"regions of shape \(1, H, W\).*\(3, 2, 2\)"),
        (lambda: relevance_mass_accuracy(-MAP, UPPER), "non-negative maps, got values down to -4.*clamp"),
        (lambda: region_iou(MAP, UPPER, 0), r"threshold in \(0, 1\], got 0"),
        (lambda: map_similarity(MAP, torch.ones(1, 3, 3)), "on one grid"),
        (lambda: within_class_agreement(MAP, torch.zeros(2)), r"labels of shape \(1,\), got \(2,\)"),
        (lambda: between_class_agreement(MAP), "K >= 2"),
    ],
)
def test_metrics_name_what_does_not_fit(call, message):
    with pytest.raises(InputError, match=message):
        call()


def test_metrics_exports_are_sorted_and_exist():
    assert metrics.__all__ == sorted(metrics.__all__)
    assert all(callable(getattr(metrics, name)) for name in metrics.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = metrics.nonsense


def test_metrics_load_nothing_heavy_before_a_class_is_used():
    code = (
        "import sys, camwatch.metrics as m; m.lift; m.insertion_auc;"
        "print(sorted({'torchmetrics', 'scipy', 'torchvision', 'matplotlib'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
