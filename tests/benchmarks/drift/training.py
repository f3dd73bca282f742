"""One run: a small net trained with a cue, its snapshots, and what it relied on, measured without any map."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import worlds
from torch import Tensor, nn
from torch.nn import functional

from camwatch import Panel
from camwatch.metrics import relevance_mass_accuracy
from camwatch.parallel import Share
from camwatch.probes.transplanting import transplant
from camwatch.records import Snapshot
from camwatch.run import BATCH, RunConfig
from camwatch.watch.snapshot import Moment, measure

ARMS: dict[str, float | None] = {"chance": 1 / worlds.CLASSES, "none": None, "0.8": 0.8, "0.95": 0.95, "1": 1.0}
CONTROLS = ("rate x3", "augmentation", "label noise")
TRAIN, HELD, PANEL = 400, 320, 64


@dataclass(frozen=True)
class Run:
    """What is trained: everything else follows from it.

    Attributes:
        seed: Of the data, the initialization and the order.
        base: Of the images.
        cue: What is planted.
        arm: One of ``ARMS`` or ``CONTROLS``; "late" (useless until the switch, then rho = 1); "legitimate"
            (an informative background of rho = .35); "settled" (the task is known without the cue before the
            run begins, and the cue comes in with rho = 1 at the third epoch).
        net: Architecture.
        epochs: How many.
    """

    seed: int
    base: str
    cue: str
    arm: str
    net: str = "plain"
    epochs: int = 8

    @property
    def key(self) -> str:
        return f"{self.seed:03d}-{self.base}-{self.net}-{self.cue}-{self.arm.replace(' ', '_')}"

    def rho(self, epoch: int) -> float | None:
        """P(cue agrees with the label) in the training images of an epoch."""
        if self.arm == "late":
            return 1.0 if epoch >= 4 else 1 / worlds.CLASSES
        if self.arm == "legitimate":
            return 0.35
        if self.arm == "settled":
            return 1.0 if epoch >= 2 else None
        return ARMS["chance" if self.arm in CONTROLS else self.arm]


def block(inputs: int, outputs: int, stride: int = 1) -> nn.Module:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1), nn.BatchNorm2d(outputs), nn.ReLU())


def separable(inputs: int, outputs: int, stride: int = 1) -> nn.Module:
    depthwise = nn.Conv2d(inputs, inputs, 3, stride, 1, groups=inputs)
    return nn.Sequential(depthwise, nn.Conv2d(inputs, outputs, 1), nn.GroupNorm(4, outputs), nn.SiLU())


class Dense(nn.Module):
    """Every layer sees all before it (DenseNet's block), and the channels are halved at the end."""

    def __init__(self, inputs: int, growth: int, layers: int) -> None:
        super().__init__()
        widths = [inputs + growth * k for k in range(layers + 1)]
        self.layers = nn.ModuleList(block(width, growth) for width in widths[:-1])
        self.join = nn.Sequential(nn.Conv2d(widths[-1], widths[-1] // 2, 1), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.cat([x, layer(x)], 1)
        joined: Tensor = self.join(x)
        return joined


def save(what: Any, path: Path) -> None:
    """Writes a file whole or not at all, whoever else may be writing it."""
    torch.save(what, part := path.with_suffix(f".{os.getpid()}"))
    part.replace(path)


def build(net: str) -> nn.Sequential:
    """Returns (backbone, head) as one module."""
    if net == "resnet18":
        from torchvision.models import resnet18

        whole = resnet18(num_classes=worlds.CLASSES)
        layers = list(whole.named_children())
        backbone = nn.Sequential()
        for name, layer in layers[:-2]:
            backbone.add_module(name, layer)
        width = 512
    elif net == "plain":
        backbone = nn.Sequential(block(3, 16, 2), block(16, 24), block(24, 40, 2), block(40, 40), block(40, 40))
        width = 40
    elif net == "separable":
        backbone = nn.Sequential(
            block(3, 24, 2), separable(24, 32), separable(32, 64, 2), separable(64, 64), separable(64, 64)
        )
        width = 64
    elif net == "deep":
        widths = (3, 16, 32, 32, 64, 64, 64, 64)
        strides = (1, 2, 1, 2, 1, 1, 1)
        backbone = nn.Sequential(*map(block, widths, widths[1:], strides))
        width = 64
    elif net == "dense":
        backbone = nn.Sequential(block(3, 16, 2), Dense(16, 12, 4), nn.AvgPool2d(2), Dense(32, 12, 4))
        width = 40
    else:
        raise ValueError(f"unknown net {net!r}")
    return nn.Sequential(backbone, nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 5)))


def pretrained(base: str, net: str, seed: int, folder: Path) -> nn.Sequential:
    """Returns a net whose backbone knows other classes, without a cue; trained once per base, net and seed mod 4."""
    start = seed % 4
    path = folder / f"backbone-{base}-{net}-{start}.pt"
    torch.manual_seed(start)
    model = build(net)
    if path.exists():
        model.load_state_dict(torch.load(path, weights_only=True))
        return model
    count, rate = (1500, 1e-3) if net == "resnet18" else (800, 2e-3)
    given = worlds.scenes(base, count, start, pretraining=True)
    optimizer = torch.optim.Adam(model.parameters(), rate)
    for epoch in range(6):
        for batch in batches(len(given.labels), epoch):
            step(model, optimizer, given.images[batch] - 0.5, given.labels[batch])
    torch.manual_seed(start)
    model[1][-1].reset_parameters()
    save(model.state_dict(), path)
    return model


def step(model: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor) -> None:
    model.train()
    optimizer.zero_grad(set_to_none=True)
    functional.cross_entropy(model(images), labels).backward()
    optimizer.step()


def settle(model: nn.Module, given: worlds.Scenes, rate: float, seed: int) -> None:
    """Teaches a net the task on images without a cue."""
    optimizer = torch.optim.Adam(model.parameters(), rate)
    for epoch in range(6):
        for batch in batches(len(given.labels), 100 * seed + 50 + epoch):
            step(model, optimizer, given.images[batch] - 0.5, given.labels[batch])


def batches(count: int, seed: int, size: int = 32) -> Iterator[Tensor]:
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return (batch for batch in order.split(size) if len(batch) > 1)


def augment(images: Tensor, seed: int) -> Tensor:
    """Shifts, contrast, noise, and an erased square: heavy, and the same for all arms."""
    g = torch.Generator().manual_seed(seed)
    n, _, size, _ = images.shape
    gain, noise = 0.6 + 0.8 * torch.rand(n, 1, 1, 1, generator=g), torch.randn(images.shape, generator=g)
    images = images * gain + 0.08 * noise
    shifts, holes = torch.randint(-5, 6, (n, 2), generator=g), torch.randint(0, size - 10, (n, 2), generator=g)
    for i, ((dy, dx), (y, x)) in enumerate(zip(shifts.tolist(), holes.tolist(), strict=True)):
        images[i] = images[i].roll((dy, dx), (1, 2))
        images[i, :, y : y + 10, x : x + 10] = 0
    return images


@torch.no_grad()
def logits(model: nn.Module, images: Tensor) -> Tensor:
    model.eval()
    return torch.cat([model(batch) for batch in images.split(64)])


def panels(images: Tensor, given: worlds.Scenes, annotations: bool, seed: int) -> dict[str, Panel]:
    """Returns the panel with true regions and, if asked, with the bad annotations of the ablations."""
    true = Panel(images, given.labels, given.masks)
    found = {"true": true}
    if annotations:
        g, n = torch.Generator().manual_seed(seed), len(given.labels)
        half, wrong = (torch.randperm(n, generator=g) for _ in range(2))
        boxes = true.regions.boxes().float()
        size = (boxes[:, 2:] - boxes[:, :2]) / 4  # a side of half as much again: a quarter at each end
        grown = torch.cat([boxes[:, :2] - size, boxes[:, 2:] + size], 1).clamp(0, images.shape[-1])
        shifted, masks = true.regions.shifted().allowed, given.masks.clone()
        masks[wrong[: round(0.1 * n)]] = shifted[wrong[: round(0.1 * n)]]
        kept = set(half[: n // 2].tolist())
        some = [mask if i in kept else None for i, mask in enumerate(given.masks)]
        found["half missing"] = Panel(images, given.labels, some)
        found["dilated 50 %"] = Panel(images, given.labels, [box[None] for box in grown])
        found["10 % wrong"] = Panel(images, given.labels, masks)
    return found


def baselines(model: nn.Module, panel: Panel, snapshot: Snapshot, layer: str) -> dict[str, float]:
    """Returns what the dumb maps say: a shifted mask, a centre prior, the mean activation of all channels."""
    [maps] = snapshot.maps.values()
    kept: list[Tensor] = []
    handle = model.get_submodule(layer).register_forward_hook(lambda _m, _i, output: kept.append(output.detach()))
    logits(model, panel.images)
    handle.remove()
    axis = torch.linspace(-1, 1, maps.shape[-1])
    centre = torch.exp(-2 * (axis[:, None] ** 2 + axis[None] ** 2)).expand_as(maps)
    shares = {
        "shifted mask": relevance_mass_accuracy(maps, panel.regions.shifted()),
        "centre prior": relevance_mass_accuracy(centre, panel.regions),
        "mean activation": relevance_mass_accuracy(torch.cat(kept).mean(1).clamp(min=0), panel.regions),
    }
    return {name: float(values.nanmean()) for name, values in shares.items()}


KEPT = (
    "relevance_mass_accuracy",
    "region_area",
    "map_mass",
    "map_similarity",
    "correct",
    "hide",
    "hide_elsewhere",
    "swap_context",
    "swap_region",
    "swap_confusion",
    "swaps",
)


def slim(snapshot: Snapshot) -> Snapshot:
    """Returns the snapshot without maps, and with what detectors read."""
    measured = {k: v.half().float() if k != "map_mass" else v for k, v in snapshot.per_image.items() if k in KEPT}
    return dataclasses.replace(snapshot, maps={}, predicted_maps={}, pastes=None, scalars={}, per_image=measured)


def parts(run: Run) -> tuple[worlds.Scenes, worlds.Scenes, worlds.Scenes]:
    """Returns the scenes for training, those held out, and the panel's; none has its cue yet."""
    count, held = (500, 200) if run.net == "resnet18" else (TRAIN, HELD)
    given = worlds.scenes(run.base, count + held + PANEL, run.seed)
    return given[:count], given[count : count + held], given[count + held :]


def panel_images(run: Run) -> tuple[Tensor, worlds.Scenes]:
    """Returns the panel as the net takes it; its cue agrees with the label in every arm that has one."""
    watched = parts(run)[2]
    return worlds.plant(run.cue, watched, watched.labels, 5 * run.seed + 1) - 0.5, watched


def train(run: Run, folder: Path) -> dict[str, Any]:
    """Trains a run and returns what the report needs; also written to ``folder/<key>.pt``."""
    began = time.process_time()
    small = run.net == "resnet18"
    rate = {"resnet18": 3e-4, "deep": 1e-3}.get(run.net, 2e-3)
    training, test, watched = parts(run)
    shown, _ = panel_images(run)
    agrees = worlds.plant(run.cue, test, test.labels, 5 * run.seed + 2) - 0.5
    disagrees = worlds.plant(run.cue, test, worlds.draw_cues(test.labels, 0.0, run.seed), 5 * run.seed + 2) - 0.5
    model = pretrained(run.base, run.net, run.seed, folder)
    if run.arm == "settled":
        settle(model, training, rate, run.seed)
    layer = "0.layer2" if small else None
    watched_as = panels(shown, watched, run.arm == "1" and run.cue in worlds.LOCALIZED and not small, run.seed)
    config = RunConfig.of(model, layer).resolved(model, shown, watched.labels)
    labels = training.labels.clone()
    if run.arm == "label noise":
        noise = torch.Generator().manual_seed(run.seed)
        wrong = torch.rand(len(labels), generator=noise) < 0.2
        labels[wrong] = (labels[wrong] + 1 + torch.randint(4, (int(wrong.sum()),), generator=noise)) % 5
    optimizer = torch.optim.Adam(model.parameters(), rate * (3 if run.arm == "rate x3" else 1))
    epochs = run.epochs + 2 * (run.arm == "late")
    history: dict[str, list[Snapshot]] = {name: [] for name in watched_as}
    looks: list[dict[str, float]] = []
    reference: dict[str, dict[str, Tensor]] = {name: {} for name in watched_as}

    def look(epoch: int) -> None:
        right, scores = logits(model, agrees), logits(model, disagrees)
        reliance = float(((right.argmax(1) == test.labels).float() - (scores.argmax(1) == test.labels).float()).mean())
        rho = run.rho(max(epoch, 0))
        follows = worlds.draw_cues(test.labels, rho, run.seed + 50) == test.labels
        outputs = logits(model, test.images - 0.5) if rho is None else torch.where(follows[:, None], right, scores)
        numbers = {
            "epoch": epoch,
            "reliance": reliance,
            "validation accuracy": float((outputs.argmax(1) == test.labels).float().mean()),
            "validation loss": float(functional.cross_entropy(outputs, test.labels)),
            "counterfactual accuracy": float((scores.argmax(1) == test.labels).float().mean()),
        }
        for name, panel in watched_as.items():
            snapshot = _measure(model, config, panel, Moment(epoch, 0, len(looks), epochs + 1), reference[name])
            reference[name] = reference[name] or dict(snapshot.maps)
            if name == "true":
                numbers |= baselines(model, panel, snapshot, config.layers[0])
                hidden = snapshot.per_image.get("hide")
                numbers["outside-only accuracy"] = float("nan") if hidden is None else float(hidden.nanmean())
            history[name].append(slim(snapshot))
        looks.append(numbers)

    look(-1)
    for epoch in range(epochs):
        values = worlds.draw_cues(training.labels, run.rho(epoch), run.seed + 99)
        images = worlds.plant(run.cue, training, values, 5 * run.seed + 3) - 0.5
        for batch in batches(len(labels), 100 * run.seed + epoch):
            inputs = images[batch]
            if run.arm == "augmentation":
                inputs = augment(inputs, 10_000 * run.seed + 100 * epoch + int(batch[0]))
            step(model, optimizer, inputs, labels[batch])
        look(epoch)
    result = {
        "run": dataclasses.asdict(run),
        "looks": looks,
        "snapshots": history,
        "model": model.state_dict(),
        "seconds": time.process_time() - began,
    }
    save(result | {"snapshots": {k: [vars(s) for s in v] for k, v in history.items()}}, folder / f"{run.key}.pt")
    return result


def ensure(step: Callable[[Run, Path], Any], ending: str, folder: Path, run: Run) -> str:
    """Does a step of a run unless its file is there."""
    torch.set_num_threads(1)
    if not (folder / f"{run.key}{ending}").exists():
        step(run, folder)
    return run.key


def name_cue(run: Run, folder: Path) -> None:
    """Runs the transplant probe on a trained net and writes ``<key>.place``."""
    model = build(run.net)
    model.load_state_dict(torch.load(folder / f"{run.key}.pt", weights_only=True)["model"])
    images, watched = panel_images(run)
    boxes = Panel(images, watched.labels, watched.masks).regions.boxes()
    found = transplant(lambda x: logits(model, x), images, watched.labels, boxes=boxes)
    place = worlds.place_of(run.cue, images.shape[-1])
    x1, y1, x2, y2 = found.box or (0, 0, 0, 0)
    hits = None if place is None else bool(place[y1:y2, x1:x2].any())
    named = found.cell is not None
    save({"rates": found.rates, "named": named, "hits": hits, "box": found.box}, folder / f"{run.key}.place")


def _measure(
    model: nn.Module, config: RunConfig, panel: Panel, moment: Moment, reference: dict[str, Tensor]
) -> Snapshot:
    model.eval()
    return measure(model, config, panel, moment, reference=reference, probes=True, share=Share(), batch_size=BATCH)
