"""Drawing a panel from data sets and loaders."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset
from torchvision.datasets import CocoDetection, FakeData, wrap_dataset_for_transforms_v2
from torchvision.transforms import v2

from camwatch.errors import CamwatchWarning, PanelError, RegionError
from camwatch.panel import Panel
from camwatch.panel.dataset import choose
from camwatch.panel.drawing import draw, gather
from tests.support.panels import BOXES, IMAGES, IMBALANCED, MASKS, SIZE, Samples, labelled


def test_drawing_leaves_every_random_state_alone() -> None:
    class Noisy(Dataset[Any]):
        def __len__(self) -> int:
            return 20

        def __getitem__(self, index: int) -> Any:
            noise = torch.rand(3, *SIZE) + random.random() + np.random.rand()
            return noise.float(), index % 2

    def states() -> tuple[Any, ...]:
        return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()

    generator = torch.Generator().manual_seed(3)
    loader = DataLoader(Noisy(), batch_size=4, shuffle=True, generator=generator)
    before, own = states(), generator.get_state()
    first, second = draw(loader, 6), draw(loader, 6)
    assert states() == before and torch.equal(generator.get_state(), own)
    assert torch.equal(first.images, second.images)  # and the panel is the same every time


def test_draw_takes_images_labels_names_ids_and_normalization_from_the_data_set() -> None:
    transform = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5] * 3, [0.2] * 3)])
    data = FakeData(40, (3, 6, 8), 4, transform=transform)
    data.classes = ["a", "b", "c", "d"]
    data.samples = [(f"{i}.jpg", 0) for i in range(40)]
    half = Subset(data, range(20, 40))
    panel = draw(DataLoader(half, batch_size=3, shuffle=True), 10)
    assert panel.class_names == ("a", "b", "c", "d") and panel.denormalize == ((0.5,) * 3, (0.2,) * 3)
    chosen = [int(name.removesuffix(".jpg")) for name in panel.ids]
    assert chosen == [20 + i for i in choose(half, 10)]
    for k, i in enumerate(chosen):
        image, label = data[i]
        assert torch.equal(panel.images[k], image) and panel.labels[k] == int(label)


def test_draw_keeps_boxes_of_varying_number_through_the_users_collate() -> None:
    samples = [(IMAGES[i % 2], {"boxes": BOXES[i % 2], "labels": torch.full((1 + i % 2,), i % 2)}) for i in range(9)]
    with pytest.raises(PanelError, match=r"collate_fn \(default_collate\) cannot make a batch.*keeps them as a list"):
        draw(DataLoader(Samples(samples), batch_size=4), 9)
    loader = DataLoader(Samples(samples), batch_size=4, collate_fn=lambda batch: tuple(zip(*batch, strict=True)))
    panel = draw(loader, 5)
    assert torch.equal(panel.regions.allowed, MASKS[:1].expand(5, -1, -1))
    assert sorted(panel.labels.tolist()) in ([0, 0, 0, 1, 1], [0, 0, 1, 1, 1])


def test_draw_applies_the_transfer_before_the_batch_is_taken_apart() -> None:
    data = Samples([{"odd": IMAGES[0], "y": i} for i in range(5)])
    loader = DataLoader(data, batch_size=2)
    panel = draw(
        loader, 5, unpack=lambda b: (b["odd"] + 1, b["y"], None), transfer=lambda b: {**b, "odd": 2 * b["odd"]}
    )
    assert torch.allclose(panel.images, (2 * IMAGES[0] + 1).expand(5, -1, -1, -1))
    assert sorted(panel.labels.tolist()) == list(range(5))


def test_draw_takes_the_first_samples_of_an_iterable_data_set() -> None:
    class Stream(IterableDataset[Any]):
        def __iter__(self) -> Iterator[Any]:
            for i in range(1000):
                assert i < 8, "read further than needed"
                yield torch.full((3, *SIZE), float(i)), i

    panel = draw(DataLoader(Stream(), batch_size=4), 6)
    assert panel.labels.tolist() == list(range(6)) and panel.ids == tuple("012345")


def test_draw_reads_batches_of_data_sets_that_batch_themselves_and_of_any_iterable() -> None:
    batches = [(IMAGES, torch.tensor([0, 1])), (IMAGES, torch.tensor([2, 3]))]
    for source in (DataLoader(Samples(batches), batch_size=None), batches):
        assert draw(source, 3).labels.tolist() == [0, 1, 2]
    assert gather(batches, 64).labels.tolist() == [0, 1, 2, 3]


def test_draw_counts_empty_regions_as_not_annotated() -> None:
    masks = [MASKS[0], torch.zeros(SIZE, dtype=torch.bool), MASKS[0]]
    data = Samples([(IMAGES[0], i, mask) for i, mask in enumerate(masks)])
    with pytest.warns(CamwatchWarning, match="1 of 3 panel images have an empty region"):
        panel = draw(DataLoader(data, batch_size=2), 3)
    assert panel.regions.annotated[panel.labels.argsort()].tolist() == [True, False, True]


def test_draw_names_the_panel_image_whose_region_is_wrong() -> None:
    data = Samples([(IMAGES[0], i, MASKS[0].int() * (1 + 2 * (i == 4))) for i in range(6)])
    position = choose(data, 6).index(4)
    with pytest.raises(RegionError, match=f"image {position}: the mask holds the values 0, 3"):
        draw(DataLoader(data, batch_size=2), 6)


def test_draw_shows_what_bands_there_are() -> None:
    for bands, rgb in ((1, (0, 1, 1)), (2, (0, 1, 1)), (3, (0, 1, 2)), (7, (0, 1, 2))):
        assert draw([(torch.rand(2, bands, 4, 4), [0, 1])], 2).rgb == rgb


def test_draw_leaves_names_out_that_do_not_fit_the_labels() -> None:
    assert draw(DataLoader(labelled(torch.tensor([0, 5]), classes=["a", "b"])), 2).class_names is None


def test_draw_refuses_what_gives_no_panel() -> None:
    with pytest.raises(PanelError, match="empty data set, TensorDataset of length 0"):
        draw(DataLoader(TensorDataset(torch.rand(0, 3, 4, 4))), 4)
    with pytest.raises(PanelError, match="gave no batch"):
        draw([], 4)
    with pytest.raises(PanelError, match="at least 1 image, got 0"):
        draw([], 0)
    with pytest.raises(PanelError, match=r"one size, got \(C, H, W\) of \[\(3, 4, 4\), \(3, 6, 8\)\]"):
        draw([(IMAGES, [0, 1]), (torch.rand(2, 3, 4, 4), [0, 1])], 4)
    mixed = Samples([(torch.rand(3, 4 + i, 4), 0) for i in range(3)])
    with pytest.raises(PanelError, match=r"samples like tuple of 2 \(Tensor .*one size"):
        draw(DataLoader(mixed, batch_size=3), 3)


def test_draw_outside_of_inference_mode_gives_plain_tensors() -> None:
    with torch.inference_mode():
        assert not draw(DataLoader(labelled(IMBALANCED[:4])), 4).images.is_inference()


def test_draw_reads_wrapped_torchvision_data_sets(tmp_path: Any) -> None:

    for i in range(4):
        Image.new("RGB", (8, 6), (60 * i, 0, 0)).save(tmp_path / f"{i}.png")
    annotations = {
        "images": [{"id": i, "file_name": f"{i}.png", "width": 8, "height": 6} for i in range(4)],
        "categories": [{"id": k, "name": str(k)} for k in range(2)],
        "annotations": [
            {"id": i + 1, "image_id": i, "category_id": i % 2, "bbox": [2, 1, 3, 2], "iscrowd": 0, "area": 6}
            for i in range(3)
        ],
    }
    (tmp_path / "coco.json").write_text(json.dumps(annotations))
    flip = v2.Compose([v2.ToImage(), v2.RandomHorizontalFlip(1.0), v2.ToDtype(torch.float32, scale=True)])
    data = wrap_dataset_for_transforms_v2(
        CocoDetection(tmp_path, tmp_path / "coco.json", transforms=flip), target_keys=("boxes", "labels")
    )
    panel = draw(DataLoader(data, batch_size=2, collate_fn=lambda batch: tuple(zip(*batch, strict=True))), 4)
    assert panel.regions.annotated.sum() == 3
    assert panel.regions.boxes()[panel.regions.annotated].tolist() == [[3, 1, 6, 3]] * 3


def test_panel_of_a_tuple_equals_the_drawn_one() -> None:
    batch = (IMAGES, torch.tensor([0, 1]), MASKS)
    drawn, made = draw([batch], 2), Panel.coerce(batch)
    assert torch.equal(drawn.images, made.images) and torch.equal(drawn.regions.allowed, made.regions.allowed)
