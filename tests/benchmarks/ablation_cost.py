"""CPU time of Ablation-CAM and Score-CAM beside pytorch-grad-cam's, at equal output: ResNet-18, one image.

    python tests/benchmarks/ablation_cost.py [--pixels 224] [--repeats 3]

The two are run in turns, on one thread, and the median of the ratios is given.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
import torchvision
from pytorch_grad_cam import AblationCAM, ScoreCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import Tensor

from camwatch import explain


def cpu_seconds(function: Callable[[], Tensor]) -> tuple[float, Tensor]:
    start = time.process_time()
    result = function()
    return time.process_time() - start, result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pixels", type=int, default=224)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = torchvision.models.resnet18(weights=None).eval()
    image = torch.randn(1, 3, arguments.pixels, arguments.pixels)
    with torch.no_grad():
        label = int(model(image).argmax())
        kept: list[Tensor] = []
        handle = model.layer4.register_forward_hook(lambda module, args, output: kept.append(output))
        model(image)
        handle.remove()
    activations = kept[0].numpy()

    for name, peer in {"ablationcam": AblationCAM, "scorecam": ScoreCAM}.items():

        def ours(name: str = name) -> Tensor:
            return explain(model, image, layer="layer4", target=label, method=name).maps

        def theirs(peer: type = peer) -> Tensor:
            with contextlib.redirect_stderr(io.StringIO()), peer(model, [model.layer4]) as cam:
                wanted = [ClassifierOutputTarget(label)]
                found = cam.get_cam_image(image, model.layer4, wanted, activations, None, False)
            return torch.from_numpy(np.maximum(found, 0))

        ratios, fast, slow = [], [], []
        for _ in range(arguments.repeats):
            our_time, our_map = cpu_seconds(ours)
            their_time, their_map = cpu_seconds(theirs)
            ratios.append(their_time / our_time)
            fast.append(our_time)
            slow.append(their_time)
        difference = float((our_map - their_map).abs().max() / their_map.max())
        print(
            f"{name}: camwatch {statistics.median(fast):.2f} s, pytorch-grad-cam {statistics.median(slow):.2f} s, "
            f"{statistics.median(ratios):.1f}x faster (from {min(ratios):.1f} to {max(ratios):.1f}), "
            f"largest difference {difference:.1e} of the maximum",
            flush=True,
        )


if __name__ == "__main__":
    main()
