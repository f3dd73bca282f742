import copy
import math
import os
import pickle
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from camwatch import files
from camwatch.errors import CamwatchWarning, InputError
from camwatch.panel import Panel
from camwatch.records import Alarm, Snapshot
from camwatch.watch.archive import Archive, load_archive


def snapshot(look, seed=0, **fields):
    generator = torch.Generator().manual_seed(1000 * seed + look)
    n = 5
    described = {
        "epoch": look - 1,
        "global_step": 10 * look,
        "look": look,
        "planned": 9,
        "labels": torch.arange(n),
        "predicted": torch.arange(n).flip(0),
        "probability": torch.rand(n, generator=generator),
        "per_image": {"correct": torch.tensor([1.0, 0.0, math.nan, 1.0, 0.0])},
        "scalars": {"correct": 0.5},
        "maps": {"layer4": torch.rand(n, 3, 4, generator=generator), "layer3": torch.rand(n, 6, 8)},
    }
    return Snapshot(**(described | fields))


def same(a, b):
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a.nan_to_num(-7), b.nan_to_num(-7))
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    return a == b


def written(folder, looks, alarms=None, **fields):
    archive = Archive(folder)
    panel = Panel(torch.rand(5, 3, 8, 8), torch.arange(5))
    archive.write_panel(panel.state_dict(), ["layer4", "layer3"], {"name": "x"})
    snapshots = [snapshot(look, **fields) for look in looks]
    for one in snapshots:
        archive.append(one, (alarms or {}).get(one.look, ()))
    return archive, snapshots


def test_archive_gives_back_what_was_written(tmp_path):
    panel = Panel(torch.rand(2, 3, 8, 8), [0, 1], regions=[[(0, 0, 4, 4)], None], denormalize=(0.5, 0.5))
    alarm = Alarm("drop", 1, 10, "fell", {"effect": 0.2, "worst": ["a", "b"], "interval": (0.1, 0.3)})
    archive = Archive(tmp_path / "run")
    archive.write_panel(panel.state_dict(), ["layer4"], {"name": "camwatch"})
    archive.append(snapshot(0))
    archive.append(snapshot(1, averaged=True), [alarm])
    archive.append(snapshot(2, error="RuntimeError: out of memory", maps={}))
    run = load_archive(tmp_path / "run")
    assert run.layers == ("layer4",)
    assert run.meta == {"name": "camwatch"}
    restored = Panel.from_state(run.panel)
    assert torch.equal(restored.images, panel.images)
    assert torch.equal(restored.regions.allowed, panel.regions.allowed)
    assert run.alarms == [alarm]
    for got, want in zip(run.snapshots, (snapshot(0), snapshot(1, averaged=True)), strict=False):
        for key, value in vars(want).items():
            if key != "maps":
                assert same(vars(got)[key], value), key
        assert same(got.maps["layer4"], want.maps["layer4"])
    assert run.snapshots[2].error == "RuntimeError: out of memory"


def test_archive_files_are_plain_and_hold_no_more_than_what_they_show(tmp_path):
    whole = torch.rand(1000, 3, 4)
    evidence = {"p": np.float64(0.5), "n": np.int64(3), "who": np.array([1, 2])}
    evidence |= {"path": Path("a/b"), "size": torch.Size([2])}
    archive = Archive(tmp_path)
    archive.write_panel({"images": None}, ["l"])
    archive.append(snapshot(0, maps={"l": whole[:2]}), [Alarm("d", 0, 0, "m", evidence)])
    file = tmp_path / "snapshots" / "000000.pt"
    assert file.stat().st_size < 10_000
    held = torch.load(file, weights_only=True)["alarms"][0]["evidence"]
    assert [type(held[key]) for key in ("p", "n", "path", "size")] == [float, int, str, tuple]
    assert held["who"].tolist() == [1, 2]


def test_archive_is_found_from_any_folder_above_it(tmp_path):
    written(tmp_path / "lightning_logs" / "version_0" / "camwatch", [0])
    assert load_archive(tmp_path).path == tmp_path / "lightning_logs" / "version_0" / "camwatch"
    written(tmp_path / "lightning_logs" / "version_1" / "camwatch", [0])
    with pytest.raises(InputError, match=r"2 archives below .*choose one: .*version_0.*version_1"):
        load_archive(tmp_path)
    with pytest.raises(InputError, match="no archive of camwatch in or below"):
        load_archive(tmp_path / "nowhere")


def damage_cut(data):
    return data[: len(data) // 2]


def damage_noise(data):
    return random.Random(0).randbytes(len(data))


def damage_empty(data):
    return b""


def damage_version(data):
    import io

    buffer = io.BytesIO()
    torch.save({"format": 99}, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("damage", [damage_cut, damage_noise, damage_empty, damage_version])
def test_damaged_snapshots_are_skipped_with_one_warning_that_names_them(tmp_path, damage):
    written(tmp_path, range(4))
    for look in (1, 3):
        file = tmp_path / "snapshots" / f"{look:06d}.pt"
        file.write_bytes(damage(file.read_bytes()))
    with pytest.warns(CamwatchWarning, match=r"damaged files .*000001.pt.*000003.pt") as caught:
        run = load_archive(tmp_path)
    assert len(caught) == 1
    assert [s.look for s in run.snapshots] == [0, 2]


def test_damaged_panel_leaves_the_snapshots_readable(tmp_path):
    written(tmp_path, range(2))
    (tmp_path / "panel.pt").write_bytes(b"x")
    with pytest.warns(CamwatchWarning, match="panel.pt"):
        run = load_archive(tmp_path)
    assert (run.panel, run.layers, len(run.snapshots)) == ({}, (), 2)


def test_truncate_removes_later_looks_and_append_does_so_for_a_run_begun_anew(tmp_path):
    archive, _ = written(tmp_path, range(6))
    archive.truncate(look=4)
    assert [s.look for s in load_archive(tmp_path).snapshots] == [0, 1, 2, 3]
    archive.append(snapshot(1))
    assert [s.look for s in load_archive(tmp_path).snapshots] == [0, 1]


def test_take_over_in_a_new_folder_has_the_history_with_maps_and_nothing_after(tmp_path):
    alarm = Alarm("drop", 1, 20, "fell")
    old, snapshots = written(tmp_path / "old", range(6), {2: [alarm]})
    new, _ = written(tmp_path / "new", [])
    new.take_over(str(old.path), [snapshot(look, maps={}) for look in range(4)], [alarm])
    run = load_archive(tmp_path / "new")
    assert [s.look for s in run.snapshots] == [0, 1, 2, 3]
    assert all(same(s.maps["layer4"], snapshots[s.look].maps["layer4"]) for s in run.snapshots)
    assert run.alarms == [alarm]
    assert len(load_archive(tmp_path / "old").snapshots) == 6


def test_take_over_in_the_same_folder_drops_what_came_after_the_checkpoint(tmp_path):
    archive, _ = written(tmp_path, range(6))
    archive.take_over(str(archive.path), [snapshot(look, maps={}) for look in range(3)])
    run = load_archive(tmp_path)
    assert [s.look for s in run.snapshots] == [0, 1, 2]
    assert all(s.maps for s in run.snapshots)


@pytest.mark.parametrize("source", [None, "gone", "another"])
def test_take_over_without_the_old_archive_writes_the_history_and_its_alarms(tmp_path, source):
    written(tmp_path / "another", range(3), epoch=77)
    (tmp_path / "another" / "snapshots" / "000001.pt").write_bytes(b"")
    history = [snapshot(look, maps={}) for look in range(3)]
    alarms = [Alarm("drop", 0, 10, "fell"), Alarm("probe", 1, 20, "cheats"), Alarm("level", 1, 20, "low")]
    new, _ = written(tmp_path / "new", [])
    new.take_over(None if source is None else tmp_path / source, history, alarms)
    run = load_archive(tmp_path / "new")
    assert [(s.look, s.epoch) for s in run.snapshots] == [(0, -1), (1, 0), (2, 1)]
    assert run.alarms == alarms


def test_leftovers_of_a_killed_process_are_ignored_and_removed(tmp_path):
    archive, _ = written(tmp_path, range(2))
    for name in (".panel.pt.tmp", "snapshots/.000002.pt.tmp"):
        (tmp_path / name).write_bytes(b"half")
    (tmp_path / "snapshots" / "notes.pt").write_bytes(b"mine")
    assert len(load_archive(tmp_path).snapshots) == 2
    archive.write_panel({}, [])
    assert not list(tmp_path.rglob("*.tmp"))
    assert (tmp_path / "snapshots" / "notes.pt").exists()


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file_and_no_leftover(tmp_path, monkeypatch, call):
    archive, _ = written(tmp_path, [0])
    before = (tmp_path / "snapshots" / "000000.pt").read_bytes()

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, call, full)
    with pytest.raises(OSError, match="No space left"):
        archive.append(snapshot(0, seed=1))
    monkeypatch.undo()
    assert (tmp_path / "snapshots" / "000000.pt").read_bytes() == before
    assert not list(tmp_path.rglob("*.tmp"))


CHILD = """
import sys, torch
from tests.archive.test_archive import Archive, snapshot
archive = Archive(sys.argv[1])
archive.write_panel({{"labels": torch.arange(5)}}, ["layer4"])
print("ready", flush=True)
look = 0
while True:
    archive.append(snapshot(look, maps={{"layer4": torch.full((200, 14, 14), float(look))}}))
    print(look, flush=True)
    look += 1
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_archive_survives_kills_with_at_most_the_last_snapshot_missing(tmp_path):
    code = CHILD.format()
    written_before = 0
    for k in range(3):
        folder = tmp_path / str(k)
        child = subprocess.Popen([sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, text=True)
        assert child.stdout.readline() == "ready\n"
        time.sleep(0.05 + 0.07 * random.Random(k).random())
        child.send_signal(signal.SIGKILL)
        told = [int(line) for line in child.stdout.read().split()]
        child.wait()
        run = load_archive(folder)
        looks = [s.look for s in run.snapshots]
        assert looks == list(range(len(looks)))
        assert set(told) <= set(looks)
        assert len(looks) <= len(told) + 1
        assert all((s.maps["layer4"] == s.look).all() for s in run.snapshots)
        written_before += len(looks)
    assert written_before > 0


def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux")
def test_reading_an_archive_takes_memory_only_for_the_maps_that_are_looked_at(tmp_path):
    big = {"layer4": torch.rand(64, 64, 64)}
    written(tmp_path, range(60), maps=big)
    before, files = resident(), len(os.listdir("/proc/self/fd"))
    run = load_archive(tmp_path)
    assert resident() - before < 15 * 2**20  # the maps are 60 MB
    assert len(os.listdir("/proc/self/fd")) <= files + 1
    assert torch.equal(run.snapshots[59].maps["layer4"], big["layer4"])


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None, max_examples=30)
@given(evidence=st.dictionaries(st.text(max_size=5), values, max_size=4))
def test_evidence_of_plain_types_passes_unchanged(tmp_path_factory, evidence):
    folder = tmp_path_factory.mktemp("archive")
    archive = Archive(folder)
    archive.write_panel({}, [])
    archive.append(snapshot(0), [Alarm("drop", 0, 0, "m", evidence)])
    assert load_archive(folder).alarms[0].evidence == evidence


def test_archive_is_picklable_and_copied(tmp_path):
    archive, _ = written(tmp_path, [0])
    for other in (copy.deepcopy(archive), pickle.loads(pickle.dumps(archive))):
        assert other.path == archive.path
