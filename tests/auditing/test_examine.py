"""One row per image: measured as by hand, judged by where the evidence is, in the data set's order."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, SubsetRandomSampler

from camwatch import Regions, explain, metrics
from camwatch.auditing.verdicts import COLUMNS
from camwatch.errors import InputError
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
from tests.support.audits import Reading, audit, lights, rows_of
from tests.support.nets import SmallNet, data, loader


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
