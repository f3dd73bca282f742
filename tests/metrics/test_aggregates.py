"""The torchmetrics classes: means of the functions, whatever the batches and processes."""

from __future__ import annotations

import copy
import multiprocessing
import pickle
from itertools import pairwise

import pytest
import torch
import torch.multiprocessing as mp
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics import MetricCollection

from camwatch.errors import InputError
from camwatch.metrics import (
    ROAD,
    AverageDrop,
    BetweenClassAgreement,
    DeletionAUC,
    InsertionAUC,
    Lift,
    MapEntropy,
    PointingGame,
    RegionAUROC,
    RegionIoU,
    RelevanceMassAccuracy,
    RelevanceRankAccuracy,
    Skill,
    WithinClassAgreement,
    faithfulness,
)
from camwatch.metrics.agreement import between_class_agreement, within_class_agreement
from camwatch.metrics.localization import (
    lift,
    map_entropy,
    pointing_game,
    region_auroc,
    region_iou,
    relevance_mass_accuracy,
    relevance_rank_accuracy,
    skill,
)

PAIRS = [
    (RelevanceMassAccuracy, relevance_mass_accuracy),
    (RelevanceRankAccuracy, relevance_rank_accuracy),
    (RegionAUROC, region_auroc),
    (RegionIoU, region_iou),
    (PointingGame, pointing_game),
    (Lift, lift),
    (Skill, skill),
    (MapEntropy, lambda maps, regions: map_entropy(maps)),
]
CLASSES = [pair[0] for pair in PAIRS]


def draw(n=24, seed=0):
    generator = torch.Generator().manual_seed(seed)
    maps = torch.rand(n, 4, 5, generator=generator)
    maps[::7] = 0
    regions = torch.rand(n, 4, 5, generator=generator) > 0.6
    regions[3] = False
    return maps, regions, torch.randint(0, 3, (n,), generator=generator)


def identical(a, b):
    return torch.allclose(a, b, atol=0, rtol=0, equal_nan=True)


@pytest.mark.parametrize("metric, function", PAIRS)
def test_metric_is_the_mean_over_the_defined_images(metric, function):
    maps, regions, _ = draw()
    metric = metric()
    metric.update(maps, regions)
    values = function(maps, regions)
    torch.testing.assert_close(metric.compute(), values.nanmean())
    assert metric.n_undefined == int(values.isnan().sum()) > 0
    assert metric.n_scored + metric.n_undefined == len(maps)


@pytest.mark.parametrize("metric", CLASSES)
@settings(deadline=None, max_examples=10)
@given(st.lists(st.integers(0, 24), max_size=4), st.integers(0, 99))
def test_metric_is_the_same_to_the_last_bit_however_the_batches_are_cut(metric, cuts, seed):
    maps, regions, labels = draw(seed=seed)
    whole, cut = metric(num_classes=3), metric(num_classes=3)
    whole.update(maps, regions, labels)
    edges = sorted({0, 24, *cuts})
    for start, end in reversed(list(pairwise(edges))):
        cut.update(maps[start:end], regions[start:end], labels=labels[start:end])
    assert identical(cut.compute(), whole.compute())
    assert identical(cut.per_class(), whole.per_class())
    assert (cut.n_scored, cut.n_undefined) == (whole.n_scored, whole.n_undefined)


def test_metric_with_classes_is_the_mean_of_the_classes_means():
    maps, regions, labels = draw()
    metric = PointingGame(tolerance=2, num_classes=5)
    metric.update(maps, regions, labels)
    hits = pointing_game(maps, regions, tolerance=2)
    means = torch.stack([hits[labels == label].nanmean() for label in range(3)])
    torch.testing.assert_close(metric.compute(), means.mean())
    assert metric.per_class()[3:].isnan().all()


def test_metric_without_a_scored_image_is_nan_and_counts_them():
    metric = RelevanceMassAccuracy()
    metric.update(torch.zeros(3, 2, 2), torch.ones(3, 2, 2))
    assert metric.compute().isnan() and metric.n_undefined == 3
    metric.reset()
    assert (metric.n_scored, metric.n_undefined) == (0, 0)


def test_metric_forward_returns_the_batch_and_accumulates():
    maps, regions, _ = draw()
    metric = RelevanceMassAccuracy()
    first = metric(maps[:10], regions[:10])
    torch.testing.assert_close(first, relevance_mass_accuracy(maps[:10], regions[:10]).nanmean())
    metric(maps[10:], regions[10:])
    torch.testing.assert_close(metric.compute(), relevance_mass_accuracy(maps, regions).nanmean())


def test_map_entropy_needs_no_regions():
    maps, regions, _ = draw()
    alone, beside = MapEntropy(), MapEntropy()
    alone.update(maps)
    beside.update(maps, regions)
    assert alone.compute().equal(beside.compute())


def test_within_class_agreement_metric_equals_the_function_over_all_images():
    maps, _, labels = draw(40)
    maps[5] = 0.1  # no contrast
    labels[labels == 2] = 1
    labels[0] = 2  # alone in its class
    metric = WithinClassAgreement(num_classes=4, grid=(4, 5))
    for rows in (slice(0, 7), slice(7, 8), slice(8, 40)):
        metric.update(maps[rows], labels[rows])
    values = within_class_agreement(maps, labels)
    expected = torch.stack([values[labels == k].nanmean() for k in range(2)])
    torch.testing.assert_close(metric.per_class()[:2], expected, atol=1e-5, rtol=1e-5)
    assert metric.per_class()[2:].isnan().all() and metric.n_undefined == len(range(0, 40, 7)) + 1
    torch.testing.assert_close(metric.compute(), expected.mean(), atol=1e-5, rtol=1e-5)
    same = WithinClassAgreement(num_classes=1, grid=(4, 5))
    same.update(maps[1:2] * torch.tensor([1e-20, 1.0, 1e20])[:, None, None], torch.zeros(3, dtype=torch.int64))
    assert same.compute() == pytest.approx(1, abs=1e-6)


def test_between_class_agreement_metric_is_the_mean_of_its_function():
    maps = torch.rand(6, 2, 3, 4, generator=torch.Generator().manual_seed(0))
    maps[4, 1] = 0
    metric = BetweenClassAgreement()
    metric.update(maps[:2])
    metric.update(maps[2:])
    torch.testing.assert_close(metric.compute(), between_class_agreement(maps).nanmean())
    assert metric.n_undefined == 1


def test_metrics_in_a_collection_keep_their_own_states_when_the_first_batch_agrees():
    perfect = torch.tensor([[[1.0, 0.0, 0.0]]])
    apart = torch.tensor([[[3.0, 0.0, 2.0]]])
    region = torch.tensor([[[True, False, False]]])
    collection = MetricCollection(
        {
            "mass": RelevanceMassAccuracy(),
            "rank": RelevanceRankAccuracy(),
            "loose": RegionIoU(0.5),
            "strict": RegionIoU(0.9),
        }
    )
    collection.update(perfect, region)  # all four are 1, so their sums are equal
    collection.update(apart, region)
    values = {name: value.item() for name, value in collection.compute().items()}
    assert values == pytest.approx({"mass": 0.8, "rank": 1.0, "loose": 0.75, "strict": 1.0})


def test_metrics_pass_through_pickle_and_copies_and_half_precision():
    maps, regions, _ = draw()
    metric = RegionIoU(threshold=0.3)
    metric.update(maps, regions)
    for twin in (pickle.loads(pickle.dumps(metric)), copy.deepcopy(metric), metric.clone().half()):
        assert twin.compute().equal(metric.compute())


def test_faithfulness_metrics_are_the_means_of_their_functions():
    generator = torch.Generator().manual_seed(0)
    images, maps = torch.rand(5, 1, 6, 6, generator=generator), torch.rand(5, 6, 6, generator=generator)
    maps[2] = 0

    def predict(given):
        left = given[:, 0, :, :3].mean((1, 2))
        return torch.stack([left, 1 - left], 1)

    targets = torch.tensor([0, 1, 0, 1, 0])
    insertion, drop = InsertionAUC(steps=4, fill="mean", batch_size=7), AverageDrop()
    collection = MetricCollection([insertion, DeletionAUC(steps=4, fill="mean"), drop])
    for rows in (slice(0, 2), slice(2, 5)):
        collection.update(predict, images[rows], maps[rows], targets[rows])
    values = collection.compute()
    expected = faithfulness.insertion_auc(predict, images, maps, targets, steps=4, fill="mean")
    torch.testing.assert_close(values["InsertionAUC"], expected.nanmean())
    torch.testing.assert_close(
        values["AverageDrop"], faithfulness.average_drop(predict, images, maps, targets).nanmean()
    )
    assert collection["InsertionAUC"].n_undefined == 1
    road = ROAD(shares=[0.2, 0.5], noise=0.0, batch_size=3)
    road.update(predict, images, maps, targets)
    expected = faithfulness.road(predict, images, maps, targets, shares=(0.2, 0.5), noise=0.0)
    torch.testing.assert_close(road.compute(), expected.nanmean())


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: RegionIoU(num_classes=0), "num_classes of at least 1 or None, got 0"),
        (lambda: Lift(num_classes=2).update(*draw()[:2]), "num_classes=2, expected 24 labels, got none"),
        (lambda: Lift(num_classes=2).update(*draw()), "labels from 0 to 1, got 0 to 2"),
        (lambda: Lift(num_classes=2).update(*draw()[:2], torch.rand(24)), r"24 labels, got torch.float32 of shape"),
        (lambda: WithinClassAgreement(2, (4, 4)).update(*draw()[::2]), r"shape \(N, 4, 4\), got \(24, 4, 5\)"),
        (lambda: WithinClassAgreement(2, (4, 5)).update(*draw()[::2]), "labels from 0 to 1, got 0 to 2"),
        (lambda: WithinClassAgreement(0, (4, 5)), r"at least 1 class and a grid.* got 0 and \(4, 5\)"),
    ],
)
def test_metric_names_what_does_not_fit(call, message):
    with pytest.raises(InputError, match=message):
        call()


def everything():
    found = MetricCollection({metric.__name__: metric(num_classes=3) for metric in CLASSES})
    alike = MetricCollection([WithinClassAgreement(3, (4, 5)), BetweenClassAgreement(num_classes=3)])
    return found, alike


def fill(found, alike, rows):
    maps, regions, labels = draw()
    found.update(maps[rows], regions[rows], labels=labels[rows])
    alike["WithinClassAgreement"].update(maps[rows], labels[rows])
    alike["BetweenClassAgreement"].update(torch.stack([maps, maps.flip(1)], 1)[rows], labels[rows])


def _share(rank, store, results):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    found, alike = everything()
    fill(found, alike, slice(0, 5) if rank == 0 else slice(5, 24))  # uneven on purpose
    torch.save({**found.compute(), **alike.compute()}, f"{results}/{rank}.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def test_metric_over_two_processes_equals_one_to_the_last_bit(tmp_path):
    # Both are forked from one clean process, which pays for the import of torchmetrics once.
    multiprocessing.set_forkserver_preload(["camwatch.metrics.aggregates"])
    mp.start_processes(_share, (str(tmp_path / "store"), str(tmp_path)), nprocs=2, start_method="forkserver")
    found, alike = everything()
    fill(found, alike, slice(0, 24))
    alone = {**found.compute(), **alike.compute()}
    assert len(alone) == len(CLASSES) + 2
    for rank in range(2):
        shared = torch.load(tmp_path / f"{rank}.pt")
        assert all(identical(shared[name], value) for name, value in alone.items())


def test_metric_object_is_logged_by_lightning_over_the_whole_epoch(tmp_path):
    import pytorch_lightning as pl

    maps, regions, labels = draw()

    class Module(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.mass = RelevanceMassAccuracy()

        def validation_step(self, batch, batch_idx):
            self.mass.update(batch[0], batch[1])
            self.log("mass", self.mass, on_epoch=True)

        def configure_optimizers(self):
            return None

    trainer = pl.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    data = torch.utils.data.TensorDataset(maps, regions, labels)
    found = trainer.validate(Module(), torch.utils.data.DataLoader(data, batch_size=7), verbose=False)
    expected = relevance_mass_accuracy(maps, regions).nanmean().item()
    assert found[0]["mass"] == pytest.approx(expected, abs=1e-6)
