"""A run on disk: what was asked, the panel, every snapshot, and what was found; readable without torch."""

from camwatch._lazy import attach

__all__, __getattr__, __dir__ = attach(
    __name__,
    {
        "ArchivedRun": "reading",
        "load_archive": "tensors",
        "read_archive": "reading",
    },
)
