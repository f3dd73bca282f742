"""The audit of a whole data set: one row per image, a summary per class, and the worst images.

A panel of 64 images shows that something is wrong; the audit says how much, for which classes, on which
images. ``camwatch.audit`` is the one entry, ``camwatch audit`` its command line.
"""

from camwatch._lazy import attach

__all__, __getattr__, __dir__ = attach(
    __name__,
    {
        "Audit": "summary",
        "ClassSummary": "summary",
    },
)
