"""The nets on which equality.py compares two trees: small ones of many kinds; needs no camwatch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import timm
import torch
from torch import nn
from torchvision import models
from torchvision.models.convnext import CNBlockConfig


def small(axes: int = 2, classes: int = 5) -> nn.Module:
    """A CNN of one to three axes with a linear head."""
    conv, norm, pool = (getattr(nn, f"{kind}{axes}d") for kind in ("Conv", "BatchNorm", "AdaptiveAvgPool"))
    body = [conv(3, 8, 3, 2, 1), norm(8), nn.ReLU(), conv(8, 16, 3, 2, 1), nn.ReLU(), conv(16, 16, 3, 1, 1), nn.ReLU()]
    return nn.Sequential(*body, pool(1), nn.Flatten(), nn.Linear(16, classes))


def own(kind: str) -> nn.Module:
    """The small CNN with another ending: a dict of outputs, a class a pixel ("dense"), a head on a grid ("flat")."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = small() if kind == "dict" else small()[:7]
            self.head = {"dict": nn.Identity(), "dense": nn.Conv2d(16, 4, 1), "flat": nn.Linear(16 * 4 * 4, 4)}[kind]

        def forward(self, x: torch.Tensor) -> Any:
            found = self.body(x)
            if kind == "dict":
                return {"features": None, "logits": found}
            if kind == "dense":
                return nn.functional.interpolate(self.head(found), x.shape[2:], mode="bilinear")
            return self.head(nn.functional.adaptive_avg_pool2d(found, 4).flatten(1))

    return Net()


def nets() -> dict[str, Callable[[], nn.Module]]:
    """Twenty nets, built after seeding; of the large families small members, so that every method has time to run."""
    mine: dict[str, Callable[[], nn.Module]] = {
        "small": small,
        "one logit": lambda: small(classes=1),
        "signal": lambda: small(1),
        "volume": lambda: small(3),
        **{kind: lambda kind=kind: own(kind) for kind in ("dict", "dense", "flat")},
        "vit": lambda: models.VisionTransformer(64, 16, 3, 3, 96, 192, num_classes=10),
        "swin": lambda: models.SwinTransformer([4, 4], 24, [2, 2, 2], [2, 4, 4], [4, 4], num_classes=10),
        "convnext": lambda: models.ConvNeXt([CNBlockConfig(24, 48, 2), CNBlockConfig(48, None, 2)], num_classes=10),
        "densenet": lambda: models.DenseNet(12, (2, 4, 4), 24, num_classes=10),
        "squeezenet1_1": lambda: models.squeezenet1_1(num_classes=10),
    }
    published = ("resnet18", "mobilenet_v3_small", "shufflenet_v2_x0_5", "mnasnet0_5", "regnet_y_400mf")
    mine |= {name: lambda name=name: models.get_model(name, weights=None, num_classes=10) for name in published}
    for name, options in {"efficientnet_lite0": {}, "repvgg_a0": {}, "deit_tiny_patch16_224": {"img_size": 64}}.items():
        mine[name] = lambda name=name, options=options: timm.create_model(name, num_classes=10, **options)
    return mine


def build(name: str) -> tuple[nn.Module, torch.Tensor]:
    """Returns a net and two images for it; equal blank maps would show nothing, so few maps may be blank."""
    torch.manual_seed(7)
    model = nets()[name]().eval()
    with torch.no_grad():
        for parameter in model.parameters():  # a fresh ViT's head is zero
            parameter += 0.02 * torch.randn_like(parameter)
    axes = {"signal": 1, "volume": 3}.get(name, 2)
    return model, torch.rand(2, 3, *[16 if axes == 3 else 64] * axes, generator=torch.Generator().manual_seed(1))
