"""Faithfulness: what the model says when the pixels that a map points at are taken away or left alone.

Every function takes

- ``predict``: a function from images (B, C, H, W) to the class probabilities (B, classes), for example
  ``lambda images: model(images).softmax(1)``, run under ``no_grad``;
- ``images`` (N, C, H, W) as the model takes them;
- ``maps`` (N, h, w), raw; upsampled bilinearly to the images;
- ``targets`` (N,) int64, the class whose probability is followed.

They return (N,) float32, NaN for a map that is all zero or not finite. Pixels of one value are ordered at
random, the same way in every call, so a uniform map is a random order and the global generator is untouched.

What is filled in lies off the data: two fills that disagree say that the fill was measured, not the map.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from camwatch.errors import InputError, unknown
from camwatch.metrics.imputation import Fill, filled, impute_linearly, pixel_ranks, upsampled
from camwatch.metrics.preparation import defined

PredictProbabilities: TypeAlias = Callable[[Tensor], Tensor]
Mode: TypeAlias = Literal["deletion", "insertion"]

# Of the pixels, which are removed one after the other for ROAD.
SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


def deletion_auc(
    predict: PredictProbabilities,
    images: Tensor,
    maps: Tensor,
    targets: Tensor,
    *,
    steps: int = 32,
    fill: Fill = "blur",
    batch_size: int = 64,
) -> Tensor:
    """Returns the area under the target's probability as the highest pixels are removed first; low is good.

    See ``perturbation_curve`` for the arguments.

    Source: Petsiuk, Das, Saenko, "RISE", BMVC 2018 (there with the fill zero).

    Example:
        >>> def predict(images):  # the probability is the brightness of the left pixel
        ...     return torch.stack([1 - images[:, 0, 0, 0], images[:, 0, 0, 0]], 1)
        >>> image, target = torch.tensor([[[[1.0, 0.5]]]]), torch.tensor([1])
        >>> deletion_auc(predict, image, torch.tensor([[[2.0, 1.0]]]), target, steps=2, fill="zero")
        tensor([0.2500])
    """
    curve = perturbation_curve(
        predict, images, maps, targets, mode="deletion", steps=steps, fill=fill, batch_size=batch_size
    )
    return torch.trapezoid(curve, dx=1 / steps)


def insertion_auc(
    predict: PredictProbabilities,
    images: Tensor,
    maps: Tensor,
    targets: Tensor,
    *,
    steps: int = 32,
    fill: Fill = "blur",
    batch_size: int = 64,
) -> Tensor:
    """Returns the area under the target's probability as the highest pixels are put in first; high is good.

    See ``perturbation_curve`` for the arguments.

    Source: Petsiuk, Das, Saenko, "RISE", BMVC 2018 (there with a blurred start, as here).

    Example:
        >>> def predict(images):
        ...     return torch.stack([1 - images[:, 0, 0, 0], images[:, 0, 0, 0]], 1)
        >>> image, target = torch.tensor([[[[1.0, 0.5]]]]), torch.tensor([1])
        >>> insertion_auc(predict, image, torch.tensor([[[2.0, 1.0]]]), target, steps=2, fill="zero")
        tensor([0.7500])
    """
    curve = perturbation_curve(
        predict, images, maps, targets, mode="insertion", steps=steps, fill=fill, batch_size=batch_size
    )
    return torch.trapezoid(curve, dx=1 / steps)


def perturbation_curve(
    predict: PredictProbabilities,
    images: Tensor,
    maps: Tensor,
    targets: Tensor,
    *,
    mode: Mode = "deletion",
    steps: int = 32,
    fill: Fill = "blur",
    batch_size: int = 64,
) -> Tensor:
    """Returns the target's probability after each step of removing, or putting in, the highest pixels first.

    Args:
        mode: "deletion" goes from the image to the fill, "insertion" from the fill to the image.
        steps: How many equal parts the pixels are taken in.
        fill: What stands for a pixel that is absent: "zero"; "mean", the image's own colour; "blur", the
            image under a Gaussian of a twentieth of its longer side; or a function images -> images.
        batch_size: How many images ``predict`` gets at once, steps of several images mixed.

    Returns:
        (N, steps + 1) float32, at the shares 0, 1/steps, ..., 1 of the pixels.

    Raises:
        InputError: Shapes do not fit, or ``predict`` does not return probabilities.
    """
    if mode not in ("deletion", "insertion"):
        raise InputError(unknown("mode", mode, ("deletion", "insertion")))
    if steps < 1:
        raise InputError(f"expected at least 1 step, got {steps}")
    ranks, sound = pixel_ranks(images, maps)
    targets = _checked(images, targets, batch_size)
    absent = filled(images, fill)
    counts = torch.linspace(0, 1, steps + 1, device=images.device).mul(ranks.shape[1]).round().long()

    def perturbed() -> Iterator[tuple[Tensor, Tensor]]:
        for pairs in torch.split(torch.arange(len(images) * (steps + 1), device=images.device), batch_size):
            rows = pairs // (steps + 1)
            taken = ranks[rows] < counts[pairs % (steps + 1), None]
            keep = taken if mode == "insertion" else ~taken
            yield torch.where(keep.view(-1, 1, *images.shape[2:]), images[rows], absent[rows]), targets[rows]

    curve = _probabilities(predict, perturbed()).view(len(images), steps + 1)
    return defined(curve, sound[:, None])


def average_drop(
    predict: PredictProbabilities, images: Tensor, maps: Tensor, targets: Tensor, *, batch_size: int = 64
) -> Tensor:
    """Returns the share of the target's probability that is lost when the image is multiplied by its heatmap.

    max(0, p - q) / p with q the probability of heatmap * image, the heatmap scaled to a maximum of 1; low is
    good. A uniform map loses nothing, so read it beside ``average_increase`` and a deletion curve.

    Source: Chattopadhay et al., "Grad-CAM++", WACV 2018, eq. 20 (there in percent).
    """
    before, after, sound = _masked(predict, images, maps, targets, batch_size)
    return defined((before - after).clamp(min=0) / before, sound & (before > 0))


def average_increase(
    predict: PredictProbabilities, images: Tensor, maps: Tensor, targets: Tensor, *, batch_size: int = 64
) -> Tensor:
    """Returns 1 where the target's probability grows when the image is multiplied by its heatmap, else 0.

    Source: Chattopadhay et al., "Grad-CAM++", WACV 2018, eq. 21 (there in percent).
    """
    before, after, sound = _masked(predict, images, maps, targets, batch_size)
    return defined((after > before).float(), sound)


def road(
    predict: PredictProbabilities,
    images: Tensor,
    maps: Tensor,
    targets: Tensor,
    *,
    shares: Sequence[float] = SHARES,
    noise: float = 0.01,
    batch_size: int = 64,
) -> Tensor:
    """Returns the ROAD score: half of how much less the lowest pixels are missed than the highest; high is good.

    (q_low - q_high) / 2, where q_high is the target's probability after the highest share of the pixels was
    replaced by noisy linear imputation and q_low after the lowest share was, averaged over ``shares``. The
    imputation leaves no edge that gives the mask away, but costs the solution of a sparse system per image
    and share.

    Args:
        shares: The shares of the pixels to remove, in (0, 1).
        noise: Standard deviation of the noise on the imputed pixels, in the units of ``images``.

    Source: Rong et al., "A Consistent and Efficient Evaluation Strategy for Attribution Methods", ICML 2022;
    combined over both orders as in pytorch-grad-cam's ``ROADCombined``. It favours blurry maps
    (arXiv 2304.13836).
    """
    if not shares or not all(0 < share < 1 for share in shares):
        raise InputError(f"expected shares in (0, 1), got {tuple(shares)}")
    ranks, sound = pixel_ranks(images, maps)
    targets = _checked(images, targets, batch_size)
    pixels = ranks.shape[1]
    generator = torch.Generator().manual_seed(0)

    def imputed() -> Iterator[tuple[Tensor, Tensor]]:
        for image, rank, target in zip(images, ranks, targets, strict=True):
            for share in shares:
                count = round(share * pixels)
                for missing in (rank >= pixels - count, rank < count):
                    mask = missing.view(image.shape[1:])
                    yield impute_linearly(image, mask, noise, generator)[None], target[None]

    batches = _rebatched(imputed(), batch_size)
    scores = _probabilities(predict, batches).view(len(images), len(shares), 2).mean(1)
    return defined((scores[:, 0] - scores[:, 1]) / 2, sound)


def _masked(
    predict: PredictProbabilities, images: Tensor, maps: Tensor, targets: Tensor, batch_size: int
) -> tuple[Tensor, Tensor, Tensor]:
    heatmaps, sound = upsampled(images, maps)
    targets = _checked(images, targets, batch_size)
    both = ((images, targets), ((images * heatmaps[:, None]).to(images.dtype), targets))
    before, after = (
        _probabilities(predict, zip(torch.split(given, batch_size), torch.split(target, batch_size), strict=True))
        for given, target in both
    )
    return before, after, sound


def _checked(images: Tensor, targets: Tensor, batch_size: int) -> Tensor:
    if batch_size < 1:
        raise InputError(f"expected a batch_size of at least 1, got {batch_size}")
    if tuple(targets.shape) != (len(images),) or targets.is_floating_point() or targets.dtype == torch.bool:
        raise InputError(
            f"expected targets of shape ({len(images)},), one class index per image, "
            f"got {targets.dtype} of {tuple(targets.shape)}"
        )
    return targets.to(images.device, torch.int64)


def _probabilities(predict: PredictProbabilities, batches: Iterator[tuple[Tensor, Tensor]]) -> Tensor:
    """Returns the targets' probabilities of all batches, one after the other."""
    found = []
    for images, targets in batches:
        if not len(images):
            continue
        with torch.no_grad():
            output = predict(images)
        if output.ndim != 2 or len(output) != len(images):
            raise InputError(f"expected predict to return ({len(images)}, classes), got {tuple(output.shape)}")
        if bool((output < 0).any()) or bool((output > 1 + 1e-3).any()):
            span = f"{output.min().item():.3g} to {output.max().item():.3g}"
            raise InputError(
                f"expected predict to return probabilities, got values from {span}; "
                "pass for example lambda images: model(images).softmax(1)"
            )
        low, high = int(targets.min()), int(targets.max())
        if not 0 <= low <= high < output.shape[1]:
            raise InputError(f"expected targets from 0 to {output.shape[1] - 1}, got {low} to {high}")
        found.append(output.float().gather(1, targets.to(output.device)[:, None])[:, 0])
    return torch.cat(found) if found else torch.zeros(0)


def _rebatched(singles: Iterator[tuple[Tensor, Tensor]], size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Joins rows to batches, holding one batch at a time."""
    while rows := [row for _, row in zip(range(size), singles, strict=False)]:
        images, targets = zip(*rows, strict=True)
        yield torch.cat(images), torch.cat(targets)
