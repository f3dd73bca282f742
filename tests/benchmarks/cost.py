"""What an explanation costs, against plain inference, beside Captum, pytorch-grad-cam and torch-cam.

CPU time: all variants interleaved in one process, medians of the ratios to plain inference of the same round.
Memory: the highest resident size during the call beyond that before it, each variant in a fresh process.

    python tests/benchmarks/cost.py                    # ResNet-50, 16 images of 224 px
    python tests/benchmarks/cost.py --rounds 5 --skip-memory
    python tests/benchmarks/cost.py --thousand         # 1,024 images with batch_size=32
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn

LAYERS = ["layer1", "layer2", "layer3", "layer4"]
CLASSES = [1, 20, 300, 500, 999]
Variant = Callable[[], object]


def setting(images: int) -> tuple[nn.Module, Tensor]:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    warnings.simplefilter("ignore")
    return torchvision.models.resnet50().eval(), torch.randn(images, 3, 224, 224)


def variants(model: nn.Module, images: Tensor) -> dict[str, Variant]:
    """Every way to spend a forward pass; peers are left out where they are not installed."""
    import camwatch

    several = torch.tensor(CLASSES).expand(len(images), -1)

    def plain() -> Tensor:
        with torch.no_grad():
            return model(images)

    found: dict[str, Variant] = {
        "plain inference": plain,
        "camwatch, layer4": lambda: camwatch.explain(model, images, target=1, layer="layer4"),
        "camwatch, layer found": lambda: camwatch.explain(model, images, target=1),
        "camwatch, layer4, five classes": lambda: camwatch.explain(model, images, target=several, layer="layer4"),
        "camwatch, layer1 to layer4": lambda: camwatch.explain(model, images, target=1, layer=LAYERS),
    }
    try:
        from captum.attr import LayerGradCam

        found["Captum, layer4"] = lambda: LayerGradCam(model, model.layer4).attribute(images, target=1)
    except ImportError:
        pass
    try:
        from pytorch_grad_cam import GradCAM
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

        def grad_cam() -> None:
            with GradCAM(model=model, target_layers=[model.layer4]) as cam:
                cam(input_tensor=images, targets=[ClassifierOutputTarget(1)] * len(images))

        found["pytorch-grad-cam, layer4"] = grad_cam
    except ImportError:
        pass
    try:
        from torchcam.methods import GradCAM as TorchCam

        def torch_cam() -> None:
            with TorchCam(model, target_layer="layer4") as cam:
                cam(1, model(images))

        found["torch-cam, layer4"] = torch_cam
    except ImportError:
        pass
    return found


def cpu_times(rounds: int, images: int) -> dict[str, float]:
    """The median over rounds of each variant's CPU time over that of plain inference in the same round."""
    model, batch = setting(images)
    ways = variants(model, batch)
    for way in ways.values():
        way()
    ratios: dict[str, list[float]] = {name: [] for name in ways}
    for round_ in range(rounds):
        spent = {}
        names = list(ways)
        for name in names[round_ % len(names) :] + names[: round_ % len(names)]:  # no variant always runs first
            start = time.process_time()
            ways[name]()
            spent[name] = time.process_time() - start
            model.zero_grad(set_to_none=True)
        for name in names:
            ratios[name].append(spent[name] / spent["plain inference"])
    return {name: statistics.median(values) for name, values in ratios.items()}


def resident() -> int:
    """Resident bytes of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def peak_beyond(way: Variant) -> float:
    """MB beyond the resident size before the call, sampled while it runs."""
    before, highest, running = resident(), 0, True

    def watch() -> None:
        nonlocal highest
        while running:
            highest = max(highest, resident())
            time.sleep(0.0005)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        way()
    finally:
        running = False
        thread.join()
    return (max(highest, resident()) - before) / 1e6


def memory(name: str, images: int) -> float:
    """MB beyond the model and the images, in a process of its own that has run one image of every kind."""
    model, batch = setting(images)
    variants(model, batch[:1])[name]()  # what libraries load on their first call is no part of it
    model.zero_grad(set_to_none=True)
    return peak_beyond(variants(model, batch)[name])


def in_batches(images: int, plainly: bool) -> float:
    """MB beyond images and result for so many images in batches of 32."""
    import camwatch

    model, batch = setting(images)
    model.layer1, model.layer2, model.layer3 = model.layer1[:1], model.layer2[:1], model.layer3[:1]

    def way(batch: Tensor = batch) -> list[Tensor]:
        if plainly:
            with torch.no_grad():
                return [model(part) for part in batch.split(32)]
        found = camwatch.explain(model, batch, target=1, layer="layer4", batch_size=32)
        return [found.maps, found.output]

    way(batch[:1])
    kept: list[Tensor] = []
    peak = peak_beyond(lambda: kept.extend(way()))
    return peak - sum(tensor.nbytes for tensor in kept) / 1e6


def thousand() -> None:
    """Prints what 1,024 images take beyond what 32 do.

    The C library keeps some of the memory that a batch has given back, in pieces between what is kept, so even plain
    inference seems to grow with the number of batches. Told to give everything back at once it shows what is in use.
    """
    print("| in batches of 32, beyond images and result | 32 images | 1,024 images |\n| --- | --- | --- |")
    for title, settings in (("", {}), (", freed memory given back at once", {"MALLOC_MMAP_THRESHOLD_": "65536"})):
        for name, more in (("plain inference", ["--plainly"]), ("camwatch", [])):
            few, many = (fresh("--batches-of", n, *more, **settings) for n in ("32", "1024"))
            print(f"| {name}{title} | {few:.0f} MB | {many:.0f} MB ({many / few:.2f}x) |", flush=True)


def fresh(*arguments: str, **settings: str) -> float:
    """Runs this script in a fresh process, and reads the last word that it prints."""
    command, environment = [sys.executable, __file__, *arguments], os.environ | settings
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return float(done.stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--skip-memory", action="store_true")
    parser.add_argument("--thousand", action="store_true", help="1,024 images against 32, in batches of 32")
    parser.add_argument("--memory-of", help="(used by the script itself)")
    parser.add_argument("--batches-of", type=int, help="(used by the script itself)")
    parser.add_argument("--plainly", action="store_true", help="(used by the script itself)")
    options = parser.parse_args()
    if options.memory_of:
        print(memory(options.memory_of, options.images))
    elif options.batches_of:
        print(in_batches(options.batches_of, options.plainly))
    elif options.thousand:
        thousand()
    else:
        times = cpu_times(options.rounds, options.images)
        print({name: round(ratio, 3) for name, ratio in times.items()}, flush=True)
        print(f"\n| ResNet-50, {options.images} images | CPU time | extra peak memory |\n| --- | --- | --- |")
        plain = 1.0
        for name, ratio in times.items():
            used = 0.0 if options.skip_memory else fresh("--images", str(options.images), "--memory-of", name)
            if used and name == "plain inference":
                plain = used
            shown = f"{used:.0f} MB ({used / plain:.2f}x)" if used else "not measured"
            print(f"| {name} | {ratio:.2f}x | {shown} |", flush=True)


if __name__ == "__main__":
    main()
