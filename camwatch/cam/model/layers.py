"""Which layer to explain: found by one dry pass over one image, not by a table of names."""

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
    Neutral,
    call_plainly,
    check_images,
    prepare,
    run_detached,
)
from camwatch.cam.model.layout import Grid, Layout
from camwatch.cam.model.modules import unwrap
from camwatch.cam.model.nested import tensors
from camwatch.cam.model.targets import class_scores, predicted_classes, score
from camwatch.cam.model.trace import DryPass, Visit
from camwatch.errors import LayerError, TargetError

LayerName = str | nn.Module


def layers(model: nn.Module, images: Tensor, *, forward: Forward | None = None) -> list[Layer]:
    """Lists the layers that can be explained, in the order in which they run, the default one marked.

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
    with Neutral(model):
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
    dry_pass = DryPass(model, image, forward)
    try:
        scores: Tensor | None = class_scores(dry_pass.output)
    except TargetError:
        scores = None
    dry_pass.differentiate(_total(dry_pass.output, scores))
    visits = dry_pass.visits
    alive = [visit for visit in visits if visit.alive]
    default = _default(visits, alive, scores)
    if default is None:
        raise LayerError(
            f"no layer of {type(model).__name__} has a spatial grid with a gradient on images of {size}, among "
            f"{len(visits)} outputs with three axes or more; name a layer with layer=, or use larger images"
        )
    found: dict[str, Layer] = {}
    for visit in alive:
        assert visit.layout is not None
        found.pop(visit.name, None)  # the last call counts
        found[visit.name] = Layer(visit.name, visit.layout.grid, visit.layout.channels, visit is default, visit.layout)
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


def _default(visits: list[Visit], alive: list[Visit], scores: Tensor | None) -> Visit | None:
    readers = _readers(visits)
    usable = [v for v in alive if not _passes_on(v) and not any(v.name.startswith(f"{r}.") for r in readers)]
    chosen = [v for v in usable if not _is_score_map(v, scores)] or usable
    if chosen and scores is None:  # a detector: what is behind its backbone scores boxes
        chosen = _backbone(chosen, None)
    elif chosen and scores is not None and scores.ndim > 2:
        chosen = _backbone(chosen, min(map(_cells, chosen)))
    return chosen[-1] if chosen else None


def _readers(visits: list[Visit]) -> list[str]:
    """Modules that read the cells for the last time: their input's cells matter, their output's do not.

    The output has the input's form, or that of a single token, so that this is a class token's attention,
    and no pooling. A module around such a module is left out.
    """

    def reads(visit: Visit) -> bool:
        forms = [visit.inputs[index] for index in visit.inputs_read]
        return any(len(f) == len(visit.output) and visit.output[1] in (1, f[1]) for f in forms)

    found = [visit.name for visit in visits if not visit.alive and reads(visit)]
    return [name for name in found if not any(other.startswith(f"{name}.") for other in found)]


def _passes_on(visit: Visit) -> bool:
    """Whether the module handed on its input, or only made its grid finer."""
    if visit.rearranged:
        return True
    layout = visit.layout
    if layout is None or layout.channel_axis != 1 or layout.prefix is not None:
        return False
    if any(True for _ in visit.module.parameters()):
        return False
    before = [i.grid if i else s[2:] for i, s in zip(visit.input_layouts, visit.inputs, strict=True)]
    return any(len(g) == len(layout.grid) and any(map(operator.gt, layout.grid, g)) for g in before)


def _is_score_map(visit: Visit, scores: Tensor | None) -> bool:
    """Whether the scores follow from it pointwise or by pooling: one class, one channel."""
    channels = visit.layout.channels if visit.layout is not None else None
    return scores is not None and channels == scores.shape[1] and visit.channels_read <= 1


def _cells(visit: Visit) -> int:
    return math.prod(visit.layout.grid) if visit.layout is not None else 0


def _backbone(usable: list[Visit], cells: int | None) -> list[Visit]:
    """The visits of the first top-level branch, or of the first that has a grid of so many cells."""
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
