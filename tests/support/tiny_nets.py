"""Five tiny nets whose weights are formulas, free of any generator's version, and every method's stored maps of them.

python -m tests.support.tiny_nets --write --tree build/before     # on purpose only: what that tree gives is the truth

The stored maps are those of commit 6615a16.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tests.support.cam_nets import Staged, ViT

FILE = Path(__file__).parents[1] / "data" / "maps" / "tiny.npz"
RAISED = "raised "


class Dense(nn.Module):
    """A score of each class at each pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = Staged().body, nn.Conv2d(8, 3, 1)

    def forward(self, images: Tensor) -> Tensor:
        return nn.functional.interpolate(self.head(self.body(images)), images.shape[2:], mode="bilinear")


def tiny_nets() -> dict[str, tuple[nn.Module, Tensor]]:
    """Returns nets in evaluation mode with two images for each, in double precision.

    Doubles, so that the last bits of a processor's or a version's sums stay far below the tolerance.
    """
    nets = {"cnn": Staged(), "logit": Staged(classes=1), "vit": ViT(), "dense": Dense(), "signal": Staged(axes=1)}
    for number, net in enumerate(nets.values(), 1):
        _fill(net, number)
    return {name: (net.double().eval(), _images(1 if name == "signal" else 2)) for name, net in nets.items()}


@torch.no_grad()
def _fill(net: nn.Module, number: int) -> None:
    """Overwrites all weights and running statistics by sines, about as large as fresh ones.

    Those of a ViT's patches are larger: normalizing tiny tokens would enlarge the last bits of a processor's noise.
    """
    for place, (name, tensor) in enumerate([*net.named_parameters(), *net.named_buffers()], 1):
        if not tensor.is_floating_point():
            continue
        waves = torch.sin(torch.arange(tensor.numel(), dtype=torch.float64) * (1.3 + 0.1 * number) + place)
        if tensor.dim() > 1:
            fan_in = tensor[0].numel() if "tokens" not in name else 1
            waves = waves * (2 / fan_in) ** 0.5 * (10 if name.startswith("embed") else 1)
        else:  # biases and means about 0, scales and variances about 1
            scale = name.endswith("running_var") or (name.endswith("weight") and tensor.dim() == 1)
            waves = 1 + waves / 4 if scale else waves / 10
        tensor.copy_(waves.reshape(tensor.shape))


def _images(axes: int) -> Tensor:
    size = [16] * axes
    places = torch.arange(2 * 3 * 16**axes, dtype=torch.float64)
    return (torch.sin(places * 0.37) * torch.sin(places * 0.011 + 1) / 2 + 0.5).reshape(2, 3, *size)


def maps() -> Iterator[tuple[str, Any]]:
    """Yields "net method" and its maps, or as text which error a method raised."""
    import camwatch

    for name, (net, images) in tiny_nets().items():
        for method in camwatch.methods():
            torch.manual_seed(0)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try:
                    yield f"{name} {method}", camwatch.explain(net, images, method=method).maps
                except camwatch.errors.CamwatchError as error:
                    yield f"{name} {method}", f"{RAISED}{type(error).__name__}"


def stored() -> dict[str, Any]:
    """Returns what ``maps`` gave when the file was written."""
    with np.load(FILE) as found:
        return {key: str(value) if value.dtype.kind == "U" else torch.from_numpy(value) for key, value in found.items()}


def main() -> None:
    """Writes the file from what a tree gives."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", required=True, help="replace the stored maps")
    parser.add_argument("--tree", type=Path, required=True, help="a checkout, whose camwatch makes them")
    tree = parser.parse_args().tree.resolve()
    sys.path.insert(0, str(tree))
    import camwatch

    if not Path(camwatch.__file__).is_relative_to(tree):
        raise SystemExit(f"{camwatch.__file__} was imported, not {tree}'s camwatch")
    FILE.parent.mkdir(parents=True, exist_ok=True)
    found = {key: value if isinstance(value, str) else value.numpy() for key, value in maps()}
    np.savez_compressed(FILE, **found)
    print(f"{len(found)} in {FILE.stat().st_size} bytes")


if __name__ == "__main__":
    main()
