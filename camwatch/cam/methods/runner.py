"""What a method may use beyond one layer's activations and gradients: further forward passes, scored alike."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from camwatch.cam.model.hooks import substitute
from camwatch.cam.model.layout import Layout
from camwatch.cam.model.nested import _rows, join_outputs, tensors
from camwatch.errors import TargetError, UnsupportedError
from camwatch.progress import progress

Variants = Callable[[Tensor, int, int], Tensor]


PER_PASS, PER_PASS_ON_CPU = 64, 8  # images; more at once are slower on a CPU


COPIES_PER_PASS = 2**24  # activations in the copies of a layer that one pass through the head gets: 64 MB


@dataclass(frozen=True, eq=False)
class Site:
    """A layer as it was recorded.

    Attributes:
        module: The layer.
        raw: What it returned, batch first.
        layout: How that lies on the image.
        call: Which of its calls in a forward pass this was.
    """

    module: nn.Module
    raw: Tensor
    layout: Layout
    call: int = 1

    @property
    def activations(self) -> Tensor:
        """(N, C, *grid) float32."""
        return self.layout.apply(self.raw).float()


@dataclass(frozen=True, eq=False)
class Access:
    """One batch of images, and the means to run the model on it again.

    Scores are (N, K) float32: K targets per image, fixed by the first, unperturbed pass.

    Attributes:
        model: The model, its parameters detached.
        images: (N, C, *size), as the model takes them.
        output: What the model returned for them, without its graph.
        forward: Callable images -> output.
        rate: Callable output -> scores (N, K), for the output of N images in the order of ``images``.
        batch_size: Images per forward pass; None for a default.
        classes: (N, K) indices, where the target names classes.
    """

    model: nn.Module
    images: Tensor
    output: Any
    forward: Callable[[Tensor], Any]
    rate: Callable[[Any], Tensor]
    batch_size: int | None = None
    classes: Tensor | None = None

    @property
    def scores(self) -> Tensor:
        """(N, K): the scores of the images as they are."""
        return self.rate(self.output)

    def rate_images(self, make: Callable[[int, int], Tensor], count: int, label: str) -> Tensor:
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
                found += self.rate_blocks(self.forward(variants.flatten(0, 1)), len(variants))
        return torch.stack(found)

    def rate_activations(
        self, site: Site, make: Callable[[Tensor, int, int], Tensor], count: int, label: str
    ) -> Tensor:
        """Scores variants of one layer's activations, running the layers below it once for many variants.

        Args:
            site: The layer.
            make: Callable (activations (C, *grid) of one image, start, stop) -> (stop - start, C, *grid).
            count: Number of variants per image.
            label: The progress bar's text.

        Returns:
            (count, N, K) float32.
        """
        cells = site.layout.apply(site.raw)
        step = min(count, self.batch_size or max(1, COPIES_PER_PASS // cells[0].numel()))
        found = []
        with torch.no_grad():
            alone = self._head_runs_alone(site)
            for start in progress(range(0, count, step), label):
                outputs = []
                for i, cell in enumerate(cells):
                    variants = make(cell, start, min(start + step, count))
                    like = site.raw[i : i + 1].expand(len(variants), *site.raw.shape[1:])
                    outputs.append(self._head(site, i, site.layout.invert(variants, like), alone))
                m = min(start + step, count) - start
                # Image by image so far; a target is given for all images in their order.
                found += [self.rate(join_outputs([_rows(output, [j], m) for output in outputs])) for j in range(m)]
        return torch.stack(found)

    def _head(self, site: Site, i: int, value: Tensor, alone: bool) -> Any:
        image = self.images[i : i + 1]
        with substitute(site.module, value, site.call):
            return self.forward(image if alone else image.expand(len(value), *image.shape[1:]))

    def _head_runs_alone(self, site: Site) -> bool:
        """Whether the layers behind take a larger batch than those before, whose shortcuts broadcast."""
        value = site.raw[:1].expand(3, *site.raw.shape[1:]).clone()
        try:
            output = self._head(site, 0, value, alone=True)
        except RuntimeError:
            return False
        expected = [t for t in tensors(_rows(self.output, [0], len(self.images))) if t.is_floating_point()]
        found = [t for t in tensors(output) if t.is_floating_point()]
        return all(_repeats(one, three) for one, three in zip(expected, found, strict=True))

    def rate_blocks(self, output: Any, m: int) -> list[Tensor]:
        """Scores the output of M x N images, block by block: M scores (N, K).

        Raises:
            UnsupportedError: The output is not that of so many images.
        """
        n = len(self.images)
        answers = isinstance(output, list) and len(output) == m * n
        if m > 1 and not answers and not any(t.ndim and len(t) == m * n for t in tensors(output)):
            shapes = ", ".join(str(tuple(t.shape)) for t in tensors(output))
            raise UnsupportedError(f"the model gave {shapes} for {m} x {n} images: its batch cannot be made larger")
        return [self.rate(_rows(output, list(range(j * n, (j + 1) * n)), m * n)) for j in range(m)]


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
