"""Maps that show nothing: what is wrong with each, and what to do about it."""

from __future__ import annotations

import warnings

from torch import Tensor

from camwatch.errors import CamwatchWarning

FLAT = 1e-6  # relative span below which a map is the same everywhere
SATURATED = 0.1  # relative span below which a heatmap is one colour
ADVICE = {
    "not finite": "check that the weights are finite, and the images; in fp16 take bf16 or float32",
    "zero": "no evidence for the target was found there: try a shallower layer or another method",
    "constant": "the layer does not tell places apart: try a shallower layer or another method",
    "saturated": "all cells lie within a tenth of the strongest: try a shallower layer or another method",
}


class BlankMapWarning(CamwatchWarning):
    """A map shows nothing: all zero, not finite, or the same everywhere."""


class SaturatedMapWarning(BlankMapWarning):
    """A map shows nothing to the eye: it is one colour, though its cells differ."""


def map_defects(maps: Tensor, axes: int) -> list[str]:
    """Names what is wrong with each map, in order: a key of ``ADVICE``, or "" for a sound map.

    Args:
        maps: (..., *grid).
        axes: Number of the grid's axes.

    Example:
        >>> import torch
        >>> map_defects(torch.tensor([[0.0, 0.0], [2.0, 2.0], [0.95, 1.0], [0.0, 1.0]]), axes=1)
        ['zero', 'constant', 'saturated', '']
    """
    flat = maps.flatten(-axes).flatten(0, -2).float()
    high, low = flat.amax(1), flat.amin(1)
    peak = flat.abs().amax(1)
    found = []
    for span, top, finite in zip((high - low).tolist(), peak.tolist(), flat.isfinite().all(1).tolist(), strict=True):
        if not finite:
            found.append("not finite")
        elif top == 0:
            found.append("zero")
        elif not span > FLAT * top:
            found.append("constant")
        else:
            found.append("saturated" if span < SATURATED * top else "")
    return found


def warn_of_flaws(found: list[str], method: str, layer: str, stacklevel: int) -> None:
    """Warns once of maps that show nothing and once of saturated ones, with advice for what is wrong."""
    blank = [flaw for flaw in found if flaw not in ("", "saturated")]
    where = f"maps of {method} at {layer!r}"
    if blank:
        kinds = [kind for kind in ADVICE if kind in blank]
        advice = "; ".join(f"{kind}: {ADVICE[kind]}" for kind in kinds)
        warnings.warn(
            BlankMapWarning(
                f"{len(blank)} of {len(found)} {where} show nothing (all zero, not finite, or the same everywhere). "
                f"{advice}"
            ),
            stacklevel=stacklevel + 1,
        )
    if "saturated" in found:
        message = f"{found.count('saturated')} of {len(found)} {where} are saturated: {ADVICE['saturated']}"
        warnings.warn(SaturatedMapWarning(message), stacklevel=stacklevel + 1)
