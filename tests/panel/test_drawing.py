"""Drawing a panel from data sets, loaders and batches of every usual shape."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, DataLoader, Dataset, IterableDataset, Subset, TensorDataset, random_split
from torchvision import transforms as v1
from torchvision import tv_tensors
from torchvision.datasets import FakeData, wrap_dataset_for_transforms_v2
from torchvision.transforms import v2

from camwatch.errors import CamwatchWarning, PanelError, RegionError
from camwatch.panel import Panel
from camwatch.panel.batch import split_sample
from camwatch.panel.dataset import choose
from camwatch.panel.drawing import draw, gather
from camwatch.panel.normalization import find_normalization
from camwatch.regions import Regions

SIZE = (6, 8)
IMAGES = torch.rand(2, 3, *SIZE)
MASKS = torch.zeros(2, *SIZE, dtype=torch.bool)
MASKS[:, 1:3, 2:5] = True
BOXES = [torch.tensor([[2, 1, 5, 3]]), torch.tensor([[2, 1, 5, 3], [2, 1, 3, 2]])]
IMBALANCED = torch.tensor([0] * 80 + [1] * 15 + [2] * 5)


class Samples(Dataset[Any]):
    """Any list of samples; attributes as keywords. Counts what was read."""

    def __init__(self, samples: list[Any], **attributes: Any) -> None:
        self.samples_, self.read = samples, []
        self.__dict__.update(attributes)

    def __len__(self) -> int:
        return len(self.samples_)

    def __getitem__(self, index: int) -> Any:
        self.read.append(index)
        return self.samples_[index]


def labelled(values: torch.Tensor, /, **attributes: Any) -> Samples:
    return Samples([(torch.full((3, *SIZE), float(i)), int(y)) for i, y in enumerate(values)], **attributes)


# --- choosing ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "dataset",
    [
        labelled(IMBALANCED, targets=IMBALANCED.tolist()),
        labelled(IMBALANCED, labels=IMBALANCED.numpy()),
        labelled(IMBALANCED, _labels=IMBALANCED),
        TensorDataset(torch.rand(100, 1), IMBALANCED),
        ConcatDataset([labelled(part, targets=part) for part in (IMBALANCED[:50], IMBALANCED[50:])]),
        Subset(labelled(IMBALANCED, targets=IMBALANCED), range(99, -1, -1)),
        random_split(labelled(IMBALANCED, targets=IMBALANCED), [100, 0])[0],
        labelled(IMBALANCED, dataset=labelled(IMBALANCED, targets=IMBALANCED)),
        labelled(IMBALANCED),
    ],
    ids=["targets", "labels", "_labels", "tensors", "concat", "subset", "split", "wrapper", "read"],
)
def test_choose_balances_the_classes(dataset: Any) -> None:
    for part in getattr(dataset, "datasets", [getattr(dataset, "dataset", dataset)]):
        getattr(part, "read", []).clear()
    chosen = choose(dataset, 9)
    labels = [int(dataset[i][1]) for i in chosen]
    assert Counter(labels) == {0: 3, 1: 3, 2: 3}
    assert sorted(labels[:3]) == [0, 1, 2]  # the first few are what is shown
    assert len(set(chosen)) == 9
    assert choose(dataset, 9) == chosen and choose(dataset, 9, seed=1) != chosen


def test_choose_reads_no_sample_when_the_labels_are_known() -> None:
    dataset = labelled(IMBALANCED, targets=IMBALANCED)
    choose(dataset, 9)
    assert dataset.read == []


def test_choose_reads_at_most_512_samples_and_still_finds_many() -> None:
    dataset = Samples([(None, i % 7) for i in range(2000)])
    assert len(choose(dataset, 64)) == 64 and len(dataset.read) == 512
    dataset.read.clear()
    assert len(set(choose(dataset, 600))) == 600 and dataset.read == []


def test_choose_takes_a_rare_class_whole_and_fills_up() -> None:
    chosen = choose(TensorDataset(torch.rand(100, 1), IMBALANCED), 30)
    assert Counter(IMBALANCED[chosen].tolist()) == {0: 13, 1: 12, 2: 5}


def test_choose_takes_all_of_a_small_data_set_and_no_unlabelled_sample() -> None:
    assert sorted(choose(labelled(torch.tensor([0, 1, 0])), 64)) == [0, 1, 2]
    labels = torch.tensor([0, -1, 1, -1])
    assert sorted(choose(labelled(labels, targets=labels), 4)) == [0, 2]


def test_choose_without_labels_is_random_over_the_data() -> None:
    chosen = choose(Samples(["no label"] * 50), 10)
    assert len(set(chosen)) == 10 and max(chosen) > 20


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


# --- taking a batch apart ---------------------------------------------------------------------------------------

DETECTION = [{"boxes": boxes, "labels": torch.full((len(boxes),), i)} for i, boxes in enumerate(BOXES)]


@pytest.mark.parametrize(
    ("batch", "with_regions"),
    [
        ((IMAGES, torch.tensor([0, 1])), False),
        ([IMAGES, [0, 1]], False),
        ((IMAGES, np.array([0, 1])), False),
        ((IMAGES, torch.tensor([[0], [1]])), False),
        ((IMAGES, torch.tensor([0.0, 1.0])), False),
        ((IMAGES, torch.tensor([[1.0, 0, 0], [0, 1, 0]])), False),
        ((IMAGES, torch.tensor([[1.0, 0, 0, 0], [0, 1, 0, 0]])), False),
        ((IMAGES, torch.tensor([0, 1]), torch.tensor([17, 4])), False),
        ((IMAGES, torch.tensor([0, 1]), ["a.jpg", "b.jpg"]), False),
        ((IMAGES.unbind(), (0, 1)), False),
        ((IMAGES, torch.tensor([0, 1]), MASKS), True),
        ((IMAGES, torch.tensor([0, 1]), MASKS[:, None].float()), True),
        ((IMAGES, torch.tensor([0, 1]), BOXES), True),
        ((IMAGES, torch.tensor([0, 1]), torch.stack([boxes[:1] for boxes in BOXES])), True),
        ((IMAGES, torch.tensor([0, 1]), torch.stack([boxes[0] for boxes in BOXES])), True),
        ((IMAGES, torch.tensor([0, 1]), {"allowed": MASKS}), True),
        ((IMAGES, torch.tensor([0, 1]), [{"allowed": mask} for mask in MASKS]), True),
        ((IMAGES, MASKS, torch.tensor([0, 1])), True),
        ((IMAGES, [torch.tensor([0, 1]), MASKS]), True),
        ((tv_tensors.Image(IMAGES), tv_tensors.Mask(MASKS), torch.tensor([0, 1])), True),
        ({"image": IMAGES, "label": torch.tensor([0, 1])}, False),
        ({"pixel_values": IMAGES, "labels": torch.tensor([0, 1]), "index": torch.tensor([5, 6])}, False),
        ({"x": IMAGES, "y": torch.tensor([0, 1]), "mask": MASKS}, True),
        ({"img": IMAGES, "target": torch.tensor([0, 1]), "bboxes": BOXES}, True),
        ({"images": IMAGES, "targets": {"label": torch.tensor([0, 1]), "masks": MASKS}}, True),
        ((IMAGES.unbind(), DETECTION), True),
        ((IMAGES.unbind(), [{**target, "masks": MASKS[:1]} for target in DETECTION]), True),
    ],
)
def test_split_sample_finds_images_labels_and_regions(batch: Any, with_regions: bool) -> None:
    images, labels, regions = split_sample(batch)
    assert torch.equal(images, IMAGES) and type(images) is torch.Tensor
    assert labels is not None and labels.dtype == torch.int64 and labels.tolist() == [0, 1]
    if with_regions:
        assert torch.equal(Regions.coerce(regions, 2, SIZE).allowed, MASKS)
    else:
        assert regions is None


def test_split_sample_of_a_segmentation_pair_has_regions_and_no_labels() -> None:
    _, labels, regions = split_sample((IMAGES, MASKS))
    assert labels is None and torch.equal(regions, MASKS)


def test_split_sample_gives_no_label_to_images_with_objects_of_several_classes() -> None:
    mixed = [DETECTION[0], {"boxes": BOXES[1], "labels": torch.tensor([0, 1])}]
    assert split_sample((list(IMAGES), mixed))[1] is None
    assert split_sample((list(IMAGES), [{"image_id": 1}, DETECTION[1]]))[2][0] is None


def test_split_sample_uses_unpack_first() -> None:
    _, labels, regions = split_sample("odd", unpack=lambda batch: (IMAGES, [0, 1], MASKS))
    assert labels.tolist() == [0, 1] and regions is MASKS


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"picture": IMAGES, "y": [1, 2]}, r"dict with \{picture: Tensor \(2, 3, 6, 8\) float32, y: list.*keys image"),
        ((torch.rand(2, 12), torch.tensor([0, 1])), r"tuple of 2 \(Tensor \(2, 12\) float32, Tensor \(2,\) int64\)"),
        ("text", "found in a batch, str; .*unpack=callable"),
        ([], "list of 0"),
        (([IMAGES[0], IMAGES[1, :, :4]], [0, 1]), r"one size, got \(C, H, W\) of \[\(3, 4, 8\), \(3, 6, 8\)\]"),
    ],
)
def test_split_sample_says_what_arrived(batch: Any, message: str) -> None:
    with pytest.raises(PanelError, match=message):
        split_sample(batch)


def test_split_sample_names_unpack_when_that_is_wrong() -> None:
    with pytest.raises(PanelError, match="what unpack returned, NoneType"):
        split_sample((IMAGES, [0, 1]), unpack=lambda batch: None)


# --- drawing ----------------------------------------------------------------------------------------------------


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
    import json

    from PIL import Image
    from torchvision.datasets import CocoDetection

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


# --- normalization ----------------------------------------------------------------------------------------------

MEAN, STD = (0.5, 0.25, 0.125), (0.25, 0.5, 0.125)


class Holder:
    def __init__(self, **attributes: Any) -> None:
        self.__dict__.update(attributes)


@pytest.mark.parametrize(
    "source",
    [
        v1.Compose([v1.ToTensor(), v1.Normalize(MEAN, STD)]),
        v2.Compose([v2.ToImage(), v2.RandomApply([v2.Compose([v2.Normalize(MEAN, STD)])])]),
        torch.nn.Sequential(v2.Normalize(torch.tensor(MEAN), torch.tensor(STD))),
        FakeData(4, transform=v1.Normalize(MEAN, STD)),
        Subset(FakeData(4, transform=v1.Normalize(MEAN, STD)), [0]),
        ConcatDataset([FakeData(4), FakeData(4, transform=v1.Normalize(MEAN, STD))]),
        Holder(transforms=v2.Normalize(MEAN, STD)),
        Holder(transform=Holder(transforms=[Holder(mean=MEAN, std=STD, max_pixel_value=255.0)])),
        Holder(dataset=Holder(processor=Holder(image_processor=Holder(image_mean=list(MEAN), image_std=STD)))),
        {"train": v1.Normalize([255 * m for m in MEAN], [255 * s for s in STD])},
    ],
)
def test_find_normalization_looks_everywhere_usual(source: Any) -> None:
    found = find_normalization(source)
    assert found is not None and np.allclose(found, (MEAN, STD))


@pytest.mark.parametrize(
    "source", [None, FakeData(4), Holder(image_mean=MEAN, image_std=STD, do_normalize=False), torch]
)
def test_find_normalization_finds_none_where_there_is_none(source: Any) -> None:
    assert find_normalization(source) is None


def test_panel_of_a_tuple_equals_the_drawn_one() -> None:
    batch = (IMAGES, torch.tensor([0, 1]), MASKS)
    drawn, made = draw([batch], 2), Panel.coerce(batch)
    assert torch.equal(drawn.images, made.images) and torch.equal(drawn.regions.allowed, made.regions.allowed)
