"""The sanity check of Adebayo et al. (NeurIPS 2018): do maps change when the network's weights are drawn anew?

    python tests/benchmarks/randomization.py [--images 24]

A small network is trained on scikit-learn's digits, placed at random on a larger canvas. Its layers are then
drawn anew one after another, from the head downwards. Printed is the mean rank correlation of each method's
maps with those of the trained network, target the label: near 1 the maps do not depend on those weights.
Not expected to change with the layers behind theirs: eigencam, kpcacam and fem, which see no gradient, rollout,
which sees no class, and random, which starts from the same seed each time.

Maps at a layer are taken at conv2; cam, which needs a global average and a linear layer, at conv3 of a network that
ends so; legrad and rollout on a small ViT. Finer maps are compared at conv2's resolution, which no sharpness can
flatter.
"""

from __future__ import annotations

import argparse
import copy
import warnings

import torch
from scipy.stats import spearmanr
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

from camwatch import explain, methods
from camwatch.cam.methods.registry import needs_layer

GRID = (16, 16)


class Net(nn.Module):
    """Three stages; behind them the strongest cells of four quarters, or a global average."""

    stages = ("head", "conv3", "conv2", "conv1")

    def __init__(self, pool: nn.Module) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(nn.Conv2d(1, 12, 3, padding=1), nn.ReLU())
        self.conv2 = nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(12, 16, 3, padding=1), nn.ReLU())
        self.conv3 = nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU())
        self.head = nn.Sequential(pool, nn.Flatten(), nn.LazyLinear(10))
        self(torch.zeros(1, 1, 32, 32))

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.conv3(self.conv2(self.conv1(x))))
        return found


class ViT(nn.Module):
    stages = ("head", "block3", "block2", "block1", "embed")

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Sequential(nn.Conv2d(1, 32, 3, 2, 1), nn.ReLU(), nn.Conv2d(32, 32, 2, 2), nn.Flatten(2))
        self.places = nn.Parameter(0.02 * torch.randn(1, 65, 32))
        self.block1, self.block2, self.block3 = (
            nn.TransformerEncoderLayer(32, 4, 64, 0.0, batch_first=True, norm_first=True) for _ in range(3)
        )
        self.head = nn.Sequential(nn.LayerNorm(32), nn.Linear(32, 10))

    def forward(self, x: Tensor) -> Tensor:
        x = functional.pad(self.embed(x).mT, (0, 0, 1, 0)) + self.places
        found: Tensor = self.head(self.block3(self.block2(self.block1(x)))[:, 0])
        return found


def data() -> tuple[Tensor, Tensor]:
    digits = load_digits()
    small = functional.interpolate(torch.tensor(digits.images, dtype=torch.float)[:, None] / 16, scale_factor=2)
    canvas = torch.zeros(len(small), 1, 32, 32)
    corners = torch.randint(0, 17, (len(small), 2)).tolist()
    for picture, digit, (y, x) in zip(canvas, small, corners, strict=True):
        picture[:, y : y + 16, x : x + 16] = digit
    return canvas + 0.05 * torch.randn_like(canvas), torch.tensor(digits.target)


def train(net: nn.Module, images: Tensor, labels: Tensor, epochs: int) -> nn.Module:
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 3e-3, epochs=epochs, steps_per_epoch=-(-len(images) // 64)
    )
    for _ in range(epochs):
        for rows in torch.randperm(len(images)).split(64):
            optimizer.zero_grad()
            functional.cross_entropy(net(images[rows]), labels[rows]).backward()
            optimizer.step()
            schedule.step()
    return net.eval()


def maps(net: nn.Module, images: Tensor, labels: Tensor, method: str) -> Tensor:
    layer = {"layer": "conv3" if method == "cam" else "conv2"} if needs_layer(method) else {}
    found = explain(net, images, target=labels, method=method, batch_size=32, **layer).maps
    return functional.interpolate(found[:, None], GRID, mode="area")[:, 0] if found.shape[1] > GRID[0] else found


def drawn_anew(net: nn.Module) -> list[nn.Module]:
    """Copies with weights drawn anew from the head down to each stage."""
    nets, drawn = [], copy.deepcopy(net)
    for stage in net.stages:
        for module in getattr(drawn, stage).modules():
            reset = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
            if reset is not None:
                reset()
        nets.append(copy.deepcopy(drawn))
    return nets


def similarity(before: Tensor, after: Tensor) -> float:
    """The mean rank correlation over the images whose maps are not constant."""
    pairs = [(b.flatten(), a.flatten()) for b, a in zip(before, after, strict=True) if b.std() > 0 and a.std() > 0]
    values = [float(spearmanr(b.numpy(), a.numpy()).statistic) for b, a in pairs]
    return sum(values) / len(values) if values else float("nan")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=24)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    warnings.simplefilter("ignore")
    images, labels = data()
    count = arguments.images
    nets = {"CNN": Net(nn.AdaptiveMaxPool2d(2)), "CNN, global average": Net(nn.AdaptiveAvgPool2d(1)), "ViT": ViT()}
    epochs = {"CNN": 20, "CNN, global average": 40, "ViT": 30}
    special = {"cam": "CNN, global average", "legrad": "ViT", "rollout": "ViT"}
    for name, net in nets.items():
        train(net, images[count:-200], labels[count:-200], epochs[name])
        with torch.no_grad():
            accuracy = float((net(images[-200:]).argmax(1) == labels[-200:]).float().mean())
        alike = chance(net, images[:count], labels[:count])
        print(f"{name}: accuracy on unseen digits {accuracy:.2f}; maps of different images {alike:.2f}", flush=True)
    anew = {name: drawn_anew(net) for name, net in nets.items()}
    print("\n| method | head | 2 stages | 3 stages | 4 stages: the whole CNN | 5: the whole ViT |")
    print(f"|{' --- |' * 6}")
    for method in methods():
        name = special.get(method, "CNN")
        trained = maps(nets[name], images[:count], labels[:count], method)
        cells = [f"{similarity(trained, maps(n, images[:count], labels[:count], method)):.2f}" for n in anew[name]]
        print(f"| {method} | {' | '.join([*cells, ''][:5])} |", flush=True)


def chance(net: nn.Module, images: Tensor, labels: Tensor) -> float:
    """How alike the maps of two different images are: what a correlation has to be compared with."""
    method = "legrad" if isinstance(net, ViT) else "gradcam"
    found = maps(net, images, labels, method)
    return similarity(found, found.roll(1, 0))


if __name__ == "__main__":
    main()
