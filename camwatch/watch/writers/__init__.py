"""Where pictures, scalars and texts go: one small protocol, one module per backend."""

from camwatch._lazy import attach

__all__, __getattr__, __dir__ = attach(
    __name__,
    {
        "ScalarWriter": "base",
        "Writer": "base",
        "for_logger": "base",
    },
)
