"""What is asked of a model in a run: one description, checked once, and one step that explains."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from camwatch.cam.blank_maps import BlankMapWarning
from camwatch.cam.engine import explain
from camwatch.cam.explanation import concatenate
from camwatch.cam.methods.gradients import Method
from camwatch.cam.methods.registry import needs_layer
from camwatch.cam.model.execution import Forward
from camwatch.cam.model.layers import Layer, layers
from camwatch.cam.model.targets import predicted_classes, probabilities, score
from camwatch.cam.prediction import predict
from camwatch.errors import InputError, LayerError, TargetError
from camwatch.panel.panel import Panel
from camwatch.parallel import Share

PanelTarget = str | int | Callable[[Any], Tensor]


@dataclass(frozen=True, eq=False)
class Recipe:
    """What every snapshot of a run measures, and how; checked once, before training.

    Attributes:
        panel: The images.
        layers: Names of the layers; the first one's measures are the run's.
        method: As in ``explain``.
        target: "label", "predicted", a class index, or a callable on the model's output for the whole batch.
        forward: As in ``explain``.
        batch_size: Images per forward pass.
    """

    panel: Panel
    layers: tuple[str, ...]
    method: str | Method
    target: PanelTarget
    forward: Forward | None
    batch_size: int = 32

    def with_batch_size(self, batch_size: int) -> Recipe:
        """Returns the same recipe with smaller batches."""
        return Recipe(self.panel, self.layers, self.method, self.target, self.forward, batch_size)


def write_recipe(
    model: nn.Module,
    panel: Panel,
    layer: str | list[str] | tuple[str, ...] | None,
    method: str | Method,
    target: PanelTarget,
    forward: Forward | None,
) -> Recipe:
    """Resolves and checks everything that a snapshot needs, on the panel's first image.

    Raises:
        InputError: The target, a layer, the method or the labels do not fit the model; the message says why.
    """
    if target == "label" and panel.labels is None:
        raise TargetError("target='label' needs a panel with labels; pass labels, or target='predicted'")
    if layer is not None and not isinstance(layer, str) and not len(layer):
        raise LayerError("layer is an empty sequence; pass None for the default layer, a name, or several names")
    if layer is not None:
        if not needs_layer(method):
            raise InputError(
                f"the method {method!r} explains the image itself, no layer: leave layer= out, got {layer!r}"
            )
        names = (layer,) if isinstance(layer, str) else tuple(layer)
    elif needs_layer(method):
        names = (_default(layers(model, panel.images[:1], forward=forward)).name,)
    else:
        names = ("input",)
    recipe = Recipe(panel, names, method, target, forward)
    classes = predict(model, panel.images[:1], forward=forward).shape[1]
    _check_classes(panel, max(classes, 2), target)
    first = torch.zeros(1, dtype=torch.long)
    _explain_rows(model, recipe, first)
    return recipe


def _default(found: list[Layer]) -> Layer:
    return next(one for one in found if one.default)


def _check_classes(panel: Panel, classes: int, target: PanelTarget) -> None:
    if panel.labels is not None and int(panel.labels.max()) >= classes:
        worst = int(panel.labels.argmax())
        raise TargetError(
            f"panel image {worst} has label {int(panel.labels[worst])}, but the model scores {classes} classes, "
            f"0 to {classes - 1}"
        )
    if isinstance(target, int) and not 0 <= target < classes:
        raise TargetError(f"target {target} is out of range: the model scores {classes} classes, 0 to {classes - 1}")


def _explain_rows(model: nn.Module, recipe: Recipe, rows: Tensor) -> dict[str, Tensor]:
    """Explains some images twice in one forward pass: for the target and for the predicted class."""
    panel, target = recipe.panel, recipe.target
    batches = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BlankMapWarning)  # a blank map is counted in the record
        for batch in torch.split(rows, recipe.batch_size):
            run = partial(
                explain,
                model,
                panel.images[batch],
                target=_both(target, panel.labels[batch] if panel.labels is not None else None),
                method=recipe.method,
                forward=recipe.forward,
            )
            batches.append(run(layer=list(recipe.layers)) if needs_layer(recipe.method) else [run()])
    found = [concatenate(list(parts)) for parts in zip(*batches, strict=True)]
    labels = panel.labels[rows] if panel.labels is not None else None
    output = found[0].output
    predicted, chances = predicted_classes(output).cpu(), probabilities(output).cpu()
    explained = {"label": labels, "predicted": predicted}.get(target) if isinstance(target, str) else None
    if isinstance(target, int):
        explained = torch.full_like(predicted, target)
    result = {"predicted": predicted, "probability": chances.gather(1, predicted[:, None])[:, 0]}
    if labels is not None:
        result["label_probability"] = chances.gather(1, labels[:, None])[:, 0]
    for i, explanation in enumerate(found):
        maps = explanation.maps.cpu()
        if maps.ndim != 4:
            raise InputError(
                f"layer {explanation.layer!r} has a grid of {maps.ndim - 2} axes; a panel is watched on images, "
                f"with maps (N, h, w)"
            )
        result[f"maps/{i}"] = maps[:, 0]
        same = torch.ones_like(predicted, dtype=torch.bool) if explained is None else explained == predicted
        result[f"others/{i}"] = maps[:, 1].masked_fill(same[:, None, None], math.nan)
    return result


def _both(target: PanelTarget, labels: Tensor | None) -> Callable[[Any], Tensor]:
    """Returns a target (N, 2): what is to be explained, and the class predicted at the first call."""
    answers: Tensor | None = None

    def scores(output: Any) -> Tensor:
        nonlocal answers
        if answers is None:
            answers = predicted_classes(output)
        wanted = {"label": labels, "predicted": answers}[target] if isinstance(target, str) else target
        assert wanted is not None  # 'label' without labels was refused with the recipe
        return torch.stack([score(output, wanted), score(output, answers)], dim=1)

    return scores


def shared_predict(model: nn.Module, recipe: Recipe, share: Share) -> Callable[[Tensor], Tensor]:
    """Returns a function from images to class scores, whose work the processes share."""

    def run(images: Tensor) -> Tensor:
        def rows_of(rows: Tensor) -> dict[str, Tensor]:
            return {"scores": predict(model, images[rows], forward=recipe.forward)}

        return share.map(len(images), rows_of)["scores"]

    return run
