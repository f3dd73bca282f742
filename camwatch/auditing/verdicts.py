"""The verdict on an image."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from camwatch.metrics.table import AUDITED, LEAST_CEILING

RIGHT, WRONG_REASON, WRONG = "right", "right for the wrong reason", "wrong"
UNMEASURED, UNREADABLE = "not measurable", "unreadable"
VERDICTS = (RIGHT, WRONG_REASON, WRONG, UNMEASURED, UNREADABLE)
COLUMNS = ("index", "id", "label", "predicted", "probability", "label_probability", *AUDITED, "verdict", "note")


Row = list[Any]


def judge(label: int | None, predicted: int, skill: float, threshold: float = 0.0) -> str:
    """Returns an image's verdict.

    An answer is right for the wrong reason where the map has no more inside the region than the threshold
    asks: at 0, no more than a map that looks everywhere; 1 would be all of it.

    Example:
        >>> judge(3, 3, 0.4), judge(3, 3, -0.1), judge(3, 5, 0.4), judge(3, 3, float("nan"))
        ('right', 'right for the wrong reason', 'wrong', 'not measurable')
    """
    if label is None:
        return UNMEASURED
    if label != predicted:
        return WRONG
    if math.isnan(skill):
        return UNMEASURED
    return RIGHT if skill > threshold else WRONG_REASON


def why(values: Mapping[str, Any]) -> str:
    """Says why an image is not measurable.

    Example:
        >>> why({"label": 3, "region_area": math.nan})
        'no region'
    """
    if values.get("label") is None:
        return "no label"
    if math.isnan(values["region_area"]):
        return "no region"
    if values["region_ceiling"] < LEAST_CEILING:
        return "the region is too small for the layer's grid"
    if values["region_area"] >= 1:
        return "the region is the whole image"
    return "the map shows nothing" if math.isfinite(values["map_mass"]) else "the map is not finite"
