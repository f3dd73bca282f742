"""Methods that run the model again: what happens to the score when channels or places are taken away.

Each needs no gradient, only scores, and many forward passes; ``batch_size=`` bounds them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from camwatch.cam.methods.fusion import INTERPOLATION, unit
from camwatch.cam.methods.gradients import weighted_sum
from camwatch.cam.methods.runner import LayerOutput, ModelRunner

SS_DRAWS, SS_DEVIATION = 10, 2.0
IS_STEPS = 10


def _maps(activations: Tensor, weights: Tensor) -> Tensor:
    """Returns (N, K, *grid) maps from weights (C, N, K)."""
    return torch.stack([weighted_sum(activations, w.T) for w in weights.unbind(2)], dim=1)


def ablation_cam(runner: ModelRunner, layer: LayerOutput) -> Tensor:
    """Ablation-CAM: channels weighted by the share of the score that is lost without them.

    Choose it where gradients mislead (saturated scores): it measures what a channel does. It costs one pass
    through the layers behind the target per channel, and few through those below.

    A channel is ablated by zeros, as in the paper, and the loss is divided by the score's magnitude, so that
    a loss stays a loss where the score is negative. pytorch-grad-cam divides by the score itself, and where
    the activations' minimum is not 0 it puts in -1e7 instead of zeros.

    Source: Desai and Ramaswamy, Ablation-CAM, WACV 2020, equations 5 and 6.
    """
    channels = layer.layout.channels

    def without(cells: Tensor, start: int, stop: int) -> Tensor:
        copies = cells.expand(stop - start, *cells.shape).clone()
        copies[torch.arange(stop - start), torch.arange(start, stop)] = 0
        return copies

    left = runner.score_activations(layer, without, channels, "Ablation-CAM")
    scores = runner.scores
    magnitude = torch.where(scores == 0, 1.0, scores.abs())
    return _maps(layer.activations, (scores - left) / magnitude)


def score_cam(runner: ModelRunner, layer: LayerOutput) -> Tensor:
    """Score-CAM: channels weighted by the score that the image has where they are active.

    Choose it where gradients are noisy and there is time: one whole forward pass per channel. Its weights are
    positive and, for small scores, nearly equal: on a small net its maps hardly changed when the head's weights
    were drawn anew (tests/benchmarks/randomization.py).

    Peers differ in the masks: pytorch-grad-cam upsamples with aligned corners, torch-cam scales to [0, 1]
    before upsampling instead of after.

    Source: Wang et al., Score-CAM, CVPR Workshops 2020, equations 5 to 8 and algorithm 1. The score of the
    baseline image is common to all channels and leaves the softmax as it is.
    """
    scores = runner.score_images(partial(_masked, runner, layer), layer.layout.channels, "Score-CAM")
    return _maps(layer.activations, scores.softmax(0))


def _masks(runner: ModelRunner, layer: LayerOutput, start: int, stop: int) -> Tensor:
    """Returns (channels, N, 1, *size): some channels upsampled to the image and scaled to [0, 1]."""
    size = runner.images.shape[2:]
    part = layer.activations[:, start:stop].transpose(0, 1)
    masks = unit(functional.interpolate(part, size, mode=INTERPOLATION[len(size)], align_corners=False))
    return masks.unsqueeze(2).to(runner.images.dtype)


def _masked(runner: ModelRunner, layer: LayerOutput, start: int, stop: int) -> Tensor:
    return runner.images * _masks(runner, layer, start, stop)


def ss_cam(runner: ModelRunner, layer: LayerOutput) -> Tensor:
    """SS-CAM: Score-CAM whose masks are blurred by noise, the score averaged over ten draws.

    Choose it where Score-CAM's maps hang on single pixels and there is ten times its time: ten forward passes per
    channel. Its weights are as nearly equal as Score-CAM's. The noise has a deviation of 2, as in the paper, which
    draws 35 times; it is the same at every call.

    Source: Wang et al., SS-CAM: Smoothed Score-CAM, arXiv 2006.14255, section 3, equation 5: noise added to the
    masks. As for Score-CAM, torch-cam scales to [0, 1] before upsampling instead of after.
    """

    def noisy(start: int, stop: int, draw: int) -> Tensor:
        masks = _masks(runner, layer, start, stop)
        noise = [mask_noise(draw, channel, masks[0].shape) for channel in range(start, stop)]
        return runner.images * (masks + torch.stack(noise).to(masks))

    return _averaged(runner, layer, noisy, SS_DRAWS, "SS-CAM")


def mask_noise(draw: int, channel: int, shape: torch.Size) -> Tensor:
    """One draw of noise for one channel's masks, whatever else is drawn beside it."""
    generator = torch.Generator().manual_seed(draw * 2**20 + channel)
    return SS_DEVIATION * torch.randn(shape, generator=generator)


def is_cam(runner: ModelRunner, layer: LayerOutput) -> Tensor:
    """IS-CAM: Score-CAM whose score is integrated from the hidden image to the masked one and beyond.

    Choose it where Score-CAM's scores saturate: ten forward passes per channel see the image at ten strengths. Its
    weights differ more than Score-CAM's.

    Source: Naidu et al., IS-CAM: Integrated Score-CAM, arXiv 2010.03023, as in torch-cam, N = 10: the mask of step
    i counts the sum of j / N for j from 1 to i, so that the last step lies at 5.5 times the image. As for
    Score-CAM, torch-cam scales to [0, 1] before upsampling instead of after.
    """

    def stronger(start: int, stop: int, step: int) -> Tensor:
        return sum(range(1, step + 2)) / IS_STEPS * _masked(runner, layer, start, stop)

    return _averaged(runner, layer, stronger, IS_STEPS, "IS-CAM")


def _averaged(
    runner: ModelRunner, layer: LayerOutput, make: Callable[[int, int, int], Tensor], rounds: int, label: str
) -> Tensor:
    """Score-CAM's maps from masked images (start, stop, round), each channel's score averaged over the rounds."""
    channels = layer.layout.channels
    found = [
        runner.score_images(partial(_round, make, i), channels, f"{label}, {i + 1} of {rounds}") for i in range(rounds)
    ]
    return _maps(layer.activations, torch.stack(found).mean(0).softmax(0))


def _round(make: Callable[[int, int, int], Tensor], i: int, start: int, stop: int) -> Tensor:
    return make(start, stop, i)


def occlusion(runner: ModelRunner) -> Tensor:
    """Occlusion: how far the score falls when a window of the image is set to 0.

    Choose it to check any other map: it needs neither layer nor gradient, and does what it says. The window is
    a seventh of the image wide and moves by half of that, so that maps are about 13 cells wide. A cue that
    is given twice is missed, and 0 (the mean colour of normalized images) is itself a pattern.

    Source: Zeiler and Fergus, Visualizing and understanding convolutional networks, ECCV 2014, section 4.2.
    """
    size = runner.images.shape[2:]
    windows = [(..., *window) for window in itertools.product(*map(occlusion_windows, size))]

    def hidden(start: int, stop: int) -> Tensor:
        copies = runner.images.expand(stop - start, *runner.images.shape).clone()
        for copy, window in zip(copies, windows[start:stop], strict=True):
            copy[window] = 0
        return copies

    left = runner.score_images(hidden, len(windows), "Occlusion")
    falls = (runner.scores - left).relu().permute(1, 2, 0)
    return falls.reshape(*falls.shape[:2], *(len(occlusion_windows(extent)) for extent in size))


def occlusion_windows(extent: int) -> list[slice]:
    """Windows of a seventh of the extent that overlap by half and lie evenly from border to border."""
    width = max(1, round(extent / 7))
    count = 1 + max(0, round((extent - width) / max(1, width / 2)))
    starts = [round(i * (extent - width) / max(1, count - 1)) for i in range(count)]
    return [slice(start, start + width) for start in starts]
