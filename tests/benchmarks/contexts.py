"""Which method in which context: the table in RESULTS.md. A cell that was not run is printed as unsupported.

Every cell compares the maps with those of the same network called plainly, in float32: equal to 1e-3 of the
maximum, or, in lower precision, correlated by .9 and more. The random baseline, which draws anew, is left out.
Attention methods run on a small ViT, all others on a small CNN; Keras has that CNN too.

    python tests/benchmarks/contexts.py [--cells]       # grouped by what they share, or one row per method
"""

from __future__ import annotations

import argparse
import os
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "torch")

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from camwatch import explain, methods
from camwatch.errors import UnsupportedError

torch.set_num_threads(1)
IMAGES = torch.rand(2, 3, 24, 24, generator=torch.Generator().manual_seed(1))
CLASSES = torch.arange(4).expand(2, 4)  # all of them at once
TRANSFORMERS = {"legrad", "rollout"}
NOT_RUN = "unsupported"


class Net(nn.Module):
    """A small CNN of two stages, with in-place ReLUs, whose second block is used twice."""

    def __init__(self) -> None:
        super().__init__()
        stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.again = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(inplace=True))
        self.stem, self.down = stem, nn.Sequential(nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU())
        self.head = nn.Linear(8, 4)

    def features(self, images: Tensor) -> Tensor:
        found: Tensor = self.down(self.again(self.again(self.stem(images))))
        return found

    def forward(self, images: Tensor) -> Tensor:
        found: Tensor = self.head(self.features(images).mean((2, 3)))
        return found


class ViT(nn.Module):
    """A small ViT from torch's own encoder layers."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.token = nn.Conv2d(3, 16, 6, 6), nn.Parameter(torch.randn(1, 1, 16))
        self.blocks = nn.Sequential(*[nn.TransformerEncoderLayer(16, 2, 32, 0.0, batch_first=True) for _ in range(3)])
        self.head = nn.Linear(16, 4)

    def features(self, images: Tensor) -> Tensor:
        x = self.embed(images).flatten(2).mT
        found: Tensor = self.blocks(torch.cat([self.token.expand(len(x), -1, -1), x], 1))
        return found

    def forward(self, images: Tensor) -> Tensor:
        found: Tensor = self.head(self.features(images)[:, 0])
        return found


def within(net: nn.Module, wrap: Callable[[Callable[[Tensor], Tensor], Tensor], Tensor]) -> nn.Module:
    """The network with its features called through a function."""
    net.features = partial(wrap, net.features)
    return net


def without_gradients(features: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    with torch.no_grad():
        return features(images)


def compiled_inside(net: nn.Module) -> nn.Module:
    name = "down" if isinstance(net, Net) else "blocks"
    setattr(net, name, torch.compile(getattr(net, name), backend="eager"))
    return net


def in_keras(net: nn.Module) -> nn.Module:
    """The same CNN in Keras 3 on its torch backend, channels last."""
    import keras

    if not isinstance(net, Net):
        raise UnsupportedError("Keras's attention is not torch's")
    kl = keras.layers
    again = kl.Conv2D(8, 3, padding="same", activation="relu", name="again")
    images = keras.Input((24, 24, 3))
    x = kl.BatchNormalization(epsilon=1e-5)(kl.Conv2D(8, 3, padding="same")(images))
    x = kl.ZeroPadding2D(1)(again(again(kl.ReLU()(x))))
    x = kl.GlobalAveragePooling2D()(kl.Conv2D(8, 3, 2, activation="relu")(x))
    model = keras.Model(images, kl.Dense(4)(x))
    values = [p.detach() for p in [*net.stem.parameters(), *net.again.parameters(), *net.down.parameters()]]
    values += [p.detach() for p in net.head.parameters()]
    turned = [v.permute(2, 3, 1, 0) if v.ndim == 4 else v.T if v.ndim == 2 else v for v in values]
    for variable, value in zip(model.trainable_variables, turned, strict=True):
        variable.assign(value.numpy())
    with torch.no_grad():
        torch.testing.assert_close(model(IMAGES.movedim(1, -1)), net(IMAGES), rtol=1e-4, atol=1e-5)
    return model


def autocast() -> AbstractContextManager[Any]:
    return torch.autocast("cpu", dtype=torch.bfloat16)


Context = tuple[Callable[[nn.Module], nn.Module], Callable[[], AbstractContextManager[Any]]]
CONTEXTS: dict[str, Context] = {
    "frozen": (lambda net: net.requires_grad_(False), nullcontext),
    "backbone under no_grad": (lambda net: within(net, without_gradients), nullcontext),
    "checkpointed": (lambda net: within(net, partial(checkpoint, use_reentrant=False)), nullcontext),
    "checkpointed, reentrant": (lambda net: within(net, partial(checkpoint, use_reentrant=True)), nullcontext),
    "caller in no_grad": (lambda net: net, torch.no_grad),
    "caller in inference_mode": (lambda net: net, torch.inference_mode),
    "autocast bf16": (lambda net: net, autocast),
    "bf16 weights": (lambda net: net.bfloat16(), nullcontext),
    "fp16 weights": (lambda net: net.half(), nullcontext),
    "channels_last": (lambda net: net.to(memory_format=torch.channels_last), nullcontext),
    "compiled": (lambda net: torch.compile(net, backend="eager"), nullcontext),
    "compiled submodule": (compiled_inside, nullcontext),
    "DataParallel": (nn.DataParallel, nullcontext),
    "Keras 3": (in_keras, nullcontext),
}


def network(method: str) -> nn.Module:
    torch.manual_seed(0)
    net: nn.Module = ViT() if method in TRANSFORMERS else Net()
    return net.eval()


def agrees(found: Tensor, plain: Tensor, exact: bool) -> bool:
    if exact:
        return bool((found - plain).abs().max() <= 1e-3 * plain.abs().max())
    return float(torch.corrcoef(torch.stack([found.flatten(), plain.flatten()]))[0, 1]) >= 0.9


def cell(method: str, name: str, plain: Tensor) -> str:
    change, context = CONTEXTS[name]
    try:
        model = change(network(method))
        with context():
            found = explain(model, IMAGES, method=method, target=CLASSES).maps
    except (UnsupportedError, ImportError):
        return NOT_RUN
    except Exception as error:
        return f"fails ({type(error).__name__})"
    exact = "bf16" not in name and "fp16" not in name
    return "yes" if agrees(found.float(), plain, exact) else "differs"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", action="store_true", help="one row per method")
    grouped = not parser.parse_args().cells
    rows: dict[tuple[str, ...], list[str]] = {}
    for method in sorted({*methods()} - {"random"}):
        plain = explain(network(method), IMAGES, method=method, target=CLASSES).maps
        assert plain.isfinite().all() and plain.amax() > 0, method
        cells = tuple(cell(method, name, plain) for name in CONTEXTS)
        rows.setdefault(cells if grouped else (*cells, method), []).append(method)
    print("| method | " + " | ".join(CONTEXTS) + " |\n|" + " --- |" * (len(CONTEXTS) + 1))
    for cells, names in sorted(rows.items(), key=lambda item: (-len(item[1]), item[1])):
        print(f"| {', '.join(names)} | {' | '.join(cells[: len(CONTEXTS)])} |")


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
