"""The table of numbers about maps, line by line: whatever is added to it is tested here."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from camwatch.metrics import localization
from camwatch.metrics.table import AUDITED, LEAST_CEILING, LINES, NAMES, WATCHED, measure_maps
from camwatch.records import Measure
from camwatch.regions import Regions

MEASURES = [measure for measure, _ in LINES]
BY_NAME = {measure.name: measure for measure in MEASURES}


def named(measure: Measure) -> str:
    return measure.name


def boxes(n: int, size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Random boxes as masks (n, H, W)."""
    masks = torch.zeros(n, *size, dtype=torch.bool)
    for mask in masks:
        (y1, y2), (x1, x2) = (sorted(torch.randperm(side + 1, generator=generator)[:2].tolist()) for side in size)
        mask[y1:y2, x1:x2] = True
    return masks


@st.composite
def cases(draw: st.DrawFn) -> tuple[Tensor, Regions | None, Tensor | None]:
    """Maps of any grid, blank and broken ones among them; regions with any of the zones, or none; a reference."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    n, grid = draw(st.integers(1, 5)), (draw(st.integers(1, 6)), draw(st.integers(1, 6)))
    size = (draw(st.integers(grid[0], 20)), draw(st.integers(grid[1], 20)))
    maps = torch.rand(n, *grid, generator=generator) * 10.0 ** draw(st.integers(-6, 6))
    if draw(st.booleans()):
        maps = maps.mul(3 / maps.max()).floor()  # ties
    if draw(st.booleans()):
        maps[0] = draw(st.sampled_from([0.0, math.nan, math.inf]))
    reference = torch.rand(n, *grid, generator=generator) if draw(st.booleans()) else None
    if draw(st.booleans()):
        return maps, None, reference
    allowed, *others = (boxes(n, size, generator) for _ in range(3))
    forbidden, ignore = (zone if draw(st.booleans()) else None for zone in others)
    left = allowed.clone()
    for zone in (forbidden, ignore):
        left &= True if zone is None else ~zone
    return maps, Regions(allowed, forbidden, ignore, left.flatten(1).any(1)), reference


@given(cases())
@settings(max_examples=150, deadline=None)
def test_every_line_keeps_its_range_and_its_needs(case: tuple[Tensor, Regions | None, Tensor | None]) -> None:
    maps, regions, reference = case
    found = measure_maps(maps, regions, reference)
    there = {"reference"} if reference is not None else set()
    there |= set() if regions is None else {"regions", *(() if regions.forbidden is None else ("forbidden",))}
    assert set(found) == {measure.name for measure in MEASURES if measure.needs <= there}
    sound = maps.flatten(1).isfinite().all(1)
    for name, values in found.items():
        measure = BY_NAME[name]
        assert values.shape == (len(maps),) and values.dtype == torch.float32, name
        known = values[sound & values.isfinite()]
        assert measure.low is None or bool((known >= measure.low - 1e-5).all()), name
        assert measure.high is None or bool((known <= measure.high + 1e-5).all()), name
        assert not values[sound].isinf().any(), name
        if "regions" in measure.needs and regions is not None:
            assert values[~regions.annotated].isnan().all() or name.startswith("forbidden"), name


@given(cases(), st.data())
@settings(max_examples=75, deadline=None)
def test_a_line_is_of_its_image_and_of_no_other_line(
    case: tuple[Tensor, Regions | None, Tensor | None], data: st.DataObject
) -> None:
    maps, regions, reference = case
    together = measure_maps(maps, regions, reference)
    order = torch.tensor(data.draw(st.permutations(range(len(maps)))))
    turned = None if reference is None else reference[order]
    moved = measure_maps(maps[order], None if regions is None else regions[order], turned)
    for name, values in together.items():
        [alone] = measure_maps(maps, regions, reference, [name]).values()
        torch.testing.assert_close(alone, values, rtol=0, atol=0, equal_nan=True)
        torch.testing.assert_close(moved[name], values[order], equal_nan=True)


def whole_cells() -> Regions:
    """Regions of whole cells of a 4 x 4 grid, of three sizes."""
    allowed = torch.zeros(3, 8, 8, dtype=torch.bool)
    allowed[0, 2:4, 2:4] = allowed[1, :4, 2:8] = allowed[2, 2:, :6] = True
    forbidden = torch.zeros(3, 8, 8, dtype=torch.bool)
    forbidden[:, 6:, 6:] = True
    return Regions(allowed, forbidden)


@pytest.mark.parametrize("measure", [one for one in MEASURES if one.uninformative is not None], ids=named)
def test_a_map_that_says_nothing_has_the_value_that_is_stated(measure: Measure) -> None:
    everywhere, first = torch.full((3, 4, 4), 0.7), torch.rand(3, 4, 4, generator=torch.Generator().manual_seed(0))
    # Where more is not better, saying nothing is to be blank, or still to be the map that the run began with.
    silent = [everywhere] if measure.better else [everywhere, torch.zeros(3, 4, 4), first]
    found = [measure_maps(maps, whole_cells(), first) for maps in silent]
    value = measure.uninformative
    stated = [one[value] if isinstance(value, str) else torch.full((3,), value) for one in found]
    pairs = zip(found, stated, strict=True)
    assert any(torch.allclose(one[measure.name], expected, atol=1e-6) for one, expected in pairs)


@pytest.mark.parametrize("measure", MEASURES, ids=named)
def test_a_blank_map_is_undefined_and_never_scored(measure: Measure) -> None:
    [values] = measure_maps(torch.zeros(3, 4, 4), whole_cells(), torch.rand(3, 4, 4), [measure.name]).values()
    of_the_regions = ("region_area", "region_ceiling", "forbidden_area", "centre_mass_accuracy", "centre_pointing_game")
    if measure.name not in of_the_regions and measure.name != "map_mass":
        assert values.isnan().all()


@pytest.mark.parametrize(
    "name", ["relevance_mass_accuracy", "relevance_rank_accuracy", "pointing_game", "region_iou", "region_auroc"]
)
@pytest.mark.parametrize("ignored", [False, True])
def test_lines_that_share_pooled_regions_equal_the_functions(name: str, ignored: bool) -> None:
    regions = whole_cells()
    ignore = torch.zeros_like(regions.allowed)
    ignore[:, :3, 5:] = True
    regions = Regions(regions.allowed, ignore=ignore if ignored else None)
    maps = torch.rand(3, 4, 4, generator=torch.Generator().manual_seed(1))
    assert torch.equal(measure_maps(maps, regions)[name], getattr(localization, name)(maps, regions))


def test_lift_and_skill_equal_the_functions_where_cells_are_whole() -> None:
    maps, regions = torch.rand(3, 4, 4, generator=torch.Generator().manual_seed(1)), whole_cells()
    found = measure_maps(maps, regions)
    torch.testing.assert_close(found["lift"], localization.lift(maps, regions))
    torch.testing.assert_close(found["skill"], localization.skill(maps, regions))


def test_mass_is_undefined_where_the_grid_cannot_resolve_the_region() -> None:
    small = torch.zeros(2, 8, 8, dtype=torch.bool)
    small[0, 0, 0] = small[1, 0, :2] = True  # a quarter and half of a cell
    found = measure_maps(torch.ones(2, 4, 4), Regions(small))
    assert found["region_ceiling"].tolist() == [0.25, LEAST_CEILING]
    for name in ("relevance_mass_accuracy", "centre_mass_accuracy", "lift", "skill"):
        assert found[name].isnan().tolist() == [True, False], name


def test_a_region_of_the_whole_image_has_no_skill() -> None:
    whole = Regions(torch.ones(1, 4, 4, dtype=torch.bool))
    found = measure_maps(torch.rand(1, 2, 2), whole)
    assert found["skill"].isnan().all() and found["relevance_mass_accuracy"].tolist() == [1.0]


def test_a_forbidden_zone_is_measured_on_the_images_that_have_one() -> None:
    regions = whole_cells()
    assert regions.forbidden is not None
    regions.forbidden[1] = False
    found = measure_maps(torch.ones(3, 4, 4), regions)
    for name in ("forbidden_mass", "forbidden_area"):
        assert found[name][[0, 2]].tolist() == [1 / 16, 1 / 16] and found[name][1].isnan()


def test_every_line_is_in_the_audit_or_in_snapshots() -> None:
    assert {*AUDITED, *WATCHED} == set(NAMES) and list(AUDITED) == [name for name in NAMES if name in AUDITED]
    assert all("reference" not in BY_NAME[name].needs for name in AUDITED)  # an audit has none
