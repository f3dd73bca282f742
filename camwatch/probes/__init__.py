"""Behavioural tests beside the map: what the model answers when pixels are hidden or exchanged.

Each test runs forwards through ``predict(images (N, C, H, W)) -> scores (N, classes)`` and returns one number
per image, NaN where it cannot be asked. Boxes are (N, 4) x1, y1, x2, y2 in pixels, half-open, as
``Regions.boxes(margin)`` gives them; an empty box stands for an image without annotation. Nothing is drawn
from the global random number generators.

What such a test cannot tell: whether the context is legitimate (water under a boat also scores), and anything
about a cue that lies inside the region. A filled box is no natural image, so two fills have to agree.
"""

from camwatch._lazy import attach

__all__, __getattr__, __dir__ = attach(
    __name__,
    {
        "Cue": "cue",
        "Swap": "swapping",
        "Transplant": "transplanting",
        "hide": "hiding",
        "hide_elsewhere": "hiding",
        "swap": "swapping",
        "transplant": "transplanting",
    },
)
