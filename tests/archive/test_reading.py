"""An archive is read whole, and what is damaged in it is named and left out, whatever the damage."""

from __future__ import annotations

import json
import os
import pickle
import random
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load, save

from camwatch.archive.reading import LONGEST_HEADER, read_archive
from camwatch.archive.tensors import load_archive
from camwatch.archive.writing import write_end, write_run, write_snapshot
from camwatch.errors import CamwatchWarning, InputError
from camwatch.panel.panel import Panel
from camwatch.records import Finding, Snapshot
from tests.support.archives import RUN, N, panel_state, same, snapshot, written

FINDING = Finding("drop", 1, 10, "fell", {"effect": 0.2, "worst": ["a", "ü"]}, "question", "title", "next", "key", 1)


def test_archive_gives_back_what_was_written(tmp_path):
    failed = {"error": "RuntimeError: out of memory", "maps": {}, "predicted_maps": {}, "per_image": {}, "scalars": {}}
    failed |= {"intervals": {}, "top_classes": None, "top_probabilities": None, "pastes": None, "cue": None}
    given = [snapshot(0), snapshot(1, averaged=True, planned=None), snapshot(2, **failed)]
    write_run(tmp_path, RUN, panel_state())
    for one in given:
        write_snapshot(tmp_path, one, [FINDING] if one.look == 1 else [])
    write_end(tmp_path, [Finding("level", 1, 20, "low")])
    run = read_archive(tmp_path)
    assert run.path == tmp_path
    assert run.layers == ("layer4", "layer3")
    assert run.run == {"format": 2, **RUN}
    assert run.findings == [FINDING, Finding("level", 1, 20, "low")]
    assert run.alarms == run.findings[1:]
    for got, want in zip(run.snapshots, given, strict=True):
        for key, value in vars(want).items():
            if key != "predicted_maps":
                assert same(getattr(got, key), value), key
    maps, close = given[0].predicted_maps["layer4"], run.snapshots[0].predicted_maps["layer4"]
    np.testing.assert_allclose(close, maps, atol=np.nanmax(maps) / 510 * 1.001)
    assert np.isnan(close[::2]).all()


def test_load_archive_has_tensors_that_are_written_to_without_touching_the_disk(tmp_path):
    panel = Panel(torch.rand(N, 3, 8, 8), torch.arange(N), [[(0, 0, 4, 4)]] * 4 + [None], "abcde", denormalize=(0.5, 2))
    write_run(tmp_path, RUN, panel.state_dict())
    write_snapshot(tmp_path, snapshot(0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run = load_archive(tmp_path)
        restored, one = Panel.from_state(run.panel), run.snapshots[0]
        one.maps["layer4"].zero_()
    assert torch.equal(restored.images, panel.images)
    assert torch.equal(restored.labels, panel.labels)
    assert restored.labels.dtype == torch.int64
    for zone, mask in panel.regions.state_dict().items():
        assert same(getattr(restored.regions, zone), mask), zone
    told = ("class_names", "ids", "denormalize", "rgb")
    assert all(getattr(restored, key) == getattr(panel, key) for key in told)
    assert one.labels.dtype == one.top_classes.dtype == torch.int64
    assert one.probability.dtype == one.per_image["correct"].dtype == torch.float32
    assert same(one.pastes.chances, snapshot(0).pastes.chances)
    assert same(run.snapshots[0].maps["layer4"], snapshot(0).maps["layer4"])


def test_archive_without_stored_images_says_so(tmp_path):
    write_run(tmp_path, RUN, panel_state(images=None, regions=None, labels=None))
    panel = read_archive(tmp_path).panel
    assert panel["images"] is panel["regions"] is panel["labels"] is None
    assert panel["ids"] == [str(i) for i in range(N)]


def test_values_that_are_not_finite_pass_unchanged(tmp_path):
    odd = np.array([np.nan, np.inf, -np.inf, 0, -0.0], np.float32)
    maps = np.tile(odd, (N, 3, 1))
    written(tmp_path, [0], per_image={"odd": odd}, probability=odd, maps={"l": maps}, predicted_maps={"l": maps})
    one = read_archive(tmp_path).snapshots[0]
    assert same(one.per_image["odd"], odd)
    assert same(one.probability, odd)
    assert same(one.maps["l"], maps)
    assert np.isnan(one.predicted_maps["l"]).all()


def test_tensors_of_any_kind_are_written(tmp_path):
    maps = torch.rand(1000, 3, 4, dtype=torch.bfloat16, requires_grad=True)
    written(tmp_path, [0], maps={"l": maps[:N].transpose(1, 2)}, labels=torch.arange(N), predicted_maps={}, pastes=None)
    assert (tmp_path / "snapshots" / "000000.safetensors").stat().st_size < 5_000  # no more than what is shown
    kept = load_archive(tmp_path).snapshots[0].maps["l"]
    assert torch.equal(kept, maps[:N].transpose(1, 2).float())


def test_archive_is_found_from_any_folder_above_it(tmp_path):
    written(tmp_path / "lightning_logs" / "version_0" / "camwatch", [0])
    assert read_archive(tmp_path).path == tmp_path / "lightning_logs" / "version_0" / "camwatch"
    written(tmp_path / "lightning_logs" / "version_1" / "camwatch", [0])
    with pytest.raises(InputError, match=r"2 archives below .*choose one: .*version_0.*version_1"):
        read_archive(tmp_path)
    with pytest.raises(InputError, match="no archive of camwatch in or below"):
        read_archive(tmp_path / "nowhere")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A file of a snapshot, as bytes."""
    folder = tmp_path_factory.mktemp("whole")
    written(folder, [0], {0: [FINDING]})
    return (folder / "snapshots" / "000000.safetensors").read_bytes()


def assert_skipped(folder, look, data):
    """Writes data in the place of a look among three, and expects it named and left out."""
    written(folder, range(3))
    file = folder / "snapshots" / f"{look:06d}.safetensors"
    file.write_bytes(data)
    with pytest.warns(CamwatchWarning, match=file.name) as caught:
        run = read_archive(folder)
    assert len(caught) == 1
    assert [one.look for one in run.snapshots] == [other for other in range(3) if other != look]
    return str(caught[0].message)


@settings(deadline=None, max_examples=60)
@given(at=st.floats(0, 1, exclude_max=True), look=st.integers(0, 2))
def test_a_snapshot_cut_at_any_byte_is_named_and_skipped(tmp_path_factory, whole, at, look):
    assert_skipped(tmp_path_factory.mktemp("cut"), look, whole[: int(at * len(whole))])


def told(change):
    """Damages what a file says beside its arrays."""

    def damaged(data):
        text = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]["camwatch"]
        return save(load(data), {"camwatch": json.dumps(change(json.loads(text)))})

    return damaged


def moved(data):
    """Lets an array end behind the file's end."""
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    header["maps/0"]["data_offsets"][1] += 2**40
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + size :]


DAMAGES = {
    "noise": lambda data: random.Random(0).randbytes(len(data)),
    "a longer file": lambda data: data + b"more",
    "a header too long": lambda data: (LONGEST_HEADER + 1).to_bytes(8, "little") + data[8:],
    "a pickle": lambda data: pickle.dumps({"format": 2}),
    "offsets outside": moved,
    "another's safetensors": lambda data: save({"weight": np.zeros(3)}, {"format": "pt"}),
    "without metadata": lambda data: save({"weight": np.zeros(3)}),
    "text that is no JSON": lambda data: save(load(data), {"camwatch": "{"}),
    "text that is no object": told(lambda facts: 3),
    "a newer format": told(lambda facts: {**facts, "format": 3}),
    "no findings": told(lambda facts: {key: value for key, value in facts.items() if key != "findings"}),
    "a finding of other fields": told(lambda facts: {**facts, "findings": [{"detector": "drop"}]}),
    "more measures named": told(lambda facts: {**facts, "measures": ["a", "b"]}),
    "means of no measure": told(lambda facts: {**facts, "means": {**facts["means"], "of": [9, [0, "right"], "x"]}}),
    "nested too deep": lambda data: save(load(data), {"camwatch": "[" * 100_000}),
    "without labels": lambda data: save({}, {"camwatch": load_text(data)}),
}


def load_text(data):
    return json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]["camwatch"]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_snapshot_is_named_and_skipped(tmp_path, whole, damage):
    message = assert_skipped(tmp_path, 1, DAMAGES[damage](whole))
    assert ("format 3 is newer" in message) == (damage == "a newer format")


@settings(deadline=None, max_examples=60)
@given(at=st.integers(0), value=st.integers(0, 255))
def test_one_wrong_byte_never_raises(tmp_path_factory, whole, at, value):
    folder = tmp_path_factory.mktemp("byte")
    data = bytearray(whole)
    data[at % len(data)] = value
    written(folder, range(2))
    (folder / "snapshots" / "000001.safetensors").write_bytes(data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CamwatchWarning)
        run = read_archive(folder)
    assert len(run.snapshots) in (1, 2)


@pytest.mark.parametrize("name", ["run.json", "panel.safetensors", "end.json"])
@settings(deadline=None, max_examples=20)
@given(at=st.floats(0, 1, exclude_max=True))
def test_any_other_file_cut_at_any_byte_leaves_the_rest_readable(tmp_path_factory, name, at):
    folder = tmp_path_factory.mktemp("cut")
    written(folder, range(2))
    write_end(folder, [FINDING])
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[: int(at * len(data))])
    with pytest.warns(CamwatchWarning, match=name):
        run = read_archive(folder)
    assert len(run.snapshots) == 2
    assert (run.layers == ()) == (name == "run.json")
    assert (run.panel == {}) == (name == "panel.safetensors")
    assert (run.findings == []) == (name == "end.json")


def test_one_warning_names_all_damaged_files(tmp_path):
    written(tmp_path, range(4))
    for name in ("run.json", "snapshots/000001.safetensors", "snapshots/000003.safetensors"):
        (tmp_path / name).write_bytes(b"x")
    with pytest.warns(CamwatchWarning, match=r"run.json .*000001.*000003") as caught:
        run = load_archive(tmp_path)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert [one.look for one in run.snapshots] == [0, 2]


def test_a_thousand_headers_are_read_in_half_a_second(tmp_path, whole):
    written(tmp_path, [0])
    for look in range(1000):
        (tmp_path / "snapshots" / f"{look:06d}.safetensors").write_bytes(whole)
    took = []
    for _ in range(3):
        start = time.perf_counter()
        assert len(read_archive(tmp_path).findings) == 1000
        took.append(time.perf_counter() - start)
    assert min(took) <= 0.5


def test_records_and_reading_load_no_torch(tmp_path):
    written(tmp_path, [0])
    code = (
        "import sys, camwatch.records\n"
        "from camwatch.archive.reading import read_archive\n"
        f"run = read_archive({str(tmp_path)!r})\n"
        "one = run.snapshots[0]\n"
        "assert one.maps['layer4'].shape == (5, 3, 4) and one.predicted_maps['layer4'].shape == (5, 3, 4)\n"
        "assert run.panel['images'].shape == (5, 3, 8, 8) and run.panel['regions']['allowed'].any()\n"
        "print(*{'torch', 'PIL', 'scipy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux")
def test_reading_takes_memory_only_for_what_is_looked_at_and_holds_no_file_open(tmp_path):
    big = {"layer4": torch.rand(64, 64, 64)}
    written(tmp_path, range(60), maps=big)
    write_run(tmp_path, RUN, panel_state(images=np.zeros((64, 3, 224, 224), np.float32)))
    before, files = resident(), len(os.listdir("/proc/self/fd"))
    run = load_archive(tmp_path)
    snapshots = list(run.snapshots)
    assert resident() - before < 15 * 2**20  # the maps are 60 MB, the images 38
    assert len(os.listdir("/proc/self/fd")) == files
    assert torch.equal(snapshots[59].maps["layer4"], big["layer4"])


def test_snapshots_are_a_sequence_and_pass_to_another_process(tmp_path):
    written(tmp_path, range(4))
    snapshots = load_archive(tmp_path).snapshots
    assert [one.look for one in snapshots[1:]] == [1, 2, 3]
    assert snapshots[-1].look == 3
    assert sorted(snapshots[0].maps) == ["layer3", "layer4"]
    with pytest.raises(IndexError):
        snapshots[4]
    with pytest.raises(KeyError):
        snapshots[0].maps["layer1"]
    copy = pickle.loads(pickle.dumps(snapshots[2]))
    assert isinstance(copy, Snapshot)
    assert torch.equal(copy.maps["layer4"], snapshots[2].maps["layer4"])
