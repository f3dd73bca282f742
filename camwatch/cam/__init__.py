"""Explain one batch: class activation maps of any vision model. Knows torch, nothing of training.

Example:
    >>> from camwatch.cam import LayerCapture, grad_cam
    >>> from torch import nn
    >>> import torch
    >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    >>> with LayerCapture(model, "1") as capture:
    ...     score = model(torch.rand(2, 3, 8, 8))[:, 3].sum()
    >>> grad_cam(capture.activations, capture.gradients(score)).shape
    torch.Size([2, 6, 6])
"""

from camwatch.cam.capture import LayerCapture
from camwatch.cam.comparisons import BoxScores, Contrast, Similarity
from camwatch.cam.engine import explain
from camwatch.cam.explanation import Explanation
from camwatch.cam.factorization import Factorization, factorize
from camwatch.cam.fusion import fuse
from camwatch.cam.methods.gradients import grad_cam, hires_cam

__all__ = [
    "BoxScores",
    "Contrast",
    "Explanation",
    "Factorization",
    "LayerCapture",
    "Similarity",
    "explain",
    "factorize",
    "fuse",
    "grad_cam",
    "hires_cam",
]
