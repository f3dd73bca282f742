"""Methods that run the model again: what happens to the score when channels or places are taken away.

Each needs no gradient, only scores, and many forward passes; ``batch_size=`` bounds them.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor
from torch.nn import functional

from camwatch.cam.access import Access, Site
from camwatch.cam.methods import weighted_sum

INTERPOLATION = {1: "linear", 2: "bilinear", 3: "trilinear"}


def _maps(activations: Tensor, weights: Tensor) -> Tensor:
    """Returns (N, K, *grid) maps from weights (C, N, K)."""
    return torch.stack([weighted_sum(activations, w.T) for w in weights.unbind(2)], dim=1)


def ablation_cam(access: Access, site: Site) -> Tensor:
    """Ablation-CAM: channels weighted by the share of the score that is lost without them.

    Choose it where gradients mislead (saturated scores): it measures what a channel does. It costs one pass
    through the layers behind the target per channel, and few through those below.

    A channel is ablated by zeros, as in the paper, and the loss is divided by the score's magnitude, so that
    a loss stays a loss where the score is negative. pytorch-grad-cam divides by the score itself, and where
    the activations' minimum is not 0 it puts in -1e7 instead of zeros.

    Source: Desai and Ramaswamy, Ablation-CAM, WACV 2020, equations 5 and 6.
    """
    channels = site.layout.channels

    def without(cells: Tensor, start: int, stop: int) -> Tensor:
        copies = cells.expand(stop - start, *cells.shape).clone()
        copies[torch.arange(stop - start), torch.arange(start, stop)] = 0
        return copies

    left = access.rate_activations(site, without, channels, "Ablation-CAM")
    scores = access.scores
    magnitude = torch.where(scores == 0, 1.0, scores.abs())
    return _maps(site.activations, (scores - left) / magnitude)


def score_cam(access: Access, site: Site) -> Tensor:
    """Score-CAM: channels weighted by the score that the image has where they are active.

    Choose it where gradients are noisy and there is time: one whole forward pass per channel. Its weights are
    positive and, for small scores, nearly equal: on a small net its maps hardly changed when the head's weights
    were drawn anew (tests/benchmarks/randomization.py).

    Peers differ in the masks: pytorch-grad-cam upsamples with aligned corners, torch-cam scales to [0, 1]
    before upsampling instead of after.

    Source: Wang et al., Score-CAM, CVPR Workshops 2020, equations 5 to 8 and algorithm 1. The score of the
    baseline image is common to all channels and leaves the softmax as it is.
    """
    activations, images = site.activations, access.images
    size = images.shape[2:]

    def masked(start: int, stop: int) -> Tensor:
        part = activations[:, start:stop].transpose(0, 1)
        masks = _unit(functional.interpolate(part, size, mode=INTERPOLATION[len(size)], align_corners=False))
        return images * masks.unsqueeze(2).to(images.dtype)

    scores = access.rate_images(masked, activations.shape[1], "Score-CAM")
    return _maps(activations, scores.softmax(0))


def _unit(masks: Tensor) -> Tensor:
    """Scales each mask of (C, N, *size) to [0, 1]; a constant one hides everything."""
    axes = tuple(range(2, masks.ndim))
    low, high = masks.amin(axes, keepdim=True), masks.amax(axes, keepdim=True)
    return torch.where(high > low, (masks - low) / (high - low), 0.0)


def occlusion(access: Access) -> Tensor:
    """Occlusion: how far the score falls when a window of the image is set to 0.

    Choose it to check any other map: it needs neither layer nor gradient, and does what it says. The window is
    a seventh of the image wide and moves by half of that, so that maps are about 13 cells wide. A cue that
    is given twice is missed, and 0 (the mean colour of normalized images) is itself a pattern.

    Source: Zeiler and Fergus, Visualizing and understanding convolutional networks, ECCV 2014, section 4.2.
    """
    size = access.images.shape[2:]
    windows = [(..., *window) for window in itertools.product(*map(_windows, size))]

    def hidden(start: int, stop: int) -> Tensor:
        copies = access.images.expand(stop - start, *access.images.shape).clone()
        for copy, window in zip(copies, windows[start:stop], strict=True):
            copy[window] = 0
        return copies

    left = access.rate_images(hidden, len(windows), "Occlusion")
    falls = (access.scores - left).relu().permute(1, 2, 0)
    return falls.reshape(*falls.shape[:2], *(len(_windows(extent)) for extent in size))


def _windows(extent: int) -> list[slice]:
    """Windows of a seventh of the extent that overlap by half and lie evenly from border to border."""
    width = max(1, round(extent / 7))
    count = 1 + max(0, round((extent - width) / max(1, width / 2)))
    starts = [round(i * (extent - width) / max(1, count - 1)) for i in range(count)]
    return [slice(start, start + width) for start in starts]
