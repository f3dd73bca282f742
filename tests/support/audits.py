"""Models and data whose audits are known beforehand."""

from __future__ import annotations

import csv
import math
import os
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn
from torch.utils.data import Dataset, TensorDataset

import camwatch
from tests.support.nets import data, trainer

SCRIPT = Path(__file__).parent / "audit_script.py"


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
