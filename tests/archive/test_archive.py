"""An archive: whole files that anybody's safetensors reads, and nothing damaged that goes unnamed."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from camwatch import Finding, Snapshot, load_archive
from camwatch.archive.layout import snapshot_file
from camwatch.archive.reading import read_archive, read_header
from camwatch.archive.writing import (
    free_folder,
    snapshot_as_bytes,
    take_over,
    write_end,
    write_run,
    write_snapshot,
)
from camwatch.errors import CamwatchWarning, InputError
from camwatch.records import Pastes

N, GRID, LAYER = 64, (7, 7), "layer4"


def snapshot(look: int, seed: int = 0, n: int = N, measures: int = 30, **changed: Any) -> Snapshot:
    """A snapshot of random numbers, some of them undefined."""
    generator = torch.Generator().manual_seed(1000 * look + seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator)

    names = [f"{LAYER}/a_measure_of_maps_{k}" for k in range(measures)]
    per_image = {name: draw(n).masked_fill(draw(n) < 0.1, math.nan) for name in names}
    scalars = {key: float(values.nanmean()) for key, values in per_image.items()}
    predicted_maps = draw(n, *GRID).masked_fill((draw(n) < 0.5)[:, None, None], math.nan)
    fields: dict[str, Any] = {
        "labels": torch.arange(n) % 5,
        "predicted": (5 * draw(n)).long(),
        "probability": draw(n),
        "per_image": per_image,
        "scalars": scalars,
        "intervals": {key: (round(value - 0.01, 6), round(value + 0.01, 6)) for key, value in scalars.items()},
        "maps": {LAYER: draw(n, *GRID)},
        "predicted_maps": {LAYER: predicted_maps},
        "top_classes": (1000 * draw(n, 5)).long(),
        "top_probabilities": draw(n, 5),
        "cue": {"box": [0, 0, 8, 8], "rate": 0.5, "rates": [[0.5, None]]},
    }
    return Snapshot(look, 10 * look, look, 20, **(fields | changed))


def finding(look: int, **changed: Any) -> Finding:
    known = {"evidence": {"worst": [3, 1], "name": "ñ ≥ 猫"}, "title": "It fell", "since": look, "key": "drop:fall"}
    return Finding("drop", look, 10 * look, "It fell.", **(known | changed))


def archive(folder: Path, looks: int = 3, **changed: Any) -> list[Snapshot]:
    state = {
        "images": torch.rand(4, 3, 8, 8),
        "labels": torch.arange(4),
        "ids": ["a", "b", "c", "猫"],
        "rgb": (0, 1, 2),
    }
    regions = {"allowed": torch.ones(4, 8, 8, dtype=torch.bool), "ignore": None}
    write_run(folder, {"layers": [LAYER], "size": [8, 8]}, state | {"regions": regions} | changed, [(b"png", b"jpg")])
    written = [snapshot(look) for look in range(looks)]
    for one in written:
        write_snapshot(folder, one, [finding(one.look)] if one.look == 1 else [])
    return written


def assert_same(found: Snapshot, expected: Snapshot) -> None:
    for key, value in vars(expected).items():
        other = getattr(found, key)
        if key == "predicted_maps":  # bytes, for the eye
            assert torch.equal(other[LAYER].isnan(), value[LAYER].isnan())
            assert float((other[LAYER] - value[LAYER]).abs().nan_to_num().max()) <= 0.5 / 255 + 1e-6
        elif isinstance(value, dict) and key != "cue":
            assert list(other) == list(value)
            for name in value:
                assert_equal(other[name], value[name])
        else:
            assert_equal(other, value)


def assert_equal(found: Any, expected: Any) -> None:
    if isinstance(expected, torch.Tensor):
        assert found.dtype == expected.dtype and torch.equal(found.nan_to_num(-7), expected.nan_to_num(-7))
    else:
        assert found == expected


def test_what_was_written_is_read(tmp_path: Path) -> None:
    written = archive(tmp_path)
    write_end(tmp_path, [finding(2, severity="note")])
    run = load_archive(tmp_path)
    assert run.layers == (LAYER,) and run.run["size"] == [8, 8] and run.panel["ids"][3] == "猫"
    assert run.panel["regions"]["allowed"].dtype == torch.bool and run.panel["regions"]["ignore"] is None
    assert len(run.snapshots) == 3 and [s.look for s in run.snapshots[1:]] == [1, 2]
    for found, expected in zip(run.snapshots, written, strict=True):
        assert_same(found, expected)
    assert run.findings == [finding(1), finding(2, severity="note")] and run.alarms == [finding(1)]
    assert (tmp_path / "panel" / "000000.png").read_bytes() == b"png"
    assert (tmp_path / "panel" / "small" / "000000.jpg").read_bytes() == b"jpg"


def test_pastes_take_sixteen_bytes_at_most_and_are_read(tmp_path: Path) -> None:
    rows = torch.randint(0, 50, (1000, 5), dtype=torch.int16)
    pastes = Pastes(("hide/mean",), torch.tensor([[0, 0, 8, 8]], dtype=torch.int16), rows, torch.rand(1000, 2).half())
    plain, with_pastes = (len(snapshot_as_bytes(snapshot(0, pastes=p))) for p in (None, pastes))
    assert (with_pastes - plain - 300) / 1000 <= 16
    write_run(tmp_path, {"layers": [LAYER]}, {})
    write_snapshot(tmp_path, snapshot(0, pastes=pastes), [])
    found = load_archive(tmp_path).snapshots[0].pastes
    assert found is not None and found.probes == ("hide/mean",) and torch.equal(found.rows, rows)
    assert torch.equal(found.chances, pastes.chances) and found.places.tolist() == [[0, 0, 8, 8]]


def test_a_snapshot_is_as_small_as_was_promised() -> None:
    """64 images, a grid of 7 x 7, one layer, 30 measures."""
    assert len(snapshot_as_bytes(snapshot(0, predicted_maps={}))) <= 26 * 1024
    everywhere = {LAYER: torch.rand(N, *GRID)}
    assert len(snapshot_as_bytes(snapshot(0, predicted_maps=everywhere))) <= 30 * 1024


def test_anybody_reads_it(tmp_path: Path) -> None:
    [one] = archive(tmp_path, looks=1)
    found = load_file(snapshot_file(tmp_path, 0))
    assert torch.equal(found["maps/0"], one.maps[LAYER]) and found["measures"].shape == (30, N)
    header_length = int.from_bytes((raw := snapshot_file(tmp_path, 0).read_bytes())[:8], "little")
    said = json.loads(json.loads(raw[8 : 8 + header_length])["__metadata__"]["camwatch"])
    assert said["epoch"] == 0 and said["measures"] == list(one.per_image)
    assert "NaN" not in raw[8 : 8 + header_length].decode()  # a browser's JSON.parse refuses it


def test_reading_loads_no_torch_and_headers_of_a_thousand_take_half_a_second(tmp_path: Path) -> None:
    archive(tmp_path, looks=1)
    first = snapshot_file(tmp_path, 0).read_bytes()
    for look in range(1, 1000):
        snapshot_file(tmp_path, look).write_bytes(first)
    code = (
        "import sys, time\nfrom camwatch.archive.reading import read_archive\nstart = time.process_time()\n"
        f"run = read_archive({str(tmp_path)!r})\nprint(len(run.snapshots), time.process_time() - start)\n"
        "assert run.snapshots[3].labels.dtype.kind == 'i' and run.snapshots[3].maps['layer4'].shape == (64, 7, 7)\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split()[0] == "1000"  # the time is measured by tests/benchmarks/archive.py


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=st.floats(0, 1, exclude_max=True), which=st.sampled_from(["snapshot", "panel", "run", "end"]))
def test_a_file_cut_at_any_byte_is_named_and_skipped(tmp_path: Path, cut: float, which: str) -> None:
    folder = tmp_path / "archive"
    archive(folder, looks=2)
    write_end(folder, [finding(1)])
    files = {"panel": folder / "panel.safetensors", "run": folder / "run.json", "end": folder / "end.json"}
    file = files.get(which, snapshot_file(folder, 1))
    whole = file.read_bytes()
    file.write_bytes(whole[: int(cut * len(whole))])
    with pytest.warns(CamwatchWarning, match=f"skipped damaged files.*{file.name}"):
        run = read_archive(folder)
    assert len(run.snapshots) == (1 if which == "snapshot" else 2)


def test_a_newer_format_and_garbage_are_named(tmp_path: Path) -> None:
    archive(tmp_path, looks=2)
    snapshot_file(tmp_path, 0).write_bytes(b"\xff" * 64)
    newer = snapshot_file(tmp_path, 1)
    newer.write_bytes(newer.read_bytes().replace(b'{\\"format\\":2', b'{\\"format\\":3'))
    with pytest.warns(CamwatchWarning, match=r"000000.*header is longer.*000001.*format 3 is newer than this camwatch"):
        assert not len(load_archive(tmp_path).snapshots)
    with pytest.raises(ValueError, match="longer than"):
        read_header(snapshot_file(tmp_path, 0))


def test_the_only_archive_below_a_folder_is_found(tmp_path: Path) -> None:
    archive(tmp_path / "version_0" / "camwatch", looks=1)
    assert load_archive(tmp_path).path == tmp_path / "version_0" / "camwatch"
    archive(tmp_path / "version_1" / "camwatch", looks=1)
    with pytest.raises(InputError, match=r"2 archives below .*choose one: .*version_0.*version_1"):
        load_archive(tmp_path)
    with pytest.raises(InputError, match="no archive of camwatch in or below"):
        load_archive(tmp_path / "nothing")


@pytest.mark.parametrize("elsewhere", [False, True])
def test_repairing_one_damaged_look_keeps_all_others_with_their_maps(tmp_path: Path, elsewhere: bool) -> None:
    written = archive(source := tmp_path / "before", looks=4)
    write_end(source, [finding(3)])
    snapshot_file(source, 1).write_bytes(b"damaged")
    folder = tmp_path / "after" if elsewhere else source
    if elsewhere:
        write_run(folder, {"layers": [LAYER]}, {})
    history = [Snapshot(**(vars(one) | {"maps": {}, "predicted_maps": {}})) for one in written]
    take_over(folder, source, history[:3], [finding(1)])
    run = load_archive(folder)
    assert [s.look for s in run.snapshots] == [0, 1, 2] and [bool(s.maps) for s in run.snapshots] == [True, False, True]
    assert run.findings == [finding(1)]  # with the damaged look, and nothing of an end that was none


def test_a_snapshot_after_the_end_takes_back_what_the_end_found(tmp_path: Path) -> None:
    archive(tmp_path, looks=1)
    write_end(tmp_path, [finding(0)])
    assert len(load_archive(tmp_path).findings) == 1
    write_snapshot(tmp_path, snapshot(1), [])
    assert load_archive(tmp_path).findings == []


def test_a_folder_with_another_runs_archive_is_not_free(tmp_path: Path) -> None:
    folder = tmp_path / "camwatch"
    assert free_folder(folder) == folder
    archive(folder, looks=1)
    assert free_folder(folder) == tmp_path / "camwatch_1"
    assert free_folder(folder, str(folder.absolute())) == folder


def test_half_written_files_of_a_killed_process_are_removed(tmp_path: Path) -> None:
    archive(tmp_path, looks=1)
    leftovers = [tmp_path / ".run.json.tmp", tmp_path / "snapshots" / ".000001.safetensors.tmp"]
    for file in leftovers:
        file.write_bytes(b"half")
    assert len(load_archive(tmp_path).snapshots) == 1
    write_run(tmp_path, {"layers": [LAYER]}, {})
    assert not any(file.exists() for file in leftovers)


@pytest.mark.parametrize("call", ["replace", "fsync"])
def test_a_write_that_fails_leaves_the_old_file_and_no_leftover(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    archive(tmp_path, looks=1)
    before = snapshot_file(tmp_path, 0).read_bytes()

    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(f"camwatch.files.os.{call}", full)
    with pytest.raises(OSError, match="No space left"):
        write_snapshot(tmp_path, snapshot(0, seed=1), [])
    monkeypatch.undo()
    assert snapshot_file(tmp_path, 0).read_bytes() == before
    assert not list(tmp_path.rglob("*.tmp"))


CHILD = """
import sys, torch
from pathlib import Path
from tests.archive.test_archive import LAYER, snapshot, write_run, write_snapshot
write_run(Path(sys.argv[1]), {"layers": [LAYER]}, {})
print("ready", flush=True)
for look in range(10_000):
    write_snapshot(Path(sys.argv[1]), snapshot(look), [])
    print(look, flush=True)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_archive_survives_kills_with_at_most_the_last_snapshot_missing(tmp_path: Path) -> None:
    for k in range(3):
        folder = tmp_path / str(k)
        child = subprocess.Popen([sys.executable, "-c", CHILD, str(folder)], stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None and child.stdout.readline() == "ready\n"
        time.sleep(0.1 + 0.05 * k)
        child.kill()
        told = [int(line) for line in child.stdout.read().split()]
        run = load_archive(folder)
        assert len(run.snapshots) in (len(told), len(told) + 1) and len(told) > 0
        assert np.array_equal([s.look for s in run.snapshots], range(len(run.snapshots)))
