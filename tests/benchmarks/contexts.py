"""Which method works in which context: the README's table. A cell that was not run is printed as unsupported.

Every cell compares the maps with those of the same network called plainly, in float32: equal to 1e-3 of the
maximum, or, in lower precision, correlated by .9 and more. The random baseline, which draws anew, is left out.

    python tests/benchmarks/contexts.py
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from camwatch import explain, methods

torch.set_num_threads(1)
IMAGES = torch.rand(2, 3, 24, 24, generator=torch.Generator().manual_seed(1))


class Net(nn.Module):
    """A small CNN; ``wrap`` says how the backbone is called."""

    def __init__(self, wrap: Callable[[nn.Module, Tensor], Tensor] = lambda body, x: body(x)) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Conv2d(8, 8, 3, 1, 1), nn.GELU()
        )
        self.head = nn.Linear(8, 4)
        self.wrap = wrap

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.wrap(self.body, images).mean((2, 3)))


def without_gradients(body: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        return body(images)


def changed(weights: dict[str, Tensor], **change: Any) -> Net:
    net = Net(change.pop("wrap", Net().wrap))
    net.load_state_dict(weights)
    return net.eval()


def contexts(weights: dict[str, Tensor]) -> dict[str, tuple[nn.Module, AbstractContextManager[Any]]]:
    frozen = changed(weights).requires_grad_(False)
    last = changed(weights).to(memory_format=torch.channels_last)
    return {
        "frozen": (frozen, nullcontext()),
        "backbone under no_grad": (changed(weights, wrap=without_gradients), nullcontext()),
        "checkpointed": (changed(weights, wrap=lambda b, x: checkpoint(b, x, use_reentrant=False)), nullcontext()),
        "caller in no_grad": (changed(weights), torch.no_grad()),
        "caller in inference_mode": (changed(weights), torch.inference_mode()),
        "autocast bf16": (changed(weights), torch.autocast("cpu", dtype=torch.bfloat16)),
        "bf16 weights": (changed(weights).bfloat16(), nullcontext()),
        "channels_last": (last, nullcontext()),
        "compiled": (torch.compile(changed(weights), backend="eager"), nullcontext()),
        "DataParallel": (nn.DataParallel(changed(weights)), nullcontext()),
    }


def agrees(found: Tensor, plain: Tensor, exact: bool) -> bool:
    if exact:
        return bool((found - plain).abs().max() <= 1e-3 * plain.abs().max())
    return float(torch.corrcoef(torch.stack([found.flatten(), plain.flatten()]))[0, 1]) >= 0.9


def main() -> None:
    torch.manual_seed(0)
    weights = copy.deepcopy(Net().state_dict())
    cases = contexts(weights)
    print("| method | " + " | ".join(cases) + " |\n|" + " --- |" * (len(cases) + 1))
    for method in sorted({*methods()} - {"random"}):
        torch.manual_seed(0)
        plain = explain(changed(weights), IMAGES, method=method, target=1).maps
        cells = []
        for name, (model, context) in cases.items():
            torch.manual_seed(0)
            try:
                with context:
                    found = explain(model, IMAGES, method=method, target=1).maps
                cells.append("yes" if agrees(found.float(), plain, "bf16" not in name) else "differs")
            except Exception as error:
                cells.append(f"unsupported ({type(error).__name__})")
        print(f"| {method} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
