"""Images with masks and boxes, and data sets that count what is read."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.data import Dataset

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
