"""The table of probes, line by line: whatever is added to it is tested here."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from camwatch.panel.panel import Panel
from camwatch.probes.composing import PredictScores
from camwatch.probes.table import PROBES, Asked, Ledger, ProbeLine, measure_probes


def panel(n: int = 12, classes: int = 3, seed: int = 0) -> Panel:
    """Boxes anywhere, of any size; some images without one."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(n, 3, 12, 12, generator=generator)
    masks: list[Tensor | None] = []
    for i in range(n):
        (y1, y2), (x1, x2) = (sorted(torch.randperm(13, generator=generator)[:2].tolist()) for _ in range(2))
        mask = torch.zeros(12, 12, dtype=torch.bool)
        mask[y1:y2, x1:x2] = True
        masks.append(mask if i % 5 else None)
    return Panel(images, torch.arange(n) % classes, regions=masks)


def linear(seed: int, classes: int = 3) -> PredictScores:
    weights = torch.randn(3 * 12 * 12, classes, generator=torch.Generator().manual_seed(seed))
    return lambda images: (images.flatten(1) - 0.5) @ weights


def first_name(line: ProbeLine) -> str:
    return line.measures[0].name


@pytest.mark.parametrize("line", PROBES, ids=first_name)
@given(seed=st.integers(0, 1000), grid=st.tuples(st.integers(1, 12), st.integers(1, 12)), classes=st.integers(1, 4))
@settings(max_examples=20, deadline=None)
def test_every_line_gives_its_measures_within_their_ranges(
    line: ProbeLine, seed: int, grid: tuple[int, int], classes: int
) -> None:
    asked = panel(classes=classes, seed=seed)
    before = torch.get_rng_state()
    found = line.run(Asked(linear(seed, classes), asked, grid))
    assert torch.equal(before, torch.get_rng_state())
    assert set(found) == {measure.name for measure in line.measures}
    for measure in line.measures:
        values = found[measure.name]
        known = values[values.isfinite()]
        assert values.shape == (12,) and values.dtype == torch.float32 and not values.isinf().any()
        assert measure.low is None or bool((known >= measure.low).all())
        assert measure.high is None or bool((known <= measure.high).all())
        assert measure.of == "model" and {"labels", "regions", "probes"} <= measure.needs
        assert values[::5].isnan().all()  # without a region nothing can be asked


@pytest.mark.parametrize("line", PROBES, ids=first_name)
def test_every_line_asks_the_same_in_any_batches_and_again(line: ProbeLine) -> None:
    once, again = (line.run(Asked(linear(0), panel(), (3, 3), batch_size=size)) for size in (64, 5))
    for name, values in once.items():
        torch.testing.assert_close(again[name], values, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("line", PROBES, ids=first_name)
def test_a_model_of_no_finite_scores_is_never_right(line: ProbeLine) -> None:
    found = line.run(Asked(lambda images: linear(0)(images) * math.nan, panel(), (3, 3)))
    for name, values in found.items():
        if name != "swaps":
            assert not (values > 0).any(), name


def test_what_could_be_asked_of_no_image_is_left_out() -> None:
    whole = Panel(torch.rand(4, 3, 12, 12), [0, 1, 0, 1], regions=torch.ones(4, 12, 12, dtype=torch.bool))
    assert measure_probes(Asked(linear(0), whole, (3, 3))) == {}


def test_what_was_hidden_and_answered_is_kept() -> None:
    ledger, given = Ledger(), panel()
    predict = linear(0)
    found = measure_probes(Asked(predict, given, (12, 12), ledger=ledger))["hide"]
    pastes = ledger.pastes()
    assert pastes is not None and pastes.probes == ("hide/mean", "hide/border")
    assert pastes.rows[:, 2].eq(-1).all() and pastes.chances[:, 1].isnan().all()  # nobody gave anything
    assert given.labels is not None
    for i in found.isfinite().nonzero().flatten().tolist():
        [mean, border] = pastes.rows[pastes.rows[:, 1] == i].tolist()
        assert float(found[i]) == (mean[4] == border[4] == int(given.labels[i]))
        x1, y1, x2, y2 = pastes.places[mean[3]].tolist()
        image = given.images[i].clone()
        keep = torch.ones(12, 12, dtype=torch.bool)
        keep[y1:y2, x1:x2] = False
        image[:, ~keep] = image[:, keep].mean(1)[:, None]
        chance = predict(image[None]).softmax(1)[0]
        row = int((pastes.rows[:, 1] == i).nonzero()[0])
        assert float(pastes.chances[row, 0]) == pytest.approx(float(chance[given.labels[i]]), abs=1e-3)
        assert mean[4] == int(chance.argmax())


def test_without_pastes_there_is_nothing_to_keep() -> None:
    assert Ledger().pastes() is None
