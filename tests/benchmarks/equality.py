"""Is a tree equal to another, to the last bit? Maps, passes, memory, snapshots, audits, each tree in fresh processes.

git worktree add build/before 6615a16
python tests/benchmarks/equality.py --before build/before                     # this tree against that one
python tests/benchmarks/equality.py --before build/before --part alarms --runs build/alarms

Differences that are wanted stand in ``DIFFERENCES``, each with its fault's number; any other ends in exit code 1.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from equality_nets import build, nets, small

SLOW = ("sscam", "iscam")  # 29 of 33 s, so on two nets only
# (beginning of the key, what differs, its fault's number)
DIFFERENCES: list[tuple[str, str, str]] = []
RAISED = "raised "


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
    import camwatch

    for name in nets():
        model, images = build(name)
        for method in camwatch.methods():
            if method in SLOW and name not in ("small", "one logit"):
                continue
            torch.manual_seed(3)
            with counted(model) as calls, warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try:
                    found: Any = camwatch.explain(model, images, method=method, batch_size=8).maps
                except Exception as error:
                    found = f"{RAISED}{type(error).__name__}"
            yield f"{name} {method}", found
            yield f"{name} {method} passes", calls[0]
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


def logged_tags(watcher: Any, values: Mapping[str, float]) -> dict[str, float]:
    """The one place that asks a watcher how it calls what it logs."""
    return dict(watcher.tags(values))


def panels() -> tuple[Any, Any, dict[str, tuple[Any, dict[str, Any]]]]:
    """Returns images, labels, and four kinds of panel of them, each with its watcher's options."""
    from camwatch import Panel

    generator = torch.Generator().manual_seed(5)
    images, labels = torch.rand(24, 3, 32, 32, generator=generator), torch.arange(24) % 4
    images[torch.arange(24), 0, :8, :8] += labels[:, None, None] / 2
    masks = torch.zeros(3, 24, 32, 32, dtype=torch.bool)
    masks[0, :, 8:24, 8:24] = masks[1, :, :6, :6] = masks[2, :, 26:, 26:] = True
    masks[0, 5] = False
    zones = [{"allowed": a, "forbidden": f, "ignore": i} if a.any() else None for a, f, i in zip(*masks, strict=True)]
    kinds = {
        "nothing": (Panel(images), {"target": "predicted"}),
        "labels": (Panel(images, labels), {"layer": ["4", "2"]}),
        "regions": (Panel(images, labels, regions=[m if m.any() else None for m in masks[0]]), {}),
        "zones": (Panel(images, labels, regions=zones), {"layer": ["2", "4"], "target": 1, "method": "hirescam"}),
    }
    return images, labels, kinds


def snapshots() -> Iterator[tuple[str, Any]]:
    """Measures, means, what is published and logged, on four kinds of panel while a small net learns."""
    from camwatch import Watcher

    images, labels, kinds = panels()
    for kind, (panel, options) in kinds.items():
        torch.manual_seed(7)
        model = small()
        optimizer, recorder = torch.optim.Adam(model.parameters(), 0.01), Recorder()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            watcher = Watcher(model, panel, writers=[recorder], planned=4, on_alarm=[], **options)
            yield f"{kind} before", dict(watcher.published)
            for look in range(4):
                found = watcher.snapshot(look, 10 * look)
                yield f"{kind} {look} error", found.error and f"{RAISED}{found.error}"
                for key in found.per_image:
                    yield f"{kind} {look} {key}", found.per_image[key]
                yield f"{kind} {look} scalars", dict(found.scalars)
                yield f"{kind} {look} tags", logged_tags(watcher, found.scalars)
                yield f"{kind} {look} published", dict(watcher.published)
                for _ in range(5):
                    optimizer.zero_grad()
                    torch.nn.functional.cross_entropy(model(images), labels).backward()
                    optimizer.step()
            watcher.close()
        yield f"{kind} logged", recorder.got


def audits() -> Iterator[tuple[str, Any]]:
    """The tables of audits for each kind of target, byte for byte."""
    import pytorch_lightning as pl
    from torch.utils.data import DataLoader, TensorDataset

    from camwatch import audit

    generator = torch.Generator().manual_seed(5)
    images, labels = torch.rand(30, 3, 32, 32, generator=generator), torch.arange(30) % 5
    masks = torch.zeros(30, 32, 32, dtype=torch.bool)
    masks[:25, 4:20, 4:20] = True
    for target in ("label", "predicted", 2):
        torch.manual_seed(7)
        model = small()
        quiet = pl.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loader = DataLoader(TensorDataset(images, labels, masks), 8)
            found = audit(model, loader, target=target, output=f"{folder}/audit.csv", trainer=quiet)
            yield f"{target} table", found.table.read_bytes().decode()
            yield f"{target} classes", found.table.with_name("audit.classes.csv").read_bytes().decode()


def alarms(folder: str) -> Iterator[tuple[str, Any]]:
    """What the detectors say of every trained run of drift/, its measures being stored; levels aside (W7)."""
    from camwatch import Snapshot, replay

    for file in sorted(set(Path(folder).glob("*.pt")) - set(Path(folder).glob("backbone*"))):
        for kind, stored in torch.load(file, weights_only=True)["snapshots"].items():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found = replay([Snapshot(**one) for one in stored])
            plain = [(a, _without_levels(a.evidence), a.evidence.get("behaviour")) for a in found]
            yield f"{file.stem} {kind}", [[a.detector, a.epoch, a.global_step, *rest] for a, *rest in plain]


def _without_levels(evidence: Any) -> Any:
    if isinstance(evidence, dict):
        bounds = ("level", "score_low", "hide_low")  # which are at that level
        return {key: _without_levels(value) for key, value in evidence.items() if key not in bounds}
    return evidence


WORK: dict[str, Callable[..., Iterator[tuple[str, Any]]]] = {
    "maps": maps, "memory": memory, "snapshots": snapshots, "audits": audits, "alarms": alarms
}  # fmt: skip


def work(part: str, arguments: list[str], tree: Path, to: Path) -> None:
    """Writes what a part finds in this process, whose camwatch has to be the tree's and no installed one."""
    import camwatch

    if not Path(camwatch.__file__).resolve().is_relative_to(tree):
        raise SystemExit(f"{camwatch.__file__} was imported, not {tree}'s camwatch")
    torch.set_num_threads(1)
    torch.save(dict(WORK[part](*arguments)), to)


def run(tree: Path, part: str, *arguments: str) -> dict[str, Any]:
    """Runs a part in a fresh process over a tree."""
    environment = os.environ | {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    with tempfile.TemporaryDirectory() as folder:
        to = Path(folder) / "found.pt"
        script = [sys.executable, str(Path(__file__).resolve())]
        command = [*script, "--before", str(tree), "--to", str(to), "--worker", part, *arguments]
        done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{part} in {tree}: {done.stderr[-3000:]}")
        return dict(torch.load(to, weights_only=True))


def same(one: Any, other: Any) -> bool:
    """Whether two results are equal to the last bit, NaN to NaN; the order of a dict's keys is nobody's."""
    if type(one) is not type(other):
        return False
    if isinstance(one, torch.Tensor):
        kind = one.dtype == other.dtype and one.shape == other.shape
        return kind and one.contiguous().numpy().tobytes() == other.contiguous().numpy().tobytes()
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other or (isinstance(one, float) and math.isnan(one) and math.isnan(other))


def told(one: Any, other: Any) -> str:
    """Says in few words how two results differ."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor) and one.shape == other.shape:
        return f"up to {(one.double() - other.double()).abs().max():.3g} of {one.double().abs().max():.3g}"
    if isinstance(one, dict) and isinstance(other, dict):
        keys = [key for key in {**one, **other} if not same(one.get(key), other.get(key))]
        return ", ".join(f"{key} {one.get(key)} -> {other.get(key)}" for key in keys[:3]) + f" ({len(keys)} in all)"
    return f"{str(one)[:80]} -> {str(other)[:80]}"


def compare(part: str, before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Returns what differs and is not listed, and prints how much was compared."""
    both = {key: (before.get(key, "missing"), after.get(key, "missing")) for key in {**before, **after}}
    differ = [key for key, pair in both.items() if not same(*pair)]
    listed = [key for key in differ if any(f"{part} {key}".startswith(known) for known, *_ in DIFFERENCES)]
    raised = sum(isinstance(value, str) and value.startswith(RAISED) for value in before.values())
    blank = sum(isinstance(value, torch.Tensor) and not value.any() for value in before.values())
    print(f"{part:10}{len(both):10}{raised:10}{blank:10}{len(differ):10}{len(listed):10}", end="", flush=True)
    return [f"{part} {key}: {told(*both[key])}" for key in differ if key not in listed]


def compare_memory(before: Path, after: Path, rounds: int = 3) -> list[str]:
    """Returns where a fresh process holds over 1.05 times as much, by the least of a few runs."""
    found, ratios = [], []
    for case in (("resnet18", "gradcam"), ("vit", "gradcam"), ("mobilenet_v3_small", "scorecam"), ("vit", "legrad")):
        least, now = (
            min(peak for _ in range(rounds) for peak in run(tree, "memory", *case).values()) for tree in (before, after)
        )
        ratios.append(now / least)
        found += [f"memory {' '.join(case)}: {least} -> {now} kB, {now / least:.3f}x"] if now / least > 1.05 else []
    print(f"{'memory':10}{len(ratios):10}{0:10}{0:10}{len(found):10}{0:10}  up to {max(ratios):.3f}x", end="")
    return found


def main() -> None:
    """Compares two trees, or is the process that works in one of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, required=True, help="a checkout")
    parser.add_argument("--after", type=Path, default=Path(__file__).parents[2], help="another one (this)")
    parser.add_argument("--part", choices=WORK, action="append")
    parser.add_argument("--runs", type=Path, help="the folder of the trained runs, for the alarms")
    parser.add_argument("--worker", nargs="+", help=argparse.SUPPRESS)
    parser.add_argument("--to", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    before, after = options.before.resolve(), options.after.resolve()
    if options.worker:
        return work(options.worker[0], options.worker[1:], before, options.to)
    wrong = []
    print(f"{'part':10}{'compared':>10}{'raised':>10}{'blank':>10}{'differ':>10}{'listed':>10}")
    for part in options.part or [part for part in WORK if part != "alarms" or options.runs]:
        start = time.perf_counter()
        if part == "memory":
            wrong += compare_memory(before, after)
        else:
            more = [str(options.runs.resolve())] if part == "alarms" else []
            wrong += compare(part, run(before, part, *more), run(after, part, *more))
        print(f"  {time.perf_counter() - start:.0f} s")
    print("\n".join(wrong) or "equal")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
