"""What lies on the disk: by size, by anybody's reader, after a kill, a full disk, a resumed run."""

from __future__ import annotations

import json
import math
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
from safetensors import safe_open
from safetensors.torch import load_file

from camwatch import files
from camwatch.archive.reading import read_archive
from camwatch.archive.writing import (
    free_folder,
    snapshot_as_bytes,
    take_over,
    truncate,
    write_end,
    write_run,
    write_snapshot,
)
from camwatch.records import Finding, Pastes, Snapshot
from tests.support.archives import RUN, N, panel_state, same, snapshot, written


def looks(folder):
    return [one.look for one in read_archive(folder).snapshots]


def test_anybodys_safetensors_reads_the_same_arrays(tmp_path):
    (one,) = written(tmp_path, [0])
    held = load_file(tmp_path / "snapshots" / "000000.safetensors")
    assert torch.equal(held["maps/0"], torch.tensor(one.maps["layer4"]))
    assert torch.equal(held["maps/1"], torch.tensor(one.maps["layer3"]))
    assert same(held["measures"].numpy(), np.stack(list(one.per_image.values())))
    assert same(held["top_probabilities"].numpy(), one.top_probabilities)
    assert held["labels"].tolist() == list(range(N))
    assert held["predicted_rows/0"].tolist() == [1, 3]
    assert same(held["pastes"].numpy(), one.pastes.rows)
    assert same(held["paste_chances"].numpy(), one.pastes.chances)
    panel = load_file(tmp_path / "panel.safetensors")
    assert same(panel["images"].numpy(), panel_state()["images"])
    assert panel["regions/allowed"].dtype == torch.bool


def test_header_has_one_text_that_is_json_without_nan(tmp_path):
    finding = Finding("drop", 0, 0, "fell", {"effect": math.nan, "most": math.inf})
    written(tmp_path, [0], {0: [finding]}, cue={"rates": [[math.nan]]})
    with safe_open(tmp_path / "snapshots" / "000000.safetensors", "np") as held:
        assert list(held.metadata()) == ["camwatch"]
        text = held.metadata()["camwatch"]

    def refused(name):
        raise AssertionError(name)

    facts = json.loads(text, parse_constant=refused)
    assert (facts["format"], facts["epoch"], facts["global_step"], facts["look"]) == (2, -1, 0, 0)
    assert facts["findings"][0]["evidence"] == {"effect": None, "most": None}
    assert facts["means"]["of"] == [0, [0, "right"], "blank_maps"]
    assert facts["means"]["mean"] == [0.5, 1.0, 0.33333334]
    assert facts["means"]["low"] == [0.25, None, None]
    assert facts["measures"] == ["correct"]
    assert facts["layers"] == ["layer4", "layer3"]


def test_maps_of_the_predicted_class_are_kept_to_half_a_step_of_255():
    maps = np.array([[[0.0, 3.0], [1.0, 2.0]], [[np.nan] * 2] * 2, [[0.0] * 2] * 2], np.float32)
    from safetensors.numpy import load

    nothing = np.zeros(3, np.int64)
    held = load(snapshot_as_bytes(Snapshot(0, 0, 0, None, nothing, nothing, nothing, predicted_maps={"l": maps})))
    assert held["predicted/0"].tolist() == [[[0, 255], [85, 170]], [[0, 0], [0, 0]]]
    assert held["predicted_rows/0"].tolist() == [0, 2]
    assert held["predicted_scale/0"].tolist() == pytest.approx([3 / 255, 0])


def real_snapshot(maps_of_predicted, pastes=0):
    """As a run has it: 64 images, 7 x 7, one layer, 30 measures under names of the usual length, ten of them split."""
    rng, n = np.random.default_rng(0), 64
    names = [f"{name}_{i}" for name in ("relevance_mass_accuracy", "map_entropy", "swap_region") for i in range(10)]
    keys = names + [f"{name}/{group}" for name in names[:10] for group in ("right", "wrong")]
    top = rng.integers(0, 1000, (n, 5))
    held = None
    if pastes:
        rows = rng.integers(-1, 1000, (pastes, 5))
        held = Pastes(("hide/mean",), np.zeros((1, 4), np.int16), rows, rng.random((pastes, 2)))
    maps = {"layer4": rng.random((n, 7, 7), dtype=np.float32)}
    return Snapshot(
        10, 12_345, 11, 40, top[:, 0], top[:, 0], rng.random(n),
        {name: rng.random(n, dtype=np.float32) for name in names},
        {key: float(rng.random(dtype=np.float32)) for key in keys},
        maps,
        intervals={key: tuple(rng.random(2)) for key in keys},
        predicted_maps=maps if maps_of_predicted else {},
        top_classes=top,
        top_probabilities=rng.random((n, 5), dtype=np.float32),
        pastes=held,
    )  # fmt: skip


def test_sizes_of_snapshots():
    alone, both = (len(snapshot_as_bytes(real_snapshot(with_predicted))) for with_predicted in (False, True))
    assert alone <= 26 * 1024
    assert both <= 30 * 1024
    per_paste = (len(snapshot_as_bytes(real_snapshot(True, 1000))) - both) / 1000
    assert per_paste <= 16


def test_integers_are_as_long_as_their_values_need():
    values = [np.array([0, -1]), np.array([0, 40_000]), np.array([0, 2**40])]
    for array, dtype in zip(values, (np.int16, np.int32, np.int64), strict=True):
        from safetensors.numpy import load

        held = load(snapshot_as_bytes(Snapshot(0, 0, 0, None, array, array, np.zeros(2))))
        assert held["labels"].dtype == dtype
        assert held["labels"].tolist() == array.tolist()


def test_pictures_are_kept_as_given_and_go_with_the_images(tmp_path):
    write_run(tmp_path, RUN, panel_state(), [(b"png", b"jpg"), (b"png1", b"jpg1")])
    assert (tmp_path / "panel" / "000001.png").read_bytes() == b"png1"
    assert (tmp_path / "panel" / "small" / "000000.jpg").read_bytes() == b"jpg"
    write_run(tmp_path, RUN, panel_state(images=None))
    assert not (tmp_path / "panel").exists()
    assert "images" not in load_file(tmp_path / "panel.safetensors")


def test_truncate_removes_later_looks(tmp_path):
    written(tmp_path, range(6))
    truncate(tmp_path, look=4)
    assert looks(tmp_path) == [0, 1, 2, 3]


def test_what_the_end_found_goes_when_the_run_is_continued(tmp_path):
    ended = Finding("level", 1, 20, "low at the end")
    snapshots = written(tmp_path / "old", range(3))
    write_end(tmp_path / "old", [ended])
    assert read_archive(tmp_path / "old").findings == [ended]
    take_over(tmp_path / "old", tmp_path / "old", snapshots[:2])
    assert read_archive(tmp_path / "old").findings == []
    write_end(tmp_path / "old", [ended])
    write_snapshot(tmp_path / "old", snapshot(2))
    assert read_archive(tmp_path / "old").findings == []


def test_take_over_in_a_new_folder_has_the_history_with_maps_and_nothing_after(tmp_path):
    found = Finding("drop", 1, 20, "fell")
    snapshots = written(tmp_path / "old", range(6), {2: [found]})
    written(tmp_path / "new", [])
    take_over(tmp_path / "new", str(tmp_path / "old"), [snapshot(look, maps={}) for look in range(4)], [found])
    run = read_archive(tmp_path / "new")
    assert looks(tmp_path / "new") == [0, 1, 2, 3]
    assert all(same(one.maps, snapshots[one.look].maps) for one in run.snapshots)
    assert run.findings == [found]
    assert looks(tmp_path / "old") == list(range(6))


@pytest.mark.parametrize("damage", ["cut", "gone", "another run's"])
def test_take_over_in_the_same_folder_repairs_one_look_and_keeps_the_maps_of_the_others(tmp_path, damage):
    snapshots = written(tmp_path, range(6))
    file = tmp_path / "snapshots" / "000001.safetensors"
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-1])
    elif damage == "gone":
        file.unlink()
    else:
        write_snapshot(tmp_path, snapshot(1, epoch=77))
    found = Finding("drop", 0, 10, "fell")
    take_over(tmp_path, tmp_path, [snapshot(look, maps={}) for look in range(4)], [found])
    run = read_archive(tmp_path)
    assert [one.look for one in run.snapshots] == [0, 1, 2, 3]
    assert [bool(one.maps) for one in run.snapshots] == [True, False, True, True]
    assert all(same(one.maps, snapshots[one.look].maps) for one in run.snapshots if one.look != 1)
    assert run.findings == [found]


@pytest.mark.parametrize("source", [None, "gone", "another"])
def test_take_over_without_the_old_archive_writes_the_history_and_its_findings(tmp_path, source):
    written(tmp_path / "another", range(3), epoch=77)
    findings = [Finding("drop", 0, 10, "fell"), Finding("probe", 1, 20, "cheats"), Finding("level", 1, 20, "low")]
    written(tmp_path / "new", [])
    history = [snapshot(look, maps={}) for look in range(3)]
    take_over(tmp_path / "new", None if source is None else tmp_path / source, history, findings)
    run = read_archive(tmp_path / "new")
    assert [(one.look, one.epoch) for one in run.snapshots] == [(0, -1), (1, 0), (2, 1)]
    assert run.findings == findings


def test_two_looks_of_one_moment_share_no_finding(tmp_path):
    history = [snapshot(0), snapshot(1, epoch=-1, global_step=0)]
    written(tmp_path, [])
    take_over(tmp_path, None, history, [Finding("drop", -1, 0, "fell")])
    assert len(read_archive(tmp_path).findings) == 1


def test_a_folder_is_free_but_for_the_archive_of_another_run(tmp_path, monkeypatch):
    folder = tmp_path / "camwatch"
    assert free_folder(folder) == folder
    written(folder, [0])
    assert free_folder(folder) == tmp_path / "camwatch_1"
    assert free_folder(folder, str(folder)) == folder
    assert free_folder(folder, tmp_path / "elsewhere") == tmp_path / "camwatch_1"
    monkeypatch.chdir(tmp_path)
    assert free_folder("camwatch", str(folder)) == Path("camwatch")
    (folder / "run.json").unlink()  # snapshots of whatever run
    assert free_folder(folder) == tmp_path / "camwatch_1"


def test_leftovers_of_a_killed_process_are_ignored_and_removed(tmp_path):
    written(tmp_path, range(2))
    for name in (".run.json.tmp", "snapshots/.000002.safetensors.tmp"):
        (tmp_path / name).write_bytes(b"half")
    (tmp_path / "snapshots" / "notes.safetensors").write_bytes(b"mine")
    assert looks(tmp_path) == [0, 1]
    write_run(tmp_path, RUN, panel_state())
    assert not list(tmp_path.rglob("*.tmp"))
    assert (tmp_path / "snapshots" / "notes.safetensors").exists()


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file_and_no_leftover(tmp_path, monkeypatch, call):
    written(tmp_path, [0])
    before = (tmp_path / "snapshots" / "000000.safetensors").read_bytes()

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, call, full)
    with pytest.raises(OSError, match="No space left"):
        write_snapshot(tmp_path, snapshot(0, seed=1))
    monkeypatch.undo()
    assert (tmp_path / "snapshots" / "000000.safetensors").read_bytes() == before
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.parametrize("durable", [True, False])
def test_a_file_reaches_the_disk_where_asked(tmp_path, monkeypatch, durable):
    synced = []
    monkeypatch.setattr(files.os, "fsync", synced.append)
    files.write_whole(tmp_path / "new" / "file", b"content", durable=durable)
    assert (tmp_path / "new" / "file").read_bytes() == b"content"
    assert len(synced) == (2 if durable else 0)  # the file, its folder


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
any_text = st.text(st.characters(), max_size=8)  # halves of surrogate pairs, too


@settings(deadline=None, max_examples=40)
@given(evidence=st.dictionaries(any_text, values, max_size=4), names=st.lists(any_text, min_size=1, unique=True))
def test_text_and_evidence_of_plain_types_pass_unchanged(tmp_path_factory, evidence, names):
    folder = tmp_path_factory.mktemp("archive")
    write_run(folder, {"layers": names}, {"images": None, "ids": names, "class_names": names})
    per_image = {name: np.full(N, i, np.float32) for i, name in enumerate(names)}
    finding = Finding("drop", 0, 0, "".join(names), evidence, title="Δ", since=0)
    write_snapshot(folder, snapshot(0, per_image=per_image, maps={names[0]: np.ones((N, 2, 2))}), [finding])
    run = read_archive(folder)
    assert run.findings == [finding]
    assert run.layers == tuple(names)
    assert run.panel["ids"] == run.panel["class_names"] == names
    assert same(dict(run.snapshots[0].per_image), per_image)
    assert list(run.snapshots[0].maps) == names[:1]


@settings(deadline=None, max_examples=40)
@given(means=st.dictionaries(any_text, st.floats(width=32, allow_nan=False, allow_infinity=False), max_size=6))
def test_panel_means_pass_to_the_last_bit_in_their_order(tmp_path_factory, means):
    means = {key: mean for name, mean in means.items() for key in (name, f"{name}/right", f"layer/{name}")}
    measures = {name: np.zeros(N) for name in list(means)[::2]}
    folder = tmp_path_factory.mktemp("archive")
    written(folder, [0], scalars=means, per_image=measures, intervals={})
    assert list(read_archive(folder).snapshots[0].scalars.items()) == list(means.items())


def test_evidence_of_other_types_becomes_plain(tmp_path):
    evidence = {"p": np.float64(0.5), "n": np.int64(3), "who": np.array([1, 2]), "t": torch.tensor([0.5])}
    evidence |= {"path": Path("a/b"), "size": torch.Size([2]), 7: {1}, "else": 1j}
    written(tmp_path, [0], {0: [Finding("d", -1, 0, "m", evidence)]})
    (found,) = read_archive(tmp_path).findings
    plain = {"p": 0.5, "n": 3, "who": [1, 2], "t": [0.5], "path": "a/b", "size": [2], "7": [1], "else": "1j"}
    assert found.evidence == plain


CHILD = """
import sys, numpy
from tests.support.archives import RUN, panel_state, snapshot, write_run, write_snapshot
from pathlib import Path
folder = Path(sys.argv[1])
write_run(folder, RUN, panel_state())
print("ready", flush=True)
look = 0
while True:
    write_snapshot(folder, snapshot(look, maps={"layer4": numpy.full((200, 14, 14), float(look))}))
    print(look, flush=True)
    look += 1
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_archive_survives_kills_with_at_most_the_last_snapshot_missing(tmp_path):
    in_all = 0
    for k in range(3):
        folder = tmp_path / str(k)
        child = subprocess.Popen([sys.executable, "-c", CHILD, str(folder)], stdout=subprocess.PIPE, text=True)
        assert child.stdout.readline() == "ready\n"
        time.sleep(0.05 + 0.07 * random.Random(k).random())
        child.send_signal(signal.SIGKILL)
        told = [int(line) for line in child.stdout.read().split()]
        child.wait()
        run = read_archive(folder)
        kept = looks(folder)
        assert kept == list(range(len(kept)))
        assert set(told) <= set(kept)
        assert len(kept) <= len(told) + 1
        assert all((one.maps["layer4"] == one.look).all() for one in run.snapshots)
        in_all += len(kept)
    assert in_all > 0
