"""The panel: the fixed images that are watched, drawn from a data set or read from files."""

from camwatch._lazy import attach

__all__, __getattr__, __dir__ = attach(
    __name__,
    {
        "Panel": "panel",
    },
)
