"""The audit: each row against a hand computation, and one table whatever happens on the way."""

from __future__ import annotations

import csv
import math
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, SubsetRandomSampler, TensorDataset

import camwatch
from camwatch import Regions, explain, metrics
from camwatch.auditing.sheet import GREY, INKS
from camwatch.auditing.summary import worst_of
from camwatch.auditing.unfinished import Parts
from camwatch.auditing.verdicts import COLUMNS
from camwatch.errors import CamwatchError, InputError, LayerError, TargetError, UnsupportedError
from camwatch.metrics.localization import (
    centre_point,
    centre_prior,
    lift,
    map_entropy,
    pointing_game,
    region_auroc,
    region_iou,
    relevance_mass_accuracy,
    relevance_rank_accuracy,
    skill,
)
from camwatch.metrics.table import AUDITED, measure_maps
from camwatch.pictures import text
from tests.support.nets import SmallNet, data, loader, trainer

SCRIPT = Path(__file__).parents[1] / "support" / "audit_script.py"


@pytest.fixture
def net() -> SmallNet:
    torch.manual_seed(0)
    return SmallNet().eval()


def audit(model: nn.Module, given: Any, folder: Path, **options: Any) -> camwatch.auditing.Audit:
    options = {"output": folder / "audit.csv", "trainer": trainer(), **options}
    return camwatch.audit(model, given, **options)


def rows_of(table: Path) -> list[dict[str, Any]]:
    with open(table, newline="") as file:
        return [
            {k: v if k in ("id", "verdict", "note") else float(v) if v else math.nan for k, v in row.items()}
            for row in csv.DictReader(file)
        ]


class Reading(nn.Module):
    """Scores a class by its channel's mean: the evidence for class k is exactly channel k."""

    def __init__(self) -> None:
        super().__init__()
        self.look = nn.Sequential(nn.Conv2d(3, 3, 1, bias=False), nn.ReLU())
        self.look[0].weight.data = torch.eye(3)[:, :, None, None]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.look(images).mean((2, 3))


def lights(places: list[tuple[int, int, str]]) -> TensorDataset:
    """Images (class that is lit, label, where: in the region, beside it, or no region); the region is the left."""
    images, masks = torch.zeros(len(places), 3, 8, 8), torch.zeros(len(places), 8, 8, dtype=torch.bool)
    for i, (lit, _, where) in enumerate(places):
        images[i, lit, :, slice(0, 4) if where == "in" else slice(4, 8)] = 1
        masks[i, :, :4] = where != "none"
    return TensorDataset(images, torch.tensor([label for _, label, _ in places]), masks)


# What a row says.


@pytest.mark.filterwarnings("ignore::camwatch.cam.blank_maps.BlankMapWarning")
def test_audit_rows_equal_explaining_and_measuring_by_hand(net: SmallNet, tmp_path: Path) -> None:
    found = audit(net, loader(data(20)), tmp_path)
    rows = rows_of(found.table)
    assert [row["index"] for row in rows] == list(range(20))
    assert list(rows[0]) == list(COLUMNS)
    for start, (images, labels, masks) in zip(range(0, 20, 8), loader(data(20)), strict=True):
        e = explain(net, images, target=labels)
        by_hand = {
            "label": labels,
            "predicted": e.output.argmax(1),
            "probability": e.output.softmax(1).amax(1),
            "label_probability": e.output.softmax(1)[torch.arange(len(labels)), labels],
            "relevance_mass_accuracy": relevance_mass_accuracy(e.maps, masks),
            "relevance_rank_accuracy": relevance_rank_accuracy(e.maps, masks),
            "pointing_game": pointing_game(e.maps, masks),
            "region_iou": region_iou(e.maps, masks),
            "region_auroc": region_auroc(e.maps, masks),
            "lift": lift(e.maps, masks),
            "skill": skill(e.maps, masks),
            "map_entropy": map_entropy(e.maps),
            "map_mass": e.maps.flatten(1).sum(1),
            "region_area": masks.float().mean((1, 2)),
            "centre_mass_accuracy": relevance_mass_accuracy(centre_prior(len(labels), (4, 4)), masks),
            "centre_pointing_game": pointing_game(centre_point(len(labels), (4, 4)), masks),
        }
        for name, values in by_hand.items():
            written = [row[name] for row in rows[start : start + 8]]
            assert written == pytest.approx(values.tolist(), rel=2e-5, abs=1e-9, nan_ok=True), name
    assert found.layer == "features" and found.method == "gradcam"


def test_verdicts_follow_where_the_evidence_is(tmp_path: Path) -> None:
    places = [(0, 0, "in"), (0, 0, "beside"), (1, 2, "in"), (2, 2, "none"), (2, -1, "in"), (1, 1, "in")]
    dataset = lights(places)
    dataset.tensors[2][5, :, :] = True
    found = audit(Reading(), DataLoader(dataset, 4), tmp_path, layer="look.1")
    rows = rows_of(found.table)
    wanted = ["right", "right for the wrong reason", "wrong", "not measurable", "not measurable", "not measurable"]
    assert [row["verdict"] for row in rows] == wanted
    assert [row["note"] for row in rows] == ["", "", "", "no region", "no label", "the region is the whole image"]
    assert (rows[0]["skill"], rows[1]["skill"]) == (1.0, -1.0)
    assert math.isnan(rows[4]["label"]) and rows[4]["predicted"] == 2
    assert found.total.verdicts == {
        "right": 1,
        "right for the wrong reason": 1,
        "wrong": 1,
        "not measurable": 3,
        "unreadable": 0,
    }
    assert found.total.accuracy == 4 / 5 and found.total.wrong_reason == 0.5


def test_threshold_makes_the_judgement_stricter(tmp_path: Path) -> None:
    dataset = lights([(0, 0, "in")])
    dataset.tensors[0][0, 0, :, 4] = 1  # a fifth lies outside
    strict = audit(Reading(), DataLoader(dataset), tmp_path, layer="look.1", threshold=0.7)
    lax = audit(Reading(), DataLoader(dataset), tmp_path, layer="look.1", threshold=0.5)
    assert rows_of(lax.table)[0]["skill"] == pytest.approx(0.6)
    assert strict.total.verdicts["right for the wrong reason"] == lax.total.verdicts["right"] == 1


def test_map_that_is_zero_is_not_measurable(tmp_path: Path) -> None:
    dataset = lights([(0, 0, "in")])
    dataset.tensors[0].zero_()  # all scores are 0, the first class is given
    row = rows_of(audit(Reading(), DataLoader(dataset), tmp_path, layer="look.1").table)[0]
    assert (row["verdict"], row["note"]) == ("not measurable", "the map shows nothing")


class Endless(Reading):
    """A model with a gradient that is not finite."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        scores = super().forward(images)
        return scores + (0 * scores).sqrt()


def test_map_that_is_not_finite_is_not_measurable(tmp_path: Path) -> None:
    dataset = lights([(0, 0, "in"), (1, 0, "in")])
    rows = rows_of(audit(Endless(), DataLoader(dataset), tmp_path, layer="look.1").table)
    assert [(row["verdict"], row["note"]) for row in rows] == [
        ("not measurable", "the map is not finite"),
        ("wrong", ""),
    ]
    assert all(math.isnan(rows[0][name]) for name in AUDITED if not name.startswith(("region_", "centre_")))


def test_region_too_small_for_the_grid_is_not_measurable() -> None:
    regions = Regions.coerce([[(0, 0, 1, 1)]], 1, (8, 8))
    found = measure_maps(torch.ones(1, 2, 2), regions)
    assert found["region_ceiling"].item() == 1 / 16
    assert all(found[name].isnan() for name in ("relevance_mass_accuracy", "lift", "skill"))


def test_measures_with_an_ignore_zone_equal_those_of_the_metrics() -> None:
    maps = torch.rand(2, 4, 4, generator=torch.Generator().manual_seed(0))
    zones = {"allowed": [(0, 0, 6, 8)], "ignore": [(4, 0, 8, 4)], "forbidden": [(6, 6, 8, 8)]}
    regions = Regions.coerce([{k: torch.tensor(v) for k, v in zones.items()}] * 2, 2, (8, 8))
    found = measure_maps(maps, regions)
    for name in AUDITED[:7]:
        assert torch.allclose(found[name], getattr(metrics, name)(maps, regions)), name
    considered = maps[:, :2, :2].sum((1, 2)) + maps[:, 2:].sum((1, 2))
    assert torch.allclose(found["forbidden_mass"], maps[:, 3, 3] / considered)


def test_regions_may_be_given_beside_the_batches(net: SmallNet, tmp_path: Path) -> None:
    with_masks = audit(net, loader(data(10)), tmp_path)
    bare, masks = data(10, regions=False), data(10).tensors[2]
    beside = audit(net, loader(bare), tmp_path, regions=masks, output=tmp_path / "beside.csv")
    assert beside.table.read_text() == with_masks.table.read_text()
    zones = audit(net, loader(bare), tmp_path, regions={"allowed": masks}, output=tmp_path / "zones.csv")
    assert zones.table.read_text() == with_masks.table.read_text()
    with pytest.raises(InputError, match="one region per sample, 10 in all, got 4"):
        audit(net, loader(bare), tmp_path, regions=masks[:4])
    with pytest.raises(InputError, match="one region per sample, got 9, and the loader gives more"):
        audit(net, list(loader(bare)), tmp_path, regions=masks[:9], resume=False)
    with pytest.raises(InputError, match=r"unknown zone 'a.jpg'"):
        audit(net, loader(bare), tmp_path, regions={"a.jpg": masks}, resume=False)


@pytest.mark.filterwarnings("ignore::camwatch.cam.blank_maps.BlankMapWarning")
def test_predicted_target_needs_no_labels(net: SmallNet, tmp_path: Path) -> None:
    images = data(6).tensors[0]
    batches = [images[:4], images[4:]]
    found = audit(net, batches, tmp_path, target="predicted")
    rows = rows_of(found.table)
    assert {(row["verdict"], row["note"]) for row in rows} == {("not measurable", "no label")}
    assert [row["map_mass"] for row in rows] == pytest.approx(explain(net, images).maps.sum((1, 2)).tolist(), rel=1e-4)


# Each sample once, in order.


@pytest.mark.parametrize("options", [{"shuffle": True, "drop_last": True}, {"num_workers": 2, "pin_memory": False}])
def test_each_sample_has_one_row_in_order(net: SmallNet, tmp_path: Path, options: dict[str, Any]) -> None:
    plain = audit(net, loader(data(20)), tmp_path).table.read_bytes()
    other = audit(net, loader(data(20), **options), tmp_path).table.read_bytes()
    assert other == plain


def test_sampler_that_chooses_samples_is_followed(net: SmallNet, tmp_path: Path) -> None:
    chosen = DataLoader(data(20), 3, sampler=SubsetRandomSampler([7, 3, 11, 5]))
    assert [row["index"] for row in rows_of(audit(net, chosen, tmp_path).table)] == [3, 5, 7, 11]
    batches = DataLoader(data(20), batch_sampler=[[9, 2], [4]])
    assert [row["index"] for row in rows_of(audit(net, batches, tmp_path).table)] == [2, 4, 9]


class Flow(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter(data(20))


def test_stream_equals_indexed(net: SmallNet, tmp_path: Path) -> None:
    indexed = audit(net, loader(data(20)), tmp_path)
    plain, sheet = indexed.table.read_bytes(), indexed.sheet.read_bytes()
    streamed = audit(net, DataLoader(Flow(), 8), tmp_path)
    assert (streamed.table.read_bytes(), streamed.sheet.read_bytes()) == (plain, sheet)


def test_ids_are_the_paths_that_the_data_set_knows(net: SmallNet, tmp_path: Path) -> None:
    dataset = data(4)
    dataset.samples = [(f"photos/{i}.jpg", 0) for i in range(4)]  # type: ignore[attr-defined]
    rows = rows_of(audit(net, loader(Subset(dataset, [2, 0])), tmp_path).table)
    assert [row["id"] for row in rows] == ["photos/2.jpg", "photos/0.jpg"]


class Named(Dataset[Any]):
    """Samples that are dictionaries with a name."""

    def __init__(self, key: str) -> None:
        self.key, self.samples = key, data(6)

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> Any:
        image, label, mask = self.samples[index]
        return {"image": image, "label": label, "mask": mask, self.key: f"scan-{index}"}


def test_ids_are_those_that_the_batches_carry(net: SmallNet, tmp_path: Path) -> None:
    plain = [row["relevance_mass_accuracy"] for row in rows_of(audit(net, DataLoader(data(6), 4), tmp_path).table)]
    pairs = [(*batch, [f"scan-{4 * k + i}" for i in range(len(batch[0]))]) for k, batch in
             enumerate(DataLoader(data(6), 4))]  # fmt: skip
    for given in (DataLoader(Named("ID"), 4), list(DataLoader(Named("path"), 4)), pairs):
        rows = rows_of(audit(net, given, tmp_path).table)
        assert [row["id"] for row in rows] == [f"scan-{i}" for i in range(6)]
        assert [row["relevance_mass_accuracy"] for row in rows] == pytest.approx(plain, nan_ok=True)
    captions_alike = [(*batch, ["a photo"] * len(batch[0])) for batch in DataLoader(data(6), 4)]
    assert [row["id"] for row in rows_of(audit(net, captions_alike, tmp_path).table)] == list("012345")


# Samples that cannot be used.


class Faulty(Dataset[Any]):
    """Sample 3 cannot be decoded, 5 has one band, 9 is None, 12 is not finite, and 14's mask has another size."""

    def __init__(self) -> None:
        self.samples = data(20)

    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> Any:
        image, label, mask = self.samples[index]
        if index == 3:
            Image.open(os.devnull)
        if index == 5:
            image = image[:1]
        if index == 12:
            image = image * torch.nan
        return None if index == 9 else (image, label, mask[:7] if index == 14 else mask)


def together(samples: list[Any]) -> Any:
    """A collate_fn that keeps masks as a list."""
    images, labels, masks = zip(*samples, strict=True)
    return torch.stack(images), torch.stack(labels), list(masks)


@pytest.mark.parametrize("workers", [0, 1])
def test_corrupt_samples_are_marked_and_the_audit_goes_on(net: SmallNet, tmp_path: Path, workers: int) -> None:
    given = DataLoader(Faulty(), 4, collate_fn=together, num_workers=workers)
    found = audit(net, given, tmp_path)
    rows, sound = rows_of(found.table), rows_of(audit(net, DataLoader(data(20), 4), tmp_path).table)
    notes = {row["index"]: row["note"] for row in rows if row["note"]}
    assert notes[3].startswith("UnidentifiedImageError: cannot identify image file")
    assert notes[5].startswith("it does not fit its batch: tuple of 3 (Tensor (1, 16, 16)")
    assert notes[9] == "ValueError: the data set returned None"
    assert notes[12] == "the model's scores are not finite"
    assert "(7, 16) does not fit an image of 16 x 16" in notes[14]
    assert [row["index"] for row in rows if row["verdict"] == "unreadable"] == [3, 5, 9, 12]
    assert found.total.verdicts["unreadable"] == 4 and found.total.images == len(rows) == 20
    for row, other in zip(rows, sound, strict=True):
        if row["index"] not in (3, 5, 9, 12, 14):
            assert row["verdict"] == other["verdict"]
            assert row["map_mass"] == pytest.approx(other["map_mass"], rel=1e-4)


def test_nothing_readable_is_an_error_that_says_why(net: SmallNet, tmp_path: Path) -> None:
    class Broken(Dataset[Any]):
        def __len__(self) -> int:
            return 3

        def __getitem__(self, index: int) -> Any:
            raise OSError("the disk is gone")

    with pytest.raises(InputError, match="none of the 3 samples can be read; the last one: OSError: the disk is gone"):
        audit(net, DataLoader(Broken(), 2), tmp_path)


def test_collate_that_never_works_is_an_error_that_says_why(net: SmallNet, tmp_path: Path) -> None:
    def refuse(samples: list[Any]) -> Any:
        raise ValueError("no")

    with pytest.raises(InputError, match=r"collate_fn cannot make a batch of samples like tuple of 3 .*ValueError: no"):
        audit(net, DataLoader(data(4), 2, collate_fn=refuse), tmp_path)


def test_collate_that_drops_samples_is_refused(net: SmallNet, tmp_path: Path) -> None:
    given = DataLoader(data(4), 4, collate_fn=lambda samples: together(samples[:3] if len(samples) > 1 else samples))
    with pytest.raises(InputError, match="made 3 images of 4 samples"):
        audit(net, given, tmp_path)


# Interrupted and resumed, on several processes: the same table.


class Stops(SmallNet):
    calls = 0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        Stops.calls += 1
        if Stops.calls == 3:
            raise RuntimeError("out of luck")
        return super().forward(images)


def test_interrupted_audit_goes_on_and_skips_what_is_done(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Stops()
    Stops.calls = 0
    with pytest.raises(RuntimeError, match="out of luck"):  # the dry pass, one batch, and the second fails
        audit(model, loader(data(30)), tmp_path)
    assert not (tmp_path / "audit.csv").exists()
    resumed = audit(model, loader(data(30)), tmp_path, worst=8).table.read_bytes()
    assert Stops.calls == 3 + 3 + 1  # three batches that were left, and the sheet
    assert audit(model, loader(data(30)), tmp_path).table.read_bytes() == resumed
    assert sorted(path.name for path in tmp_path.iterdir()) == ["audit.classes.csv", "audit.csv", "audit.worst.png"]


class Interrupting(SmallNet):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        Stops.calls += 1
        if Stops.calls == 3:
            raise KeyboardInterrupt
        return super().forward(images)


def test_keyboard_interrupt_says_that_the_audit_can_go_on(tmp_path: Path) -> None:
    Stops.calls, before = 0, signal.getsignal(signal.SIGINT)
    with pytest.raises(CamwatchError, match=r"interrupted after 1 batches of 4.*audit\.csv\.parts.*same call goes on"):
        audit(Interrupting(), loader(data(30)), tmp_path)
    assert signal.getsignal(signal.SIGINT) is before, "the next Ctrl-C is heard"


def test_unfinished_audit_with_other_settings_is_not_mixed_up(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Stops()
    Stops.calls = 0
    with pytest.raises(RuntimeError, match="out of luck"):
        audit(model, loader(data(30)), tmp_path)
    with pytest.raises(InputError, match=r"other settings \(method 'gradcam', now 'hirescam'\).*--no-resume"):
        audit(model, loader(data(30)), tmp_path, method="hirescam")
    with torch.no_grad():
        model.head.bias += 1
    with pytest.raises(InputError, match=r"other settings \(weights"):
        audit(model, loader(data(30)), tmp_path)
    assert audit(model, loader(data(30)), tmp_path, resume=False).total.images == 30


def test_torn_line_is_done_again(tmp_path: Path) -> None:
    parts = Parts(tmp_path / "audit.csv")
    parts.open({}, resume=True)
    parts.append(1, [["b"]])
    other = Parts(tmp_path / "audit.csv")
    other.append(0, [["a"]])
    other.append(2, [["c"]])
    parts.append(2, [["c"]])
    with open(next(parts.folder.glob("*.rows")), "ab") as file:
        file.write(b'3\t[["d')
    assert parts.done() == [0, 1, 2]
    assert list(parts.rows()) == [["a"], ["b"], ["c"]]


def test_killed_audit_resumes_to_the_same_table(tmp_path: Path) -> None:
    from tests.support.audit_script import Slow, network

    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, SCRIPT, "kill", tmp_path], env=environment, stderr=subprocess.DEVNULL)
    folder, finished = tmp_path / "audit.csv.parts", 0
    deadline = time.monotonic() + 90
    while finished < 3 and process.poll() is None and time.monotonic() < deadline:
        finished = sum(path.read_bytes().count(b"\n") for path in folder.glob("*.rows"))
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert finished >= 3 and folder.exists() and not (tmp_path / "audit.csv").exists()
    done = set(Parts(tmp_path / "audit.csv").done())
    resumed = Slow(0)
    found = audit(network(), DataLoader(resumed, 4), tmp_path)
    assert not resumed.read & {i for number in done for i in range(4 * number, 4 * number + 4)} - set(
        row["index"] for row in found.worst
    ) - {0}
    whole = audit(network(), DataLoader(Slow(0), 4), tmp_path, output=tmp_path / "whole.csv")
    assert found.table.read_bytes() == whole.table.read_bytes()
    assert (tmp_path / "audit.classes.csv").read_bytes() == (tmp_path / "whole.classes.csv").read_bytes()
    assert (tmp_path / "audit.worst.png").read_bytes() == (tmp_path / "whole.worst.png").read_bytes()


def test_two_processes_give_the_table_of_one(tmp_path: Path) -> None:
    from tests.support.audit_script import SIZES, network

    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, SCRIPT, "ddp", tmp_path], env=environment, capture_output=True, text=True, timeout=240
    )
    assert run.returncode == 0, run.stderr[-3000:]
    for n in SIZES:
        alone = audit(network(), DataLoader(data(n), 4), tmp_path, output=tmp_path / "alone.csv")
        assert (tmp_path / f"two{n}.csv").read_bytes() == alone.table.read_bytes(), n
        assert (tmp_path / f"two{n}.classes.csv").read_bytes() == (tmp_path / "alone.classes.csv").read_bytes()
        told = {(tmp_path / f"rank{rank}_{n}.txt").read_text() for rank in (0, 1)}
        assert len(told) == 1 and f"audit of {n} images" in told.pop()
    assert not list(tmp_path.glob("*.parts"))


# What is added up.


def test_summary_equals_adding_up_the_table(net: SmallNet, tmp_path: Path) -> None:
    found = audit(net, loader(data(20)), tmp_path, class_names=["a", "b", "c"])
    rows = rows_of(found.table)
    assert [(one.label, one.name) for one in found.classes] == [(0, "a"), (1, "b"), (2, "c")]
    for one in [*found.classes, found.total]:
        mine = [row for row in rows if one.label in (None, row["label"])]
        assert one.images == len(mine)
        assert one.accuracy == np.mean([row["label"] == row["predicted"] for row in mine])
        for name in AUDITED:
            values = [row[name] for row in mine if not math.isnan(row[name])]
            assert one.means[name] == (
                pytest.approx(np.mean(values)) if values else pytest.approx(math.nan, nan_ok=True)
            )
    with open(tmp_path / "audit.classes.csv", newline="") as file:
        written = list(csv.DictReader(file))
    assert [row["name"] for row in written] == ["a", "b", "c", "all"]
    assert float(written[-1]["accuracy"]) == pytest.approx(found.total.accuracy, rel=1e-5)
    assert f"audit of 20 images, gradcam at {found.layer}" in str(found)


def test_worst_are_right_for_the_wrong_reason_first(tmp_path: Path) -> None:
    places = [(0, 0, "in"), (1, 0, "in"), (1, 1, "beside"), (2, 2, "none"), (2, 2, "beside")]
    dataset = lights(places)
    dataset.tensors[0][2, 1, :, 3] = 1  # some of it lies inside: less bad than the last
    found = audit(Reading(), DataLoader(dataset, 2), tmp_path, layer="look.1", worst=4)
    assert [row["index"] for row in found.worst] == [4, 2, 1, 0]
    assert worst_of([], 3) == ()
    none = audit(Reading(), DataLoader(dataset, 2), tmp_path, layer="look.1", worst=0)
    assert none.sheet is None and not (tmp_path / "audit.worst.png").exists()


def captions(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What is written on sheets from now on."""
    written: list[list[str]] = []
    draw = text.text

    def noted(image: torch.Tensor, lines: Any, *args: Any) -> torch.Tensor:
        written.append(list(lines))
        return draw(image, lines, *args)

    monkeypatch.setattr("camwatch.pictures.text.text", noted)
    return written


def test_sheet_says_which_image_it_is_and_what_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = lights([(0, 0, "in"), (1, 0, "in"), (1, 1, "beside"), (2, 2, "none")])
    dataset.samples = [(f"photos/a_very_long_name_of_a_photo_{i}.jpg", 0) for i in range(4)]  # type: ignore[attr-defined]
    written = captions(monkeypatch)
    names = ["crested tit", "blue tit", "a bird whose name is much longer than its picture is wide"]
    found = audit(Reading(), DataLoader(dataset, 2), tmp_path, layer="look.1", class_names=names)
    assert found.sheet is not None
    (wrong_reason, wrong, right, unmeasured), (head, legends) = written[:4], written[4:]
    assert wrong_reason[0].startswith("index 2 · a_very") and wrong_reason[0].endswith("oto_2.jpg")
    assert wrong_reason[1:] == ["label blue tit", "✓ 0.45 blue tit", "0% inside, area 50%"]
    assert wrong[1:] == ["label crested tit", "✗ 0.45 blue tit", "the map shows nothing"]
    assert right[2].startswith("✓") and unmeasured[3] == "no region"
    assert unmeasured[1].startswith("label a bird") and "…" in unmeasured[1]
    assert head == ["the 4 worst of 4 images, gradcam at look.1"]
    assert legends == [
        "in all: 1 right, 1 right for the wrong reason, 1 wrong, 1 not measurable",
        "frames: right blue, right for the wrong reason purple, wrong orange, not measurable grey",
        "outlines: region green",
    ]
    with Image.open(found.sheet) as sheet:
        colours = {colour for _, colour in sheet.getcolors(maxcolors=1 << 20)}
    assert {*INKS.values(), GREY} <= colours


def test_sheet_holds_images_of_several_sizes_uncut(tmp_path: Path) -> None:
    sizes = [(16, 40), (40, 16), (300, 200)]
    batches = [tuple(t[:1] for t in data(3, size=size).tensors) for size in sizes]
    torch.manual_seed(0)
    found = audit(SmallNet().eval(), batches, tmp_path)
    assert found.sheet is not None
    with Image.open(found.sheet) as sheet:
        # The largest picture's height, and room for the longest side of the others.
        assert sheet.height > 256 + 4 * 15 and sheet.width >= 3 * (200 + 8)
    assert len(found.worst) == 3


def test_parquet_holds_what_csv_holds(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    given = DataLoader(Faulty(), 4, collate_fn=together)
    torch.manual_seed(0)
    model = SmallNet().eval()
    table = pq.read_table(audit(model, given, tmp_path, output=tmp_path / "audit.parquet").table)
    rows = rows_of(audit(model, given, tmp_path).table)
    assert table.column_names == list(COLUMNS) and str(table.schema.field("label").type) == "int64"
    for parquet, row in zip(table.to_pylist(), rows, strict=True):
        for name, value in parquet.items():
            empty = "" if name in ("id", "verdict", "note") else pytest.approx(math.nan, nan_ok=True)
            assert row[name] == (empty if value is None else value)


# The surroundings.


def test_audit_leaves_the_model_and_the_process_as_they_were(net: SmallNet, tmp_path: Path) -> None:
    net.train()
    net.pool.eval()
    given = trainer(max_epochs=1)
    given.fit(net, loader(data(8)))
    modes = [module.training for module in net.modules()]
    state = {key: value.clone() for key, value in net.state_dict().items()}
    gradients = [None if p.grad is None else p.grad.clone() for p in net.parameters()]
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    audit(net, loader(data(20), shuffle=True), tmp_path)
    assert before[:2] == (random.getstate(), np.random.get_state()[1].tolist())
    assert torch.equal(before[2], torch.get_rng_state())
    assert modes == [module.training for module in net.modules()]
    assert all(torch.equal(state[key], value) for key, value in net.state_dict().items())
    assert all(
        g is None if p.grad is None else torch.equal(g, p.grad)
        for g, p in zip(gradients, net.parameters(), strict=True)
    )
    assert net.trainer is given and not any(module._forward_hooks for module in net.modules())


class Hooked(SmallNet):
    """Normalizes on the device, as one does with kornia."""

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return (batch[0].float() / 255, *batch[1:])


class Photos(pl.LightningDataModule):
    def __init__(self, loaders: int = 1) -> None:
        super().__init__()
        self.loaders = loaders

    def setup(self, stage: str) -> None:
        assert stage == "validate"
        images, labels, masks = data(10).tensors
        self.set = TensorDataset((images * 127).to(torch.uint8), labels, masks)

    def val_dataloader(self) -> Any:
        made = [loader(self.set) for _ in range(self.loaders)]
        return made[0] if self.loaders == 1 else made


class HookedPhotos(Photos):
    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return (batch[0].float() / 255, *batch[1:])


def test_batch_transfer_hooks_are_used(tmp_path: Path) -> None:
    torch.manual_seed(0)
    hooked, plain = Hooked(), SmallNet()
    plain.load_state_dict(hooked.state_dict())
    by_model = audit(hooked, Photos(), tmp_path).table.read_bytes()
    by_data = audit(plain, HookedPhotos(), tmp_path).table.read_bytes()
    images, labels, masks = data(10).tensors
    ready = TensorDataset((images * 127).to(torch.uint8).float() / 255, labels, masks)
    assert by_model == by_data == audit(plain, loader(ready), tmp_path).table.read_bytes()
    with pytest.raises(InputError, match="gives 2 loaders"):
        audit(plain, HookedPhotos(2), tmp_path)


def test_trainer_of_the_other_namespace_is_taken(net: SmallNet, tmp_path: Path) -> None:
    other = pytest.importorskip("lightning.pytorch")
    plain = audit(net, loader(data(10)), tmp_path).table.read_bytes()
    quiet = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    given = other.Trainer(enable_checkpointing=False, **quiet)
    assert audit(net, loader(data(10)), tmp_path, trainer=given).table.read_bytes() == plain


def test_mixed_precision_is_the_trainers(net: SmallNet, tmp_path: Path) -> None:
    mixed = rows_of(audit(net, loader(data(10)), tmp_path, trainer=trainer(precision="bf16-mixed")).table)
    full = rows_of(audit(net, loader(data(10)), tmp_path).table)
    assert [row["probability"] for row in mixed] == pytest.approx([row["probability"] for row in full], abs=0.01)
    assert mixed != full


def test_unpack_and_forward_say_how(net: SmallNet, tmp_path: Path) -> None:
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, batch: dict[str, torch.Tensor]) -> Any:
            return {"logits": self.net(batch["photo"])}

    batches = [{"photo": images, "kind": labels, "drawn": masks} for images, labels, masks in loader(data(10))]
    found = audit(
        Wrapped(),
        batches,
        tmp_path,
        unpack=lambda batch: (batch["photo"], batch["kind"], batch["drawn"]),
        forward=lambda model, images: model({"photo": images}),
    )
    assert found.layer == "net.features"
    assert found.table.read_bytes() == audit(net, loader(data(10)), tmp_path).table.read_bytes()


# Bad input.


def test_empty_loaders_are_refused(net: SmallNet, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the data loader is empty: its data set, Subset, has no sample"):
        audit(net, loader(Subset(data(4), [])), tmp_path)
    for empty in ([], iter([])):
        with pytest.raises(InputError, match="the data loader is empty"):
            audit(net, empty, tmp_path)
    with pytest.raises(InputError, match="expected a data loader, got int"):
        audit(net, 5, tmp_path)
    assert not (tmp_path / "audit.csv").exists()


def test_output_that_cannot_be_written_is_refused_before_anything_runs(net: SmallNet, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.csv").mkdir()
    for output, reason in (
        (tmp_path / "file" / "audit.csv", "cannot be written.*(Not a directory|File exists)"),
        (tmp_path / "folder.csv", "cannot be written.*it is a folder"),
        (tmp_path / "audit.xlsx", r"must end in \.csv or \.parquet"),
    ):
        with pytest.raises(InputError, match=reason):
            audit(net, None, tmp_path, output=output)


def test_data_of_another_model_is_refused(net: SmallNet, tmp_path: Path) -> None:
    images, _, masks = data(10).tensors
    match = r"sample '7' has label 7, but the model scores 3 classes, 0 to 2: the model and the data do not belong"
    with pytest.raises(TargetError, match=match):
        audit(net, loader(TensorDataset(images, torch.arange(10), masks)), tmp_path, resume=False)
    with pytest.raises(TargetError, match="needs batches with labels, and none were found"):
        audit(net, loader(TensorDataset(images)), tmp_path, resume=False)
    with pytest.raises(TargetError, match=r"one class per image.*float32 of"):
        audit(net, loader(TensorDataset(images, torch.rand(10, 3))), tmp_path, resume=False)


def test_unusable_arguments_are_refused(net: SmallNet, tmp_path: Path) -> None:
    class Headless(pl.LightningModule):
        def training_step(self, batch: Any) -> None: ...

    for model, options, kind, match in (
        (net, {"method": "gradcm"}, InputError, "did you mean 'gradcam'"),
        (net, {"target": "lable"}, InputError, "did you mean 'label'"),
        (net, {"layer": "features.9"}, LayerError, "did you mean 'features.3'|features.0"),
        (net, {"worst": -1}, InputError, "worst must be an integer of 0 or more, got -1"),
        (net, {"threshold": math.nan}, InputError, "threshold must be a finite number, got nan"),
        (net, {"layer": ["features.1", "features.3"]}, LayerError, "a layer is a name or a module.*got list"),
        (net, {"trainer": trainer(fast_dev_run=True)}, InputError, "limit_predict_batches=1"),
        (Headless(), {}, InputError, "Headless has no forward"),
        (lambda images: images, {}, InputError, "expected a model, a torch.nn.Module, got function"),
    ):
        with pytest.raises(kind, match=match):
            audit(model, loader(data(4)), tmp_path, **options)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_stream_on_several_processes_is_refused() -> None:
    from camwatch.adapters.lightning.audit_loop import Work
    from camwatch.auditing.source import IterableSource

    class OfTwo(Work):
        trainer = type("Two", (), {"world_size": 2})

    with pytest.raises(UnsupportedError, match="cannot be shared between 2 processes"):
        OfTwo(None, IterableSource([], None), None, None).predict_dataloader()  # type: ignore[arg-type]


def test_incomplete_audit_writes_no_table(net: SmallNet, tmp_path: Path) -> None:
    given = trainer()
    given.predict = lambda *args, **options: None
    with pytest.raises(CamwatchError, match=r"interrupted after 0 batches of 3.*the same call goes on"):
        audit(net, loader(data(20)), tmp_path, trainer=given)
