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

from camwatch._lazy import attach

__all__, __getattr__, __dir__ = attach(
    __name__,
    {
        "BoxScores": "comparisons",
        "Contrast": "comparisons",
        "Explanation": "explanation",
        "Factorization": "factorization",
        "LayerCapture": "model.hooks",
        "Similarity": "comparisons",
        "explain": "engine",
        "factorize": "factorization",
        "fuse": "methods.fusion",
        "grad_cam": "methods.gradients",
        "hires_cam": "methods.gradients",
    },
)
