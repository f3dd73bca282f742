"""What the tests name on the command line."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch

from tests.support.nets import SmallNet, data, loader


class Net(SmallNet):
    """A Lightning module that stores its arguments."""

    def __init__(self, classes: int = 2) -> None:
        super().__init__(classes)
        self.save_hyperparameters()


class Other(SmallNet):
    def __init__(self, channels: int = 4) -> None:
        super().__init__(3, channels)


class Noise(pl.LightningDataModule):
    def __init__(self, n: int) -> None:
        super().__init__()
        self.n = n

    def val_dataloader(self) -> Any:
        return loader(data(self.n, classes=2))


def plain() -> torch.nn.Module:
    """A function that makes a model."""
    return SmallNet(2)


def blind() -> torch.nn.Module:
    """A function that makes a model whose evidence is all negative."""
    model = SmallNet(2)
    model.head.weight.data = -model.head.weight.data.abs()
    return model
