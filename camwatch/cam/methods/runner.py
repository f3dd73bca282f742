"""What a method is given: one batch of images, and the means to run the model on it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from camwatch.cam.model.hooks import LayerCapture, replace_output
from camwatch.cam.model.layout import Layout
from camwatch.cam.model.modules import find_module
from camwatch.cam.model.nested import join_outputs, replace_tensors, rows_of, tensors
from camwatch.cam.model.targets import Target, resolve_target, score
from camwatch.errors import TargetError, UnsupportedError
from camwatch.progress import progress

PER_PASS, PER_PASS_ON_CPU = 64, 8  # images; more at once are slower on a CPU
COPIES_PER_PASS = 2**24  # activations in the copies of a layer that one pass through the head gets: 64 MB


@dataclass(frozen=True, eq=False)
class LayerOutput:
    """What a layer returned in one pass.

    Attributes:
        module: The layer.
        raw: What it returned, batch first, without a graph.
        layout: How that lies on the image.
        call: Which of the layer's calls in the pass this was.
    """

    module: nn.Module
    raw: Tensor
    layout: Layout
    call: int = 1

    @property
    def activations(self) -> Tensor:
        """(N, C, *grid) float32."""
        return self.layout.apply(self.raw).float()


@dataclass(eq=False)
class ModelRunner:
    """One batch of images, and the means to run the model on it; nothing runs before it is asked for.

    Scores are (N, K) float32: K targets per image, fixed by the first pass.

    Attributes:
        model: The model, its parameters detached.
        images: (N, C, *size), as the model takes them.
        asked: The target, as in ``explain``.
        forward: Callable images -> output.
        names: The layers to look at.
        layouts: How each one's output lies on the image, where that is known.
        batch_size: Images per forward pass; None for a default.
    """

    model: nn.Module
    images: Tensor
    asked: Target
    forward: Callable[[Tensor], Any]
    names: Sequence[str] = ()
    layouts: Sequence[Layout | None] = ()
    batch_size: int | None = None
    _first: tuple[Any, Target] | None = field(default=None, init=False)

    @cached_property
    def layers(self) -> list[LayerOutput]:
        """What the layers returned, from one pass without a graph."""
        return self._observe()

    @contextmanager
    def gradients(self) -> Iterator[Iterator[list[tuple[Tensor, Tensor]]]]:
        """Yields, for each target, every layer's activations and gradients, all from one pass with a graph.

        Both are (N, C, *grid) float32. Here alone the target may give one score for the whole batch.
        """
        with self.capture() as capture:
            output = self.forward(self.images)
            capture.check()
            self._note(output)
            scores = score(output, self.target)
            self.several = scores.ndim == 2
            columns = scores.unbind(1) if self.several else [scores]
            with torch.autocast(scores.device.type, enabled=False):
                activations = capture.activations
                yield (
                    list(zip(activations, capture.gradients(column, retain_graph=k < len(columns)), strict=True))
                    for k, column in enumerate(columns, start=1)
                )

    def capture(self, layer: LayerOutput | None = None) -> LayerCapture:
        """Records one layer, or all of them, in a further pass, to take gradients of."""
        chosen, layouts = (self.names, self.layouts) if layer is None else (layer.module, [layer.layout])
        return LayerCapture(self.model, chosen, size=self.images.shape[2:], layouts=layouts)

    def fix_target(self) -> tuple[Any, Target]:
        """Returns what the first pass gave, without its graph, and the target that asks for the same classes.

        It runs now where none has run yet: call this before anything changes what the model does.
        """
        if self._first is None:
            self.layers = self._observe()
        assert self._first is not None
        return self._first

    @property
    def output(self) -> Any:
        """What the model returned in the first pass, without its graph."""
        return self.fix_target()[0]

    @property
    def target(self) -> Target:
        """The target that asks for the classes of the first pass."""
        return self.fix_target()[1]

    @cached_property
    def several(self) -> bool:
        """Whether the target asks for K maps per image, or for one."""
        return score(self.output, self.target).ndim == 2

    @cached_property
    def scores(self) -> Tensor:
        """(N, K): the scores of the images as they are."""
        return self.score(self.output)

    @property
    def classes(self) -> Tensor | None:
        """(N, K) class indices, where the target names classes."""
        target = self.target
        if isinstance(target, int):
            return torch.full((len(self.images), 1), target, device=self.images.device)
        if isinstance(target, Tensor) and not target.is_floating_point() and target.dtype != torch.bool:
            return target.to(self.images.device).long().reshape(len(self.images), -1)
        return None

    def _observe(self) -> list[LayerOutput]:
        with torch.no_grad():
            if not self.names:
                self._note(self.forward(self.images))
                return []
            size = self.images.shape[2:]
            with LayerCapture(self.model, self.names, size=size, layouts=self.layouts, graph=False) as capture:
                output = self.forward(self.images)
            self._note(output)
        modules = [find_module(self.model, name)[1] for name in self.names]
        found = zip(modules, capture.raw, capture.layouts, capture.calls, strict=True)
        return [LayerOutput(*one) for one in found]

    def _note(self, output: Any) -> None:
        if self._first is None:
            self._first = replace_tensors(output, Tensor.detach), resolve_target(output, self.asked)

    def score(self, output: Any) -> Tensor:
        """Returns the (N, K) scores of an output for N images in the order of ``images``."""
        return per_image(score(output, self.target), len(self.images)).float()

    def score_blocks(self, output: Any, m: int) -> list[Tensor]:
        """Scores the output of M x N images, block by block: M scores (N, K).

        Raises:
            UnsupportedError: The output is not that of so many images.
        """
        n = len(self.images)
        answers = isinstance(output, list) and len(output) == m * n
        if m > 1 and not answers and not any(t.ndim and len(t) == m * n for t in tensors(output)):
            shapes = ", ".join(str(tuple(t.shape)) for t in tensors(output))
            raise UnsupportedError(f"the model gave {shapes} for {m} x {n} images: its batch cannot be made larger")
        return [self.score(rows_of(output, list(range(j * n, (j + 1) * n)), m * n)) for j in range(m)]

    def score_images(self, make: Callable[[int, int], Tensor], count: int, label: str) -> Tensor:
        """Scores variants of the images.

        Args:
            make: Callable (start, stop) -> (stop - start, N, C, *size) variants of all images.
            count: Number of variants per image.
            label: The progress bar's text.

        Returns:
            (count, N, K) float32.
        """
        default = PER_PASS_ON_CPU if self.images.device.type == "cpu" else PER_PASS
        step = max(1, (self.batch_size or default) // len(self.images))
        found = []
        with torch.no_grad():
            for start in progress(range(0, count, step), label):
                variants = make(start, min(start + step, count))
                found += self.score_blocks(self.forward(variants.flatten(0, 1)), len(variants))
        return torch.stack(found)

    def score_activations(
        self, layer: LayerOutput, make: Callable[[Tensor, int, int], Tensor], count: int, label: str
    ) -> Tensor:
        """Scores variants of one layer's activations, running the layers below it once for many variants.

        Args:
            layer: The layer.
            make: Callable (activations (C, *grid) of one image, start, stop) -> (stop - start, C, *grid).
            count: Number of variants per image.
            label: The progress bar's text.

        Returns:
            (count, N, K) float32.
        """
        cells = layer.layout.apply(layer.raw)
        step = min(count, self.batch_size or max(1, COPIES_PER_PASS // cells[0].numel()))
        found = []
        with torch.no_grad():
            alone = self._head_runs_alone(layer)
            for start in progress(range(0, count, step), label):
                outputs = []
                for i, cell in enumerate(cells):
                    variants = make(cell, start, min(start + step, count))
                    like = layer.raw[i : i + 1].expand(len(variants), *layer.raw.shape[1:])
                    outputs.append(self._head(layer, i, layer.layout.invert(variants, like), alone))
                m = min(start + step, count) - start
                # Run image by image, but scored together: a target is given for all images in their order.
                found += [self.score(join_outputs([rows_of(output, [j], m) for output in outputs])) for j in range(m)]
        return torch.stack(found)

    def _head(self, layer: LayerOutput, i: int, value: Tensor, alone: bool) -> Any:
        image = self.images[i : i + 1]
        with replace_output(layer.module, value, layer.call):
            return self.forward(image if alone else image.expand(len(value), *image.shape[1:]))

    def _head_runs_alone(self, layer: LayerOutput) -> bool:
        """Whether the layers behind take a larger batch than those before, whose shortcuts broadcast."""
        value = layer.raw[:1].expand(3, *layer.raw.shape[1:]).clone()
        try:
            output = self._head(layer, 0, value, alone=True)
        except RuntimeError:
            return False
        expected = [t for t in tensors(rows_of(self.output, [0], len(self.images))) if t.is_floating_point()]
        found = [t for t in tensors(output) if t.is_floating_point()]
        return all(_repeats(one, three) for one, three in zip(expected, found, strict=True))


def _repeats(one: Tensor, three: Tensor) -> bool:
    """Whether a result for three copies is three times that for one, but for rounding."""
    if three.shape != (3, *one.shape[1:]):
        return False
    return bool((three - one).abs().amax() <= 1e-2 * one.abs().amax())


def per_image(scores: Tensor, images: int) -> Tensor:
    """Brings scores to (N, K).

    Raises:
        TargetError: The target gave no score per image.
    """
    if scores.ndim == 0 and images == 1:
        return scores.view(1, 1)
    if scores.ndim == 0 or len(scores) != images:
        raise TargetError(
            f"this method needs one score per image: the target gave shape {tuple(scores.shape)} for {images} images; "
            f"return (N,) or (N, K)"
        )
    return scores.view(images, math.prod(scores.shape[1:]))
