"""Which layer is found on which architecture: no layer named, random weights, the predicted class.

The map before its ReLU must be finite and not constant. Every architecture runs in a process of its own;
results go to a CSV file per library, and what stands there already is not run again.

    python tests/benchmarks/zoo.py --out zoo                        # torchvision, timm and HuggingFace
    python tests/benchmarks/zoo.py --out zoo --only torchvision     # one library
    python tests/benchmarks/zoo.py --out zoo --table                # the table from what stands in the folder
"""

from __future__ import annotations

import argparse
import csv
import multiprocessing
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

FIELDS = ["library", "architecture", "status", "layer", "grid", "size", "redrawn", "seconds", "note"]
SMALL = {"num_labels": 10, "image_size": 64}
LIBRARIES = ("torchvision", "torchvision segmentation", "torchvision detection", "timm", "HuggingFace")


def names(library: str) -> list[str]:
    """The architectures of a library, in order."""
    if library == "timm":
        import timm

        entries = []
        for module in sorted(timm.list_modules())[:60]:
            models = timm.list_models(module=module)
            entries.append(f"{module}: {models[0]}" if models else f"{module}: -")
        return entries
    if library == "HuggingFace":
        return list(hugging_face())
    import torchvision.models as zoo

    modules = {
        "torchvision": zoo,
        "torchvision segmentation": zoo.segmentation,
        "torchvision detection": zoo.detection,
    }
    return zoo.list_models(module=modules[library])


def build(library: str, name: str) -> tuple[nn.Module, Tensor, Any]:
    """A model with random weights, two images, and the target."""
    torch.manual_seed(0)
    if library == "timm":
        import timm

        model = timm.create_model(name.split(": ")[1], pretrained=False)
        return model, torch.randn(2, *model.default_cfg["input_size"]), "predicted"
    if library == "HuggingFace":
        model, size = hugging_face()[name]()
        return model, torch.randn(2, 3, size, size), "predicted"
    import torchvision.models as zoo

    if library == "torchvision":
        options = {"init_weights": True} if name in ("googlenet", "inception_v3") else {}
        size = 299 if name == "inception_v3" else 224
        return zoo.get_model(name, weights=None, **options), torch.randn(2, 3, size, size), "predicted"
    options = {"weights": None, "weights_backbone": None}
    if library == "torchvision segmentation":
        return zoo.get_model(name, **options), torch.randn(2, 3, 128, 128), "predicted"
    low = {"ssd": "score_thresh", "ret": "score_thresh", "fco": "score_thresh"}
    options[low.get(name[:3], "box_score_thresh")] = 0.0  # with random weights no box is sure
    return zoo.get_model(name, **options), torch.rand(2, 3, 320, 320), best_boxes


def best_boxes(results: list[dict[str, Tensor]]) -> Tensor:
    """A detector's target: the summed scores of the five surest boxes of each image."""
    return torch.stack([result["scores"][:5].sum() for result in results])


def hugging_face() -> dict[str, Callable[[], tuple[nn.Module, int]]]:
    """Ten families from small configurations: how to build each, and its image size."""
    import transformers as hf

    tokens = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64}
    vit = {**SMALL, **tokens, "patch_size": 8}
    swin = {**SMALL, "embed_dim": 16, "depths": [2, 2, 2], "num_heads": [2, 4, 8], "window_size": 4, "patch_size": 2}
    # The library's own initial spread of 0.02 makes a random MobileViT answer the same for every pixel.
    mobile = {"initializer_range": 0.1, "hidden_sizes": [24, 32, 40]}
    mobile |= {"neck_hidden_sizes": [8, 16, 24, 32, 40, 48, 64]}
    stages = {"num_labels": 10, "hidden_sizes": [16, 32, 64, 128], "depths": [1, 1, 1, 1]}
    segformer = {**stages, "num_attention_heads": [1, 2, 4, 8]}
    resnet = {**stages, "embedding_size": 16}

    def of(family: str, head: str, options: dict[str, Any], size: int = 64) -> Callable[[], tuple[nn.Module, int]]:
        config, model = getattr(hf, f"{family}Config"), getattr(hf, f"{family}For{head}")
        return lambda: (model(config(**options)), size)

    image, segmentation = "ImageClassification", "SemanticSegmentation"
    return {
        "ViT": of("ViT", image, vit),
        "DeiT": of("DeiT", image, vit),
        "DeiT with teacher": of("DeiT", image + "WithTeacher", vit),
        "BEiT": of("Beit", image, vit),
        "Swin": of("Swin", image, swin),
        "SwinV2": of("Swinv2", image, swin),
        "DINOv2": of("Dinov2", image, vit),
        "DINOv2 with registers": of("Dinov2WithRegisters", image, vit),
        "ConvNeXtV2": of("ConvNextV2", image, stages, 128),
        "MobileViT": of("MobileViT", image, {**SMALL, **mobile, "image_size": 128}, 128),
        "SegFormer": of("Segformer", image, segformer, 128),
        "SegFormer segmentation": of("Segformer", segmentation, segformer, 128),
        "ResNet": of("ResNet", image, resnet, 128),
    }


def redraw_zero_heads(model: nn.Module) -> list[str]:
    """Draws anew the linear weights that the library sets to zero, as DeiT-like heads are; returns their names."""
    redrawn = []
    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)) and not bool(module.weight.any()):
            nn.init.trunc_normal_(module.weight, std=0.02)
            redrawn.append(name)
    return redrawn


def before_relu(activations: Tensor, gradients: Tensor) -> Tensor:
    """Grad-CAM's sum over channels, signed."""
    weights = gradients.flatten(2).mean(2).view(*gradients.shape[:2], *[1] * (gradients.ndim - 2))
    return (weights * activations).sum(1)


def examine(library: str, name: str) -> dict[str, Any]:
    """Explains one architecture and says what was found."""
    import camwatch

    if name.endswith(": -"):
        return {"status": "skipped", "note": "the module registers no model"}
    try:
        model, images, target = build(library, name)
    except Exception as error:
        return {"status": "not built", "note": f"{type(error).__name__}: {error}"}
    redrawn = redraw_zero_heads(model)
    size = "x".join(map(str, images.shape[2:]))
    about = {"redrawn": " ".join(redrawn), "size": size}
    start = time.perf_counter()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = camwatch.explain(model, images, target=target, method=before_relu)
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        return {**about, "status": "error", "note": f"{type(error).__name__}: {error} ({where.name})"}
    blank = found.blank()
    return {
        **about,
        "status": "blank" if bool(blank.any()) else "ok",
        "layer": found.layer,
        "grid": "x".join(map(str, found.maps.shape[1:])),
        "seconds": f"{time.perf_counter() - start:.2f}",
    }


def _worker(library: str, name: str, connection: Any) -> None:
    connection.send(examine(library, name))


def in_own_process(library: str, name: str, limit: float = 900.0) -> dict[str, Any]:
    """Runs ``examine`` in a forked process: a giant's memory goes with it, a crash is only its own."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_worker, args=(library, name, sender))
    process.start()
    sender.close()
    try:
        result: dict[str, Any] = receiver.recv() if receiver.poll(limit) else {"status": "error", "note": "too slow"}
    except EOFError:
        result = {"status": "error", "note": "the process died"}
    process.kill()
    process.join()
    return result


def table(folder: Path) -> str:
    """The results as markdown, what failed below them."""
    lines = ["| library | architecture | image | default layer | grid |", "| --- | --- | --- | --- | --- |"]
    failed, counts = [], []
    for library in LIBRARIES:
        rows = read(folder, library)
        good = [row for row in rows if row["status"] == "ok"]
        if rows:
            skipped = sum(row["status"] == "skipped" for row in rows)
            counts.append(f"{library}: {len(good)} of {len(rows) - skipped}, {skipped} skipped")
        for row in good:
            name = row["architecture"] + (" *" if row["redrawn"] else "")
            lines.append(f"| {library} | {name} | {row['size']} | `{row['layer']}` | {row['grid']} |")
        bad = [row for row in rows if row not in good]
        failed += [f"- {library}, {r['architecture']}: {r['status']}: {r['note'] or r['layer']}" for r in bad]
    lines += ["", "* a weight that the library initializes to zero was drawn anew", "", "; ".join(counts), "", *failed]
    return "\n".join(lines)


def read(folder: Path, library: str) -> list[dict[str, str]]:
    path = folder / f"{library.replace(' ', '_')}.csv"
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the CSV files")
    parser.add_argument("--only", choices=LIBRARIES)
    parser.add_argument("--match", default="", help="only architectures that contain this")
    parser.add_argument("--again", action="store_true", help="run again what did not succeed")
    parser.add_argument("--table", action="store_true", help="print the table, run nothing")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    for library in [] if options.table else [options.only] if options.only else LIBRARIES:
        rows = {row["architecture"]: row for row in read(options.out, library)}
        path = options.out / f"{library.replace(' ', '_')}.csv"
        for name in names(library):
            done = name in rows and not (options.again and rows[name]["status"] in ("error", "blank", "not built"))
            if done or options.match not in name:
                continue
            result = in_own_process(library, name)
            rows[name] = {"library": library, "architecture": name, **result}
            print({key: value for key, value in rows[name].items() if value}, flush=True)
            with path.open("w", newline="") as file:
                writer = csv.DictWriter(file, FIELDS, restval="")
                writer.writeheader()
                writer.writerows(rows.values())
    print(table(options.out))


if __name__ == "__main__":
    main()
