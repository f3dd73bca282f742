import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from camwatch.pictures.film_sheet import COLUMNS
from camwatch.pictures.sheets import SheetImages
from camwatch.watch.film_strip import FilmStrip, shown_columns
from tests.support.pictures import rand, strip_of


@settings(deadline=None, max_examples=50)
@given(count=st.integers(1, 3000))
def test_columns_hold_first_and_last_evenly_spaced_and_grow_from_the_columns_before(count):
    columns = shown_columns(count)
    assert len(columns) <= COLUMNS
    assert columns[0] == 0
    assert columns[-1] == count - 1
    steps = np.diff(columns[:-1])
    assert len(set(steps)) <= 1
    assert len(columns) >= min(count, COLUMNS // 2)
    # What is shown now was kept before, or is new.
    assert set(columns) <= {*(shown_columns(count - 1) if count > 1 else ()), count - 1}


def test_film_strip_keeps_bounded_raw_copies():
    strip, maps = FilmStrip(), torch.rand(64, 200, 300)
    for k in range(50):
        strip.add(k, k, maps, torch.ones(64, dtype=torch.bool))
    assert len(strip.frames) <= COLUMNS
    assert all(frame.maps.shape == (16, 96, 96) for frame in strip.frames)
    assert all(frame.maps.untyped_storage().nbytes() == 16 * 96 * 96 * 4 for frame in strip.frames)
    small = torch.rand(3, 5, 7)
    strip = strip_of([small])
    small_before = small.clone()
    small += 1
    assert torch.equal(strip.frames[0].maps, small_before)


@pytest.mark.parametrize("stop", [1, 7, 12, 13, 30])
def test_film_strip_resumed_is_the_film_strip_uninterrupted(stop, tmp_path):
    maps = rand(40, 4, 6, 5)
    correct = rand(40, 4, seed=3) < 0.5
    whole, first = FilmStrip(), FilmStrip()
    for k in range(40):
        whole.add(k, 3 * k, maps[k], correct[k])
        if k < stop:
            first.add(k, 3 * k, maps[k], correct[k])
    torch.save(first.state_dict(), tmp_path / "state.pt")
    resumed = FilmStrip()
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for k in range(stop, 40):
        resumed.add(k, 3 * k, maps[k], correct[k])
    images = SheetImages(rand(4, 3, 40, 30))
    assert [frame.epoch for frame in resumed.frames] == [frame.epoch for frame in whole.frames]
    assert torch.equal(resumed.render(images), whole.render(images))


def test_film_strip_frames_handed_out_do_not_change():
    strip = strip_of([torch.rand(2, 3, 3)] * 20)
    frames = strip.frames
    epochs = [frame.epoch for frame in frames]
    strip.add(99, 99, torch.rand(2, 3, 3))
    assert [frame.epoch for frame in frames] == epochs
