"""The history of a run is a list of its records, whatever of it lies in memory."""

import dataclasses
import gc
import pickle
import tempfile
import warnings
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from camwatch.records import Snapshot
from camwatch.watch.history import History


def record(k: int) -> Snapshot:
    g = torch.Generator().manual_seed(k)
    values = torch.rand(4, generator=g)
    values[k % 4] = torch.nan
    return Snapshot(
        epoch=k,
        global_step=10 * k,
        look=k,
        planned=None,
        labels=torch.arange(4),
        predicted=torch.randint(4, (4,), generator=g),
        probability=torch.rand(4, generator=g),
        per_image={"relevance_mass_accuracy": values, "4/map_mass": values.flip(0)},
        scalars={"correct": k / 7},
        error="it failed" if k == 3 else None,
    )


def assert_same(found: Snapshot, wanted: Snapshot) -> None:
    assert found.error == wanted.error
    numbers = [{k: v for k, v in vars(one).items() if k not in ("error", "planned")} for one in (found, wanted)]
    torch.testing.assert_close(*numbers, rtol=0, atol=0, equal_nan=True)


@given(st.integers(0, 12), st.integers(1, 6), st.slices(12))
def test_reads_as_the_list_of_its_records(n: int, recent: int, where: slice) -> None:
    wanted = [record(k) for k in range(n)]
    history = History(wanted, recent)
    assert len(history) == n and bool(history) == bool(wanted)
    for found, one in zip(history, wanted, strict=True):
        assert_same(found, one)
    for found, one in zip(history[where], wanted[where], strict=True):
        assert_same(found, one)
    for k in range(-n, n):
        assert_same(history[k], wanted[k])
    for beyond in (n, -n - 1):
        with pytest.raises(IndexError):
            history[beyond]


def test_goes_through_pickle_and_each_copy_goes_on_by_itself() -> None:
    history = History(map(record, range(5)), recent=2)
    copy = pickle.loads(pickle.dumps(history))
    history.append(record(5))
    copy.append(record(6))
    assert [one.epoch for one in history] == [0, 1, 2, 3, 4, 5]
    assert [one.epoch for one in copy] == [0, 1, 2, 3, 4, 6]


def test_values_that_require_grad_are_taken_without() -> None:
    one = dataclasses.replace(record(0), probability=torch.ones(4, requires_grad=True))
    found = History([one, record(1)], recent=1)[0]
    assert not found.probability.requires_grad and torch.equal(found.probability, torch.ones(4))


def test_memory_holds_the_last_records_only() -> None:
    kept = [record(k) for k in range(9)]
    history = History(kept, recent=3)
    assert [found is one for found, one in zip(history, kept, strict=True)] == [False] * 6 + [True] * 3


@pytest.mark.parametrize("written", [0, 7], ids=["nothing is written", "a part is written"])
def test_full_disk_loses_nothing(monkeypatch: pytest.MonkeyPatch, written: int) -> None:
    class Full:
        """A file on a disk that is full for the first three attempts."""

        def __init__(self) -> None:
            self.file, self.attempts = original(buffering=0), 0

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

        def write(self, data: bytes) -> int:
            self.attempts += 1
            if self.attempts > 3:
                return self.file.write(data)
            if written:
                return self.file.write(data[:written])
            raise OSError(28, "No space left on device")

    original = tempfile.TemporaryFile
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **_: Full())
    wanted = [record(k) for k in range(8)]
    history = History(recent=2)
    for k, one in enumerate(wanted):
        history.append(one)
        for found, before in zip(history, wanted[: k + 1], strict=True):
            assert_same(found, before)
    assert history[5] is not wanted[5] and history[6] is wanted[6]  # made up for when there was room again


def test_file_goes_with_the_history() -> None:
    history = History(map(record, range(5)), recent=2)
    file = history._file
    assert file is not None and not file.closed
    with warnings.catch_warnings():
        warnings.simplefilter("error", ResourceWarning)
        del history
        gc.collect()
    assert file.closed
