"""Where the evidence ought to be: masks and boxes, their zones, and how they lie on a map."""

from camwatch._lazy import attach

__all__, __getattr__, __dir__ = attach(
    __name__,
    {
        "Regions": "regions",
    },
)
