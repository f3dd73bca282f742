"""PyTorch Lightning: the callback, the panel from a trainer's loaders, and the audit as a predict loop."""

from camwatch._lazy import attach

__all__, __getattr__, __dir__ = attach(
    __name__,
    {
        "CAMMonitor": "callback",
    },
)
