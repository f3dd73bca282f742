"""The sanity check of Adebayo et al. (NeurIPS 2018): do maps change when the network's weights are drawn anew?

    python tests/benchmarks/randomization.py [--images 24]

A small network is trained on scikit-learn's digits, placed at random on a larger canvas. Its layers are then
drawn anew one after another, from the head downwards. Printed is the mean rank correlation of each method's
maps with those of the trained network, target the label: near 1 the maps do not depend on those weights.
Not expected to change with the layers behind theirs: eigencam, kpcacam and fem, which see no gradient, and
random, which starts from the same seed each time.

Maps at a layer are taken at conv2. Pixel maps are compared at the resolution of conv2's, which no sharpness
can flatter.
"""

from __future__ import annotations

import argparse
import copy
import warnings
from typing import Any

import torch
from scipy.stats import spearmanr
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

from camwatch import explain, methods
from camwatch.cam.dispatch import needs_layer

STAGES = ["head", "conv3", "conv2", "conv1"]
GRID = (16, 16)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(nn.Conv2d(1, 12, 3, padding=1), nn.ReLU())
        self.conv2 = nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(12, 16, 3, padding=1), nn.ReLU())
        self.conv3 = nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU())
        self.head = nn.Sequential(nn.AdaptiveMaxPool2d(2), nn.Flatten(), nn.Linear(128, 10))

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.conv3(self.conv2(self.conv1(x))))
        return found


def data() -> tuple[Tensor, Tensor]:
    digits = load_digits()
    small = functional.interpolate(torch.tensor(digits.images, dtype=torch.float)[:, None] / 16, scale_factor=2)
    canvas = torch.zeros(len(small), 1, 32, 32)
    corners = torch.randint(0, 17, (len(small), 2)).tolist()
    for picture, digit, (y, x) in zip(canvas, small, corners, strict=True):
        picture[:, y : y + 16, x : x + 16] = digit
    return canvas + 0.05 * torch.randn_like(canvas), torch.tensor(digits.target)


def train(images: Tensor, labels: Tensor) -> Net:
    net = Net()
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    for _ in range(12):
        for rows in torch.randperm(len(images)).split(64):
            optimizer.zero_grad()
            functional.cross_entropy(net(images[rows]), labels[rows]).backward()
            optimizer.step()
    return net.eval()


def maps(net: Net, images: Tensor, labels: Tensor, method: str) -> Tensor:
    layer: dict[str, Any] = {"layer": "conv2"} if needs_layer(method) else {}
    found = explain(net, images, target=labels, method=method, batch_size=32, **layer).maps
    return functional.interpolate(found[:, None], GRID, mode="area")[:, 0] if found.shape[1:] != GRID else found


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
    net = train(images[count:-200], labels[count:-200])
    with torch.no_grad():
        accuracy = float((net(images[-200:]).argmax(1) == labels[-200:]).float().mean())
    print(f"accuracy on unseen digits: {accuracy:.2f}\n")
    print(f"| method | {' | '.join(f'down to {stage}' for stage in STAGES)} |")
    print(f"| --- |{' --- |' * len(STAGES)}")
    nets, drawn = [], copy.deepcopy(net)
    for stage in STAGES:
        for module in getattr(drawn, stage):
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                module.reset_parameters()
        nets.append(copy.deepcopy(drawn))
    for method in methods():
        trained = maps(net, images[:count], labels[:count], method)
        cells = [f"{similarity(trained, maps(n, images[:count], labels[:count], method)):.2f}" for n in nets]
        print(f"| {method} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
