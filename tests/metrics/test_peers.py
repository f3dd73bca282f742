"""Localization against Quantus where it is right, and against its published formulas where it is not."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

from camwatch.metrics import pointing_game, region_auroc, relevance_mass_accuracy, relevance_rank_accuracy

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    quantus = pytest.importorskip("quantus")

PAIRS = [
    ("RelevanceMassAccuracy", relevance_mass_accuracy),
    ("RelevanceRankAccuracy", relevance_rank_accuracy),
    ("PointingGame", pointing_game),
    ("AUC", region_auroc),
]


def theirs(name: str, maps: torch.Tensor, regions: torch.Tensor) -> np.ndarray:
    metric = getattr(quantus, name)(disable_warnings=True)
    found = metric.evaluate_batch(a_batch=maps[:, None].double().numpy(), s_batch=regions[:, None].numpy())
    return np.asarray(found, dtype=float)


def draw(n: int = 200, h: int = 9, w: int = 13) -> tuple[torch.Tensor, torch.Tensor]:
    """Maps without ties, and regions of every size."""
    generator = torch.Generator().manual_seed(0)
    maps = torch.rand(n, h, w, generator=generator) ** 3
    regions = torch.rand(n, h, w, generator=generator) < torch.linspace(0.02, 0.98, n)[:, None, None]
    regions[:, 0, 0], regions[:, -1, -1] = True, False
    return maps, regions


@pytest.mark.parametrize(("name", "ours"), PAIRS)
def test_localization_equals_quantus_on_the_pixel_grid(name: str, ours: object) -> None:
    maps, regions = draw()
    found = ours(maps, regions).numpy()  # type: ignore[operator]
    np.testing.assert_allclose(found, theirs(name, maps, regions), rtol=1e-6, atol=1e-7)
    assert 0.05 < found.mean() < 0.95, "neither all nor nothing, or the comparison would say little"


# Without the rank accuracy: an enlarged map has ties, which theirs takes in the order of the pixels.
@pytest.mark.parametrize(("name", "ours"), [pair for pair in PAIRS if pair[0] != "RelevanceRankAccuracy"])
def test_localization_equals_quantus_on_upsampled_maps(name: str, ours: object) -> None:
    """A region of whole cells: ours on the layer's grid, theirs on the maps enlarged to the image."""
    maps, coarse = draw(80, 5, 7)
    regions, large = (t.repeat_interleave(6, 1).repeat_interleave(4, 2) for t in (coarse, maps))
    found = ours(maps, regions).numpy()  # type: ignore[operator]
    np.testing.assert_allclose(found, theirs(name, large, regions), rtol=1e-6, atol=1e-7)


# Where Quantus is not right, and what is said here.


def test_pointing_game_of_an_empty_region_is_undefined_where_quantus_has_a_hit() -> None:
    maps, empty = torch.ones(1, 2, 2), torch.zeros(1, 2, 2, dtype=torch.bool)
    assert theirs("PointingGame", maps, empty).tolist() == [1.0]
    assert pointing_game(maps, empty).isnan().all()


def test_pointing_game_of_a_flat_map_is_the_area_where_quantus_has_a_hit() -> None:
    region = torch.zeros(1, 4, 4, dtype=torch.bool)
    region[0, 0, 0] = True
    assert theirs("PointingGame", torch.ones(1, 4, 4), region).tolist() == [1.0]
    assert pointing_game(torch.ones(1, 4, 4), region).tolist() == [1 / 16]


def test_rank_accuracy_of_a_flat_map_is_the_area_where_quantus_goes_by_the_place() -> None:
    upper = torch.zeros(1, 4, 4, dtype=torch.bool)
    upper[:, :1] = True
    flat = torch.ones(1, 4, 4)
    found = [theirs("RelevanceRankAccuracy", flat, region).item() for region in (upper, upper.flip(1))]
    assert found[0] != found[1]
    assert relevance_rank_accuracy(flat, upper) == relevance_rank_accuracy(flat, upper.flip(1)) == 1 / 4


@pytest.mark.filterwarnings("ignore:invalid value")
def test_mass_accuracy_of_a_zero_map_is_undefined_in_both_and_only_here_for_infinite_maps() -> None:
    maps, region = torch.zeros(2, 2, 2), torch.ones(2, 2, 2, dtype=torch.bool)
    maps[1] = torch.inf
    assert np.isnan(theirs("RelevanceMassAccuracy", maps, region)).all()
    assert relevance_mass_accuracy(maps, region).isnan().all()
