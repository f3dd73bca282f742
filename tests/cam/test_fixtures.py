"""Every method's maps of five tiny nets are what they were when the maps were stored."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from camwatch import methods
from tests.support.tiny_nets import maps, stored, tiny_nets

STORED = stored()
# Noise of which processors differ in the last bits, which this net enlarges to 3e-6; "random" is nothing but noise.
NOISE = ("vit smoothgrad", *(f"{net} random" for net in tiny_nets()))


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    return dict(maps())


def test_what_is_stored_is_of_every_net_and_method() -> None:
    assert set(STORED) <= {f"{net} {method}" for net in tiny_nets() for method in methods()}
    assert {key.split()[0] for key in STORED} == set(tiny_nets())
    given = {key.split()[1] for key, value in STORED.items() if not isinstance(value, str) and value.any()}
    assert len(STORED) == 140 and len(given) == 28  # each gives a map of one net at least, and no blank one


@pytest.mark.parametrize("key", STORED)
def test_maps_are_those_that_are_stored(key: str, found: dict[str, Any]) -> None:
    before, now = STORED[key], found[key]
    if isinstance(before, str) or isinstance(now, str):
        assert now == before  # which error was raised
        return
    assert now.shape == before.shape and now.dtype == before.dtype
    if key not in NOISE:
        assert float((now - before).abs().max()) <= 1e-6 * float(before.abs().max())


def test_weights_are_formulas() -> None:
    torch.manual_seed(1)
    first = tiny_nets()
    torch.manual_seed(2)
    for net, images in first.values():
        assert images.dtype == torch.float64 and not net.training
    for (one, _), (other, _) in zip(first.values(), tiny_nets().values(), strict=True):
        assert all(
            torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True)
        )
