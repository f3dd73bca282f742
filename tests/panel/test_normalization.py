"""Finding by which statistics images were normalized."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, Subset
from torchvision import transforms as v1
from torchvision.datasets import FakeData
from torchvision.transforms import v2

from camwatch.panel.normalization import find_normalization

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
