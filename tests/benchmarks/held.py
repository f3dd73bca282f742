"""How long a snapshot holds the training thread, against its forward passes and against the usual ways.

Each round runs every variant once, one after the other; figures are medians over the rounds of the calling
thread's CPU time, ratios are medians of the ratios within a round. The writer thread is waited for between the
variants and counted apart. ``--memory`` measures the peak memory of each variant in a process of its own.

    python tests/benchmarks/held.py
    python tests/benchmarks/held.py --model resnet50 --images 16 --size 224 --rounds 15
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from camwatch import Panel
from camwatch.watch.watcher import Watcher

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
Run = Callable[[], Any]


def setting(name: str, n: int, size: int) -> tuple[nn.Module, Panel]:
    """A model in training mode with random weights, and a panel of smooth noise with a box each.

    Its head knows the panel's images, one class each, so that every one is answered rightly and swapped.
    """
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None).train()
    images = nn.functional.interpolate(torch.randn(n, 3, 8, 8), size=(size, size), mode="bicubic")
    head, model.fc = model.fc, nn.Identity()
    with torch.no_grad():
        features = model.eval()(images)
        features -= (middle := features.mean(0))
        head.weight[:n], head.weight[n:] = 2 * features, 0  # the nearest prototype
        head.bias[:n], head.bias[n:] = -features.square().sum(1) - 2 * features @ middle, -1e9
    model.train().fc = head
    boxes = [torch.tensor([[size // 8, size // 8, size * 3 // 8, size * 3 // 8]])] * n
    return model, Panel(images, torch.arange(n), boxes, denormalize=(MEAN, STD))


def snapshots(model: nn.Module, panel: Panel, folder: Path) -> tuple[Run, Run, list[int]]:
    """A watcher's snapshot, how to wait for its pictures, and the sizes of the batches that it runs."""
    batches: list[int] = []

    def forward(module: nn.Module, images: Tensor) -> Tensor:
        batches.append(len(images))
        return module(images)

    watcher = Watcher(model, panel, on_alarm=lambda alarm: None, forward=forward, directory=folder)
    watcher.flush()
    epoch = iter(range(10**9))

    def snapshot() -> None:
        batches.clear()
        record = watcher.snapshot(step := next(epoch), step)
        assert record.error is None, record.error

    for _ in range(3):  # the first ones may raise an alarm and name a cue, once
        snapshot()
    return snapshot, watcher.flush, list(batches)


def forwards(model: nn.Module, images: Tensor, batches: list[int]) -> Run:
    """The same forward passes and nothing else."""
    inputs = [images.repeat(-(-n // len(images)), 1, 1, 1)[:n].contiguous() for n in batches]

    def run() -> None:
        model.eval()
        with torch.no_grad():
            for batch in inputs:
                model(batch)
        model.train()

    return run


def peer(model: nn.Module, panel: Panel, folder: Path, figure: bool) -> tuple[Run, Run]:
    """pytorch-grad-cam with show_cam_on_image and add_images, or drawn into a matplotlib figure."""
    import numpy as np
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.image import show_cam_on_image
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
    from torch.utils.tensorboard import SummaryWriter

    writer, shown = SummaryWriter(str(folder)), panel.rgb_images().movedim(1, -1).numpy()
    targets = [ClassifierOutputTarget(int(label)) for label in panel.labels]

    def run() -> None:
        model.eval()
        with GradCAM(model=model, target_layers=[model.layer4]) as cam:
            maps = cam(input_tensor=panel.images, targets=targets)
        model.zero_grad(set_to_none=True)
        model.train()
        overlays = [show_cam_on_image(image, heat, use_rgb=True) for image, heat in zip(shown, maps, strict=True)]
        if not figure:
            writer.add_images("cam", np.stack(overlays), 0, dataformats="NHWC")
            return
        import matplotlib.pyplot as plt

        rows = -(-len(overlays) // 4)
        drawn, axes = plt.subplots(rows, 4, figsize=(12, 3 * rows))
        for axis, overlay, label in zip(axes.flat, overlays, panel.labels.tolist(), strict=False):
            axis.imshow(overlay)
            axis.set_title(str(label))
            axis.axis("off")
        writer.add_figure("cam", drawn, 0)

    return run, writer.flush


def nothing() -> None:
    """What is waited for where all is done."""


def variants(name: str, n: int, size: int, folder: Path) -> dict[str, tuple[Run, Run]]:
    """Name -> what is measured, and what is waited for after it."""
    model, panel = setting(name, n, size)
    plain = Panel(panel.images, panel.labels, denormalize=panel.denormalize)
    found: dict[str, tuple[Run, Run]] = {}
    for title, of in (("no regions", plain), ("regions, probes", panel)):
        snapshot, flush, batches = snapshots(model, of, folder / title.replace(", ", "-").replace(" ", "-"))
        found[f"forward passes, {title} ({sum(batches)} images)"] = (forwards(model, of.images, batches), nothing)
        found[f"camwatch, {title}"] = (snapshot, flush)
    found["pytorch-grad-cam, add_images"] = peer(model, panel, folder / "peer", False)
    found["pytorch-grad-cam, matplotlib figure"] = peer(model, panel, folder / "figure", True)
    return found


def measure(name: str, n: int, size: int, rounds: int) -> None:
    """Prints one model's table."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = variants(name, n, size, Path(folder))
        held: dict[str, list[float]] = {title: [] for title in found}
        wall: dict[str, list[float]] = {title: [] for title in found}
        behind: dict[str, list[float]] = {title: [] for title in found}
        for index in range(rounds + 1):
            for title, (run, wait) in found.items():
                thread, clock, process = time.thread_time(), time.perf_counter(), time.process_time()
                run()
                thread, clock = time.thread_time() - thread, time.perf_counter() - clock
                wait()
                if index:  # the first round warms up
                    held[title].append(thread)
                    wall[title].append(clock)
                    behind[title].append(time.process_time() - process - thread)
    titles = list(found)
    references = {titles[1]: titles[0], titles[3]: titles[2], titles[4]: titles[0], titles[5]: titles[0]}
    print(f"\n{name}, {n} images of {size} px, {rounds} rounds, {torch.get_num_threads()} torch thread")
    print(f"{'':58} {'thread s':>9} {'ratio':>6} {'wall s':>8} {'behind s':>9}")
    for title in titles:
        ratio = ""
        if title in references:
            pairs = zip(held[title], held[references[title]], strict=True)
            ratio = f"{statistics.median(a / b for a, b in pairs):.3f}"
        values = [statistics.median(found[title]) for found in (held, wall, behind)]
        print(f"{title:58} {values[0]:9.3f} {ratio:>6} {values[1]:8.3f} {values[2]:9.3f}")


def memory(name: str, n: int, size: int, rounds: int, variant: int) -> None:
    """Prints the peak memory, in MB above that before the first run, of one variant."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, panel = setting(name, n, size)
        plain = Panel(panel.images, panel.labels, denormalize=panel.denormalize)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        if variant == 0:
            title, run, wait = "one forward pass", forwards(model, panel.images, [n]), nothing
        elif variant in (1, 2):
            title = ("camwatch, no regions", "camwatch, regions, probes")[variant - 1]
            run, wait, _ = snapshots(model, (plain, panel)[variant - 1], Path(folder))
        else:
            title = ("pytorch-grad-cam, add_images", "pytorch-grad-cam, matplotlib figure")[variant - 3]
            run, wait = peer(model, panel, Path(folder), variant == 4)
        for _ in range(rounds):
            run()
            wait()
        print(f"{title:58} {(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024:9.0f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="*", default=["resnet18", "resnet50"])
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--memory", action="store_true", help="peak memory instead, one process for each variant")
    parser.add_argument("--variant", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in options.model:
        if options.variant is not None:
            memory(name, options.images, options.size, options.rounds, options.variant)
        elif options.memory:
            print(f"\n{name}, {options.images} images of {options.size} px: peak memory over the start's")
            for variant in range(5):
                sizes = ["--images", str(options.images), "--size", str(options.size), "--rounds", "2"]
                command = [sys.executable, __file__, "--model", name, *sizes, "--variant", str(variant)]
                subprocess.run(command, check=True)
        else:
            measure(name, options.images, options.size, options.rounds)


if __name__ == "__main__":
    main()
