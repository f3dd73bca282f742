"""Which layer to explain: found by tracing one image, not by a table of names."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from camwatch.cam.model.execution import (
    Forward,
    call_plainly,
    check_images,
    isolated_evaluation,
    prepare,
    run_detached,
)
from camwatch.cam.model.layout import Grid, Layout
from camwatch.cam.model.modules import unwrap
from camwatch.cam.model.nested import tensors
from camwatch.cam.model.targets import class_scores, predicted_classes, score
from camwatch.cam.model.trace import ModuleCall, trace_model
from camwatch.errors import LayerError, TargetError

LayerName = str | nn.Module


def layers(model: nn.Module, images: Tensor, *, forward: Forward | None = None) -> list[Layer]:
    """Lists the layers that can be explained, in the order in which they run, the default one marked.

    The default is the deepest layer that still has a grid on the image and a gradient on it. On torchvision's models:
    ResNet ``layer4``; VGG, DenseNet, MobileNet, EfficientNet, ConvNeXt and SqueezeNet ``features``; Swin ``norm``;
    MaxViT ``blocks.3``; ViT-B/16 ``encoder.layers.encoder_layer_11.ln_1``; FCN and DeepLabV3 ``backbone``; Faster R-CNN
    ``backbone.body``. On timm's: BEiT ``blocks.11``; CaiT ``blocks_token_only.1.norm1``. Tried on 80 classifiers of
    torchvision, 60 families of timm and 10 of transformers (tests/benchmarks/zoo.py).

    Args:
        model: Any vision model.
        images: (N, C, H, W) as the model takes them; the first one is used.
        forward: Callable (model, images) -> output, where ``model(images)`` is not the way.

    Raises:
        LayerError: No layer has a spatial grid.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(392, 5))
        >>> layers(net, torch.rand(1, 3, 16, 16))[-1]
        Layer(name='1', grid=(7, 7), channels=8, default=True)
    """
    check_images(images)
    model = unwrap(model)
    with isolated_evaluation(model):
        sample = prepare(model, images[:1])
        found: list[Layer] = run_detached(
            model, lambda: find_layers(model, sample, forward or call_plainly), change=without_zero_weights
        )
        return found


def stages(found: list[Layer]) -> list[Layer]:
    """Returns the deepest layer of every grid, the finest first, down to the default layer's.

    Raises:
        LayerError: All layers have one grid.
    """
    default = next(layer for layer in found if layer.default)
    upto = found[: found.index(default) + 1]
    last = {layer.grid: layer for layer in upto}
    chosen = sorted(last.values(), key=upto.index)
    if len(chosen) < 2:
        raise LayerError(
            f"all layers down to {default.name!r} have the grid {default.grid}, so that there are no stages to fuse; "
            f"name several layers: layer=[...], fuse='product'"
        )
    return chosen


@dataclass(frozen=True)
class Layer:
    """A layer that can be explained.

    Attributes:
        name: Its name in the model.
        grid: Cells along each axis of the image.
        channels: Number of channels.
        default: Whether it is the one taken when none is named.
        layout: How its output lies on the image.
    """

    name: str
    grid: Grid
    channels: int
    default: bool
    layout: Layout = field(repr=False)


def find_layers(model: nn.Module, images: Tensor, forward: Callable[[nn.Module, Tensor], Any]) -> list[Layer]:
    """Lists the layers that can be explained, in the order in which they run.

    A layer can be explained if its output has a spatial grid and the predicted class's score has a
    non-zero gradient on it. The default is the deepest of these, leaving out layers that only pass on or
    resample their input, layers inside a module behind which the cells are no longer read (the projections
    of a class token's attention), and layers from which the scores follow by pointwise or pooling
    operations alone. Where the output is dense (segmentation), it is the deepest layer of the first branch
    that reaches the coarsest grid; where nothing like class scores comes out (detection), the deepest of the
    first branch.

    Args:
        model: A model whose parameters are detached (see ``run_detached``).
        images: (N, C, *size); the first one is used.
        forward: How the model is called.

    Raises:
        LayerError: No layer has a spatial grid.
    """
    image, size = images[:1], tuple(images.shape[2:])
    trace = trace_model(model, image, forward)
    try:
        scores: Tensor | None = class_scores(trace.output)
    except TargetError:
        scores = None
    trace.differentiate(_total(trace.output, scores))
    calls = trace.calls
    alive = [call for call in calls if call.alive]
    default = _default(calls, alive, scores)
    if default is None:
        raise LayerError(
            f"no layer of {type(model).__name__} has a spatial grid with a gradient on images of {size}, among "
            f"{len(calls)} outputs with three axes or more; name a layer with layer=, or use larger images"
        )
    found: dict[str, Layer] = {}
    for call in alive:
        assert call.layout is not None
        found.pop(call.name, None)  # the last call counts
        found[call.name] = Layer(call.name, call.layout.grid, call.layout.channels, call is default, call.layout)
    return list(found.values())


def without_zero_weights(parameter: Tensor) -> Tensor:
    """Draws a weight matrix anew that is zero throughout: a fresh head lets no gradient through."""
    if parameter.ndim < 2 or not parameter.numel() or not parameter.is_floating_point() or bool(parameter.any()):
        return parameter
    scale: float = parameter[0].numel() ** -0.5
    return torch.randn_like(parameter) * scale


def _total(output: Any, scores: Tensor | None) -> Tensor:
    """The predicted class's score; of a detector all boxes' scores; else the sum of all that came back."""
    if scores is not None:
        return score(scores, predicted_classes(scores)).sum()
    if isinstance(output, list):
        output = [item.get("scores", item) if isinstance(item, Mapping) else item for item in output]
    floating = [t.float().sum() for t in tensors(output) if t.is_floating_point() and t.requires_grad]
    return torch.stack(floating).sum() if floating else torch.zeros(())


def _default(calls: list[ModuleCall], alive: list[ModuleCall], scores: Tensor | None) -> ModuleCall | None:
    readers = _readers(calls)
    usable = [v for v in alive if not _passes_on(v) and not any(v.name.startswith(f"{r}.") for r in readers)]
    chosen = [v for v in usable if not _is_score_map(v, scores)] or usable
    if chosen and scores is None:  # a detector: what is behind its backbone scores boxes
        chosen = _backbone(chosen, None)
    elif chosen and scores is not None and scores.ndim > 2:
        chosen = _backbone(chosen, min(map(_cells, chosen)))
    return chosen[-1] if chosen else None


def _readers(calls: list[ModuleCall]) -> list[str]:
    """Modules that read the cells for the last time: their input's cells matter, their output's do not.

    The output has the input's form, or that of a single token, so that this is a class token's attention,
    and no pooling. A module around such a module is left out.
    """

    def reads(call: ModuleCall) -> bool:
        forms = [call.inputs[index] for index in call.inputs_read]
        return any(len(f) == len(call.output) and call.output[1] in (1, f[1]) for f in forms)

    found = [call.name for call in calls if not call.alive and reads(call)]
    return [name for name in found if not any(other.startswith(f"{name}.") for other in found)]


def _passes_on(call: ModuleCall) -> bool:
    """Whether the module handed on its input, or only made its grid finer."""
    if call.rearranged:
        return True
    layout = call.layout
    if layout is None or layout.channel_axis != 1 or layout.prefix is not None:
        return False
    if any(True for _ in call.module.parameters()):
        return False
    before = [i.grid if i else s[2:] for i, s in zip(call.input_layouts, call.inputs, strict=True)]
    return any(len(g) == len(layout.grid) and any(map(operator.gt, layout.grid, g)) for g in before)


def _is_score_map(call: ModuleCall, scores: Tensor | None) -> bool:
    """Whether the scores follow from it pointwise or by pooling: one class, one channel."""
    channels = call.layout.channels if call.layout is not None else None
    return scores is not None and channels == scores.shape[1] and call.channels_read <= 1


def _cells(call: ModuleCall) -> int:
    return math.prod(call.layout.grid) if call.layout is not None else 0


def _backbone(usable: list[ModuleCall], cells: int | None) -> list[ModuleCall]:
    """The calls of the first top-level branch, or of the first that has a grid of so many cells."""
    prefix = ""
    while True:  # descend while a single child holds everything
        branches = {v.name[len(prefix) :].split(".")[0] for v in usable if v.name.startswith(prefix)}
        if len(branches) != 1:
            break
        prefix += f"{branches.pop()}."
    first = next(v for v in usable if v.name.startswith(prefix) and cells in (None, _cells(v)))
    branch = prefix + first.name[len(prefix) :].split(".")[0]
    inside = [v for v in usable if v.name == branch or v.name.startswith(f"{branch}.")]
    return [v for v in inside if cells in (None, _cells(v))]
