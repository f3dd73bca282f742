"""Small modules and data that several tests train on."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset


class SmallNet(pl.LightningModule):
    """A CNN of two convolutions whose batches start with images and labels."""

    def __init__(self, classes: int = 3, channels: int = 3) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(channels, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU(inplace=True)
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(16, classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.pool(self.features(images)).flatten(1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
        self.log("loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", nn.functional.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


def data(n: int = 32, classes: int = 3, size: tuple[int, int] = (16, 16), regions: bool = True) -> TensorDataset:
    """Noise with a bright square whose place is the class; the third element masks it."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(n, 3, *size, generator=generator)
    labels = torch.arange(n) % classes
    masks = torch.zeros(n, *size, dtype=torch.bool)
    for i, label in enumerate(labels.tolist()):
        masks[i, 2 : size[0] // 2, 4 * label : 4 * label + 6] = True
        images[i, :, masks[i]] += 1
    return TensorDataset(images, labels, masks) if regions else TensorDataset(images, labels)


def loader(dataset: Any, shuffle: bool = False, **options: Any) -> DataLoader[Any]:
    return DataLoader(dataset, batch_size=8, shuffle=shuffle, **options)


def trainer(callbacks: Any = None, **options: Any) -> pl.Trainer:
    """A quiet trainer on the CPU; every option can be given."""
    quiet = {
        "accelerator": "cpu",
        "max_epochs": 2,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
    }
    return pl.Trainer(callbacks=callbacks, **{**quiet, **options})
