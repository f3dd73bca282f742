"""What is asked of a model in a run: one description, checked once, and one step that explains.

The watcher and the audit share both, so that "the same run" means one thing: what ``changes`` finds no difference in.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from camwatch.cam.blank_maps import BlankMapWarning
from camwatch.cam.engine import explain
from camwatch.cam.explanation import Explanation, concatenate
from camwatch.cam.methods.method import MapFunction, Method
from camwatch.cam.methods.registry import check_method, needs_layer
from camwatch.cam.model.execution import Forward, call_plainly
from camwatch.cam.model.layers import layers
from camwatch.cam.model.modules import find_module
from camwatch.cam.model.targets import class_scores, predicted_classes, probabilities, score, two_sided
from camwatch.cam.prediction import predict
from camwatch.descriptions import described
from camwatch.errors import InputError, LayerError, TargetError, unknown
from camwatch.parallel import Share

PanelTarget = str | int | Callable[[Any], Tensor]
Unpack = Callable[[Any], Any]
Layers = str | nn.Module | Sequence[str | nn.Module] | None
BATCH = 32  # images per forward pass


@dataclass(frozen=True, eq=False)
class RunConfig:
    """What is asked of a model, in every snapshot of a run and every batch of an audit.

    Attributes:
        layers: Names of the layers, of which the first one's measures are the run's; "input" for a method that
            explains the image itself; none where the layer is still to be found.
        method: One of ``camwatch.methods()``, or a function (activations, gradients) -> maps.
        target: "label", "predicted", a class index, or a callable on the model's output.
        forward: Callable (model, images) -> output, where ``model(images)`` is not the way.
        unpack: Callable (batch) -> (images, labels[, regions]) for batches of another shape.
        one_logit: Whether the model gives one logit for two classes, as was seen on the first image.
    """

    layers: tuple[str, ...] = ()
    method: str | MapFunction = "gradcam"
    target: PanelTarget = "label"
    forward: Forward | None = None
    unpack: Unpack | None = None
    one_logit: bool = False

    def __post_init__(self) -> None:
        check_method(self.method)
        if isinstance(self.target, str) and self.target not in ("label", "predicted"):
            raise InputError(
                f"{unknown('target', self.target, ['label', 'predicted'])}, a class index, or a callable on the output"
            )
        if self.layers and not needs_layer(self.method) and self.layers != ("input",):
            given = self.layers[0] if len(self.layers) == 1 else self.layers
            raise InputError(
                f"the method {self.method!r} explains the image itself, no layer: leave layer= out, got {given!r}"
            )

    @classmethod
    def of(cls, model: nn.Module, layer: Layers, **asked: Any) -> RunConfig:
        """Makes a description of what a user passes; a layer that is named has to exist.

        Raises:
            InputError: Something does not fit; the message says what arrived and what is valid.
        """
        if layer is None:
            return cls(**asked)
        named = [layer] if isinstance(layer, (str, nn.Module)) else list(layer)
        if not named:
            raise LayerError("layer is an empty sequence; pass None for the default layer, a name, or several names")
        if not needs_layer(asked.get("method", "gradcam")):
            return cls(layers=tuple(map(str, named)), **asked)  # which refuses them
        return cls(layers=tuple(find_module(model, one)[0] for one in named), **asked)

    def resolved(self, model: nn.Module, images: Tensor, labels: Tensor | None = None) -> RunConfig:
        """Finds the layer where none is named, and tries everything on the first image.

        Args:
            model: As it is now; nothing of it changes.
            images: (N, C, H, W), the first one is run.
            labels: (N,) of all images, or None.

        Raises:
            InputError: The target, a layer, the method or the labels do not fit the model; the message says why.
        """
        if self.target == "label" and labels is None:
            raise TargetError("target='label' needs a panel with labels; pass labels, or target='predicted'")
        found = self.with_layer(model, images)
        classes = max(predict(model, images[:1], forward=self.forward).shape[1], 2)
        check_labels(labels, classes, lambda i: f"panel image {i}")
        if isinstance(self.target, int) and not 0 <= self.target < classes:
            raise TargetError(
                f"target {self.target} is out of range: the model scores {classes} classes, 0 to {classes - 1}"
            )
        first = explain_images(model, found, images[:1], None if labels is None else labels[:1], also_predicted=True)
        return dataclasses.replace(found, one_logit=first.one_logit)

    def chances(self, scores: Tensor) -> Tensor:
        """Returns the probabilities (N, classes) of scores (N, classes), in which one logit has two sides."""
        return scores.sigmoid() if self.one_logit else scores.softmax(1)

    def with_layer(self, model: nn.Module, images: Tensor) -> RunConfig:
        """Returns the same with its layer found on the first image, where none is named."""
        if self.layers:
            return self
        if not needs_layer(self.method):
            return dataclasses.replace(self, layers=("input",))
        default = next(one for one in layers(model, images[:1], forward=self.forward) if one.default)
        return dataclasses.replace(self, layers=(default.name,))

    def describe(self) -> dict[str, Any]:
        """Returns plain data from which ``changes`` tells whether two runs ask the same.

        Example:
            >>> RunConfig(("layer4",), target=3).describe()
            {'layers': ['layer4'], 'method': 'gradcam', 'target': 3, 'forward': None, 'unpack': None}
        """
        forward = None if self.forward is None else inspect.unwrap(self.forward)
        return {
            "layers": list(self.layers),
            "method": self.method.name if isinstance(self.method, Method) else described(self.method),
            "target": described(self.target),
            "forward": None if forward is call_plainly else described(forward),
            "unpack": described(self.unpack),
        }


@dataclass(frozen=True, eq=False)
class Answers:
    """What a model says to N images, and where the evidence lies.

    Attributes:
        maps: Of each layer (N, h, w) raw maps of the target, on the CPU.
        predicted_maps: The same of the predicted class, NaN where it is the one that was explained.
        predicted: (N,) int64.
        chances: (N, classes) float32 probabilities.
        one_logit: Whether these are of one logit.
    """

    maps: tuple[Tensor, ...]
    predicted_maps: tuple[Tensor, ...]
    predicted: Tensor
    chances: Tensor
    one_logit: bool = False

    def of_labels(self, labels: Tensor) -> Tensor:
        """Returns (N,): the label's probability, NaN where the label is -1."""
        return self.chances.gather(1, labels.clamp(min=0)[:, None])[:, 0].masked_fill(labels < 0, math.nan)


def explain_images(
    model: nn.Module,
    config: RunConfig,
    images: Tensor,
    labels: Tensor | None,
    *,
    also_predicted: bool = False,
    batch_size: int | None = None,
    name: Callable[[int], str] = str,
) -> Answers:
    """Explains images in one forward pass each: for the target and, if asked, for the predicted class too.

    Args:
        model: The model; nothing of it changes.
        config: What is asked, its layers found.
        images: (N, C, H, W) as the model takes them.
        labels: (N,) on the CPU, or None; for a label of -1, an unknown one, the predicted class is explained.
        also_predicted: Whether the predicted class is explained beside the target.
        batch_size: Images per forward pass; all at once by default.
        name: What image i is called in messages.

    Raises:
        InputError: Labels, layer and model do not fit together, or the maps are none of images.
    """
    found: list[list[Explanation]] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BlankMapWarning)  # a blank map is counted, or has its row marked
        for rows in torch.split(torch.arange(len(images)), batch_size or len(images)):
            asked: Any = functools.partial(
                explain,
                model,
                images[rows] if batch_size else images,
                target=_asked(config.target, None if labels is None else labels[rows], also_predicted, name),
                method=config.method,
                forward=config.forward,
            )
            found.append(asked(layer=list(config.layers)) if needs_layer(config.method) else [asked()])
    joined = [concatenate(list(parts)) for parts in zip(*found, strict=True)]
    output = joined[0].output
    predicted, chances = predicted_classes(output).cpu(), probabilities(output).cpu()
    check_labels(labels, chances.shape[1], name)
    maps = [_of_images(explanation, 1 + also_predicted) for explanation in joined]
    same = _explained(config.target, labels, predicted) == predicted
    hidden = [m[:, 1].masked_fill(same[:, None, None], math.nan) for m in maps if also_predicted]
    one_logit = class_scores(output).shape[1] == 1
    return Answers(tuple(m[:, 0] for m in maps), tuple(hidden), predicted, chances, one_logit)


def _of_images(explanation: Explanation, targets: int) -> Tensor:
    """Returns an explanation's maps as (N, targets, h, w) on the CPU."""
    maps = explanation.maps.cpu()
    maps = maps if targets > 1 else maps[:, None]
    if maps.ndim != 4:
        raise InputError(
            f"layer {explanation.layer!r} has a grid of {maps.ndim - 2} axes; a panel is watched on images, "
            f"with maps (N, h, w)"
        )
    return maps


def _explained(target: PanelTarget, labels: Tensor | None, predicted: Tensor) -> Tensor:
    """Returns (N,) the classes that were explained; of a callable nobody knows, so the predicted ones."""
    if target == "label" and labels is not None:
        return torch.where(labels >= 0, labels, predicted)
    return torch.full_like(predicted, target) if isinstance(target, int) else predicted


def _asked(target: PanelTarget, labels: Tensor | None, twice: bool, name: Callable[[int], str]) -> Any:
    """Returns a target for ``explain``: what is asked, and beside it the class predicted at the first call."""
    if target != "label" and not twice:
        return target
    answers: Tensor | None = None

    def scores(output: Any) -> Tensor:
        nonlocal answers
        if answers is None:
            answers = predicted_classes(output)
            check_labels(labels, two_sided(class_scores(output)).shape[1], name)
        wanted: Any = answers if target == "predicted" else target
        if target == "label":
            assert labels is not None  # refused when the description was made
            known = labels.to(answers.device)
            wanted = torch.where(known >= 0, known, answers)
        found = score(output, wanted)
        return torch.stack([found, score(output, answers)], dim=1) if twice else found

    return scores


def check_labels(labels: Tensor | None, classes: int, name: Callable[[int], str]) -> None:
    """Raises TargetError for a label that the model does not score."""
    if labels is not None and int(labels.max()) >= classes:
        worst = int(labels.argmax())
        raise TargetError(
            f"{name(worst)} has label {int(labels[worst])}, but the model scores {classes} classes, 0 to "
            f"{classes - 1}: the model and the data do not belong together"
        )


def shared_predict(
    model: nn.Module, config: RunConfig, share: Share, batch_size: int | None = None
) -> Callable[[Tensor], Tensor]:
    """Returns a function from images to class scores (N, classes), whose work the processes share."""

    def run(images: Tensor) -> Tensor:
        def rows_of(rows: Tensor) -> dict[str, Tensor]:
            return {"scores": predict(model, images[rows], batch_size=batch_size, forward=config.forward)}

        return share.gather_rows(len(images), rows_of)["scores"]

    return run
