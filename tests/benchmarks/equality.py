"""Is a tree equal to another, to the last bit? Maps, passes, memory, snapshots, audits, each tree in fresh processes.

git worktree add build/before 6615a16
python tests/benchmarks/equality.py --before build/before                 # all parts, this tree against that one
python tests/benchmarks/equality.py --before build/before --part maps
python tests/benchmarks/equality.py --before build/before --part alarms --runs build/alarms

Differences that are wanted stand in ``DIFFERENCES``, each with its fault's number; any other ends in exit code 1.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parents[2]
PARTS = ("maps", "memory", "snapshots", "audits", "alarms")
SLOW = ("sscam", "iscam")  # 29 of 33 s, so on two nets only
# (beginning of the key, what differs, its fault's number)
DIFFERENCES: list[tuple[str, str, str]] = []


def nets() -> dict[str, Callable[[], Any]]:
    """Twenty nets, built after seeding: CNNs, transformers, dense outputs, one logit, signals and volumes."""
    import timm
    import torch
    from torch import nn
    from torchvision import models

    def small(axes: int, classes: int = 5) -> nn.Module:
        conv, norm, pool = (getattr(nn, f"{kind}{axes}d") for kind in ("Conv", "BatchNorm", "AdaptiveAvgPool"))
        body = [
            conv(3, 8, 3, 2, 1),
            norm(8),
            nn.ReLU(),
            conv(8, 16, 3, 2, 1),
            nn.ReLU(),
            conv(16, 16, 3, 1, 1),
            nn.ReLU(),
        ]
        return nn.Sequential(*body, pool(1), nn.Flatten(), nn.Linear(16, classes))

    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = small(2)

        def forward(self, x: torch.Tensor) -> dict[str, Any]:
            return {"features": None, "logits": self.net(x)}

    class Dense(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = small(2)[:5], nn.Conv2d(16, 4, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.interpolate(self.head(self.body(x)), x.shape[2:], mode="bilinear")

    def of(name: str, **options: Any) -> Callable[[], Any]:
        return lambda: models.get_model(name, weights=None, num_classes=10, **options)

    def timm_of(name: str, **options: Any) -> Callable[[], Any]:
        return lambda: timm.create_model(name, num_classes=10, **options)

    return {
        "small": lambda: small(2),
        "one logit": lambda: small(2, 1),
        "dict": Named,
        "dense": Dense,
        "signal": lambda: small(1),
        "volume": lambda: small(3),
        "resnet18": of("resnet18"),
        "mobilenet_v3_small": of("mobilenet_v3_small"),
        "squeezenet1_1": of("squeezenet1_1"),
        "shufflenet_v2_x0_5": of("shufflenet_v2_x0_5"),
        "mnasnet0_5": of("mnasnet0_5"),
        "regnet_y_400mf": of("regnet_y_400mf"),
        "efficientnet_b0": of("efficientnet_b0"),
        "densenet121": of("densenet121"),
        "vgg11_bn": of("vgg11_bn", init_weights=True),
        "vit": of("vit_b_16", image_size=64),
        "swin_t": of("swin_t"),
        "convnext_tiny": of("convnext_tiny"),
        "deit": timm_of("deit_tiny_patch16_224", img_size=64),
        "repvgg_a0": timm_of("repvgg_a0"),
    }


SCORED = ("ablationcam", "scorecam", "sscam", "iscam", "occlusion", "smoothgrad", "smoothgradcam++")
SMALL = ("small", "one logit", "dict", "dense", "signal", "volume")  # on which methods of many passes run


def digest(*tensors: Any) -> str:
    total = hashlib.sha256()
    for tensor in tensors:
        total.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode() + tensor.contiguous().numpy().tobytes())
    return total.hexdigest()[:16]


def build(name: str) -> tuple[Any, Any]:
    """Returns a net and two images for it."""
    import torch

    torch.manual_seed(7)
    model = nets()[name]().eval()
    axes = {"signal": 1, "volume": 3}.get(name, 2)
    return model, torch.rand(2, 3, *[16 if axes == 3 else 64] * axes, generator=torch.Generator().manual_seed(1))


@contextlib.contextmanager
def counted(model: Any) -> Iterator[list[int]]:
    """Counts the calls of a model's forward in the list's only entry."""
    calls, plain = [0], type(model).forward

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls[0] += self is model
        return plain(self, *args, **kwargs)

    type(model).forward = forward
    try:
        yield calls
    finally:
        type(model).forward = plain


def maps() -> Iterator[tuple[str, Any]]:
    """Each net's maps of each method that runs on it, and how often the model ran; or what was raised."""
    import torch

    import camwatch

    for name in nets():
        model, images = build(name)
        for method in camwatch.methods():
            if (method in SLOW and name not in SMALL[:2]) or (method in SCORED and name not in (*SMALL, "resnet18")):
                continue
            torch.manual_seed(3)
            with counted(model) as calls, warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try:
                    found: Any = digest(camwatch.explain(model, images, method=method, batch_size=8).maps)
                except Exception as error:
                    found = type(error).__name__
            yield f"{name} {method}", [found, calls[0]]
        listed = camwatch.layers(model, images)
        yield f"{name} layers", [[one.name, list(one.grid), one.channels, one.default] for one in listed]


def memory(name: str, method: str) -> Iterator[tuple[str, Any]]:
    """The most memory that a fresh process ever held, in kB."""
    import resource

    import camwatch

    model, images = build(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        camwatch.explain(model, images.repeat(8, 1, 1, 1), method=method)
    yield f"{name} {method}", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


class Recorder:
    """Keeps the scalars that a writer gets."""

    def __init__(self) -> None:
        self.got: list[Any] = []

    def scalars(self, values: Any, step: int) -> None:
        self.got.append([step, dict(values)])

    def image(self, *args: Any) -> None: ...

    def text(self, *args: Any) -> None: ...


def snapshots() -> Iterator[tuple[str, Any]]:
    """Measures, means, what is published and logged, on four kinds of panel while a small net learns."""
    import torch

    from camwatch import Panel, Watcher

    generator = torch.Generator().manual_seed(5)
    images, labels = torch.rand(24, 3, 32, 32, generator=generator), torch.arange(24) % 4
    images[torch.arange(24), 0, :8, :8] += labels[:, None, None] / 2
    masks = torch.zeros(3, 24, 32, 32, dtype=torch.bool)
    masks[0, :, 8:24, 8:24] = masks[1, :, :6, :6] = masks[2, :, 26:, 26:] = True
    masks[0, 5] = False
    zones = [
        {"allowed": a, "forbidden": f, "ignore": i} if a.any() else None for a, f, i, _ in zip(*masks, strict=True)
    ]
    kinds = {
        "nothing": (Panel(images), {"target": "predicted"}),
        "labels": (Panel(images, labels), {"layer": ["4", "2"]}),
        "regions": (Panel(images, labels, regions=[m if m.any() else None for m in masks[0]]), {}),
        "zones": (Panel(images, labels, regions=zones), {"layer": ["2", "4"], "target": 1, "method": "hirescam"}),
    }
    for kind, (panel, options) in kinds.items():
        torch.manual_seed(7)
        model = nets()["small"]()
        optimizer, recorder = torch.optim.Adam(model.parameters(), 0.01), Recorder()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            watcher = Watcher(model, panel, writers=[recorder], planned=4, on_alarm=[], **options)
            yield f"{kind} before", dict(watcher.published)
            for look in range(4):
                found = watcher.snapshot(look, 10 * look)
                yield f"{kind} {look} error", found.error
                yield f"{kind} {look} keys", sorted(found.per_image)
                for key in sorted(found.per_image):
                    yield f"{kind} {look} {key}", digest(found.per_image[key])
                yield f"{kind} {look} scalars", dict(sorted(found.scalars.items()))
                for _ in range(5):
                    optimizer.zero_grad()
                    torch.nn.functional.cross_entropy(model(images), labels).backward()
                    optimizer.step()
        yield f"{kind} published", dict(sorted(watcher.published.items()))
        yield f"{kind} logged", [[step, dict(sorted(values.items()))] for step, values in recorder.got]
        yield f"{kind} alarms", [[a.detector, a.epoch, a.message.split(" The cue")[0]] for a in watcher.alarms]


def audits() -> Iterator[tuple[str, Any]]:
    """The tables of audits for each kind of target, byte for byte."""
    import pytorch_lightning as pl
    import torch
    from torch.utils.data import DataLoader, TensorDataset

    from camwatch import audit

    generator = torch.Generator().manual_seed(5)
    images, labels = torch.rand(30, 3, 32, 32, generator=generator), torch.arange(30) % 5
    masks = torch.zeros(30, 32, 32, dtype=torch.bool)
    masks[:25, 4:20, 4:20] = True
    for target in ("label", "predicted", 2):
        torch.manual_seed(7)
        model = nets()["small"]()
        quiet = pl.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loader = DataLoader(TensorDataset(images, labels, masks), 8)
            found = audit(model, loader, target=target, output=f"{folder}/audit.csv", trainer=quiet)
            yield f"{target} table", hashlib.sha256(found.table.read_bytes()).hexdigest()
            classes = found.table.with_name("audit.classes.csv")
            yield f"{target} classes", hashlib.sha256(classes.read_bytes()).hexdigest()


def alarms(folder: str) -> Iterator[tuple[str, Any]]:
    """What the detectors say of every trained run of drift/, its measures being stored; levels aside (W7)."""
    import torch

    from camwatch import Snapshot, replay

    for file in sorted(Path(folder).glob("*.pt")):
        if file.name.startswith("backbone"):
            continue
        for kind, stored in torch.load(file, weights_only=True)["snapshots"].items():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found = replay([Snapshot(**one) for one in stored])
            said = [
                [a.detector, a.epoch, a.global_step, _without_levels(a.evidence), a.evidence.get("behaviour")]
                for a in found
            ]
            yield f"{file.stem} {kind}", said


def _without_levels(evidence: Any) -> Any:
    if isinstance(evidence, dict):
        bounds = ("level", "score_low", "hide_low")  # which are at that level
        return {key: _without_levels(value) for key, value in evidence.items() if key not in bounds}
    return evidence


WORK: dict[str, Callable[..., Iterator[tuple[str, Any]]]] = {
    "maps": maps, "memory": memory, "snapshots": snapshots, "audits": audits, "alarms": alarms
}  # fmt: skip


def run(tree: Path, part: str, *arguments: str) -> dict[str, Any]:
    """Runs a part in a fresh process over a tree."""
    environment = os.environ | {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(Path(__file__).resolve()), "--work", part, *arguments]
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{part} in {tree}: {done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def compare(part: str, before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Returns what differs and is not listed, and prints how much was compared."""
    differ = [key for key in {**before, **after} if before.get(key) != after.get(key)]
    listed = [key for key in differ if any(f"{part} {key}".startswith(known) for known, *_ in DIFFERENCES)]
    print(f"{part}: {len(before)} compared, {len(differ)} differ, {len(listed)} of them listed", flush=True)
    return [f"{part} {key}: {before.get(key)} -> {after.get(key)}" for key in differ if key not in listed]


def compare_memory(before: Path, after: Path, rounds: int = 3) -> list[str]:
    """Returns where a fresh process holds over 1.05 times as much, by the least of a few runs."""
    found = []
    cases = (("resnet18", "gradcam"), ("vit", "gradcam"), ("mobilenet_v3_small", "scorecam"), ("vit", "legrad"))
    for name, method in cases:
        least, now = (
            min(peak for _ in range(rounds) for peak in run(tree, "memory", name, method).values())
            for tree in (before, after)
        )
        ratio = now / least
        print(f"memory: {name} {method} {least / 1024:.0f} MB, {ratio:.3f}x", flush=True)
        found += [f"memory {name} {method}: {ratio:.3f}x"] if ratio > 1.05 else []
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, help="a checkout")
    parser.add_argument("--after", type=Path, default=HERE, help="another one (this)")
    parser.add_argument("--part", choices=PARTS, action="append")
    parser.add_argument("--runs", type=Path, help="the folder of the trained runs, for the alarms")
    parser.add_argument("--work", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        import torch

        torch.set_num_threads(1)
        print(json.dumps(dict(WORK[options.work[0]](*options.work[1:])), default=str))
        return
    before, after = options.before.resolve(), options.after.resolve()
    wrong = []
    for part in options.part or PARTS:
        if part == "memory":
            wrong += compare_memory(before, after)
        elif part != "alarms" or options.runs is not None:
            more = [str(options.runs.resolve())] if part == "alarms" else []
            wrong += compare(part, run(before, part, *more), run(after, part, *more))
    print("\n".join(wrong) or "equal")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
