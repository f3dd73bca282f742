"""Which runs there are, in an order of which every beginning is balanced."""

from __future__ import annotations

import itertools

import worlds
from training import CONTROLS, Run

CUES = ("corner", "border", "watermark", "object", "texture")
TUNING = (0, 2, 4, 6, 8, 10)
REPORTED = (73, 75, 77, 79, 81, 83, 85, 87, 89)


def reported(run: Run) -> bool:
    """Whether a run belongs to the half that is reported, on which no threshold was tuned."""
    return run.seed % 2 == 1


def small() -> list[Run]:
    """Tier S: small nets on digits and shapes. Even seeds tune, odd ones report; every cue meets its own control."""
    found = []
    for seed in TUNING + REPORTED:
        base = ("digits", "shapes")[seed // 2 % 2]

        def turn(offset: int, seed: int = seed) -> str:
            return CUES[(seed // 2 + offset) % len(CUES)]

        runs = [Run(seed, base, cue, arm) for arm in ("1", "chance", "0.95") for cue in CUES]
        runs += [Run(seed, base, turn(k), "0.8") for k in range(2)]
        runs += [Run(seed, base, turn(k), "late") for k in (2, 3)]
        runs += [Run(seed, base, turn(k + j), arm) for k in range(2) for j, arm in enumerate(CONTROLS)]
        runs += [Run(seed, base, "none", "none"), Run(seed, base, "scene", "legitimate")]
        runs += [Run(seed, base, worlds.MISSES[seed // 2 % 3], "1")]
        runs += [Run(seed, base, cue, arm, "separable") for cue in ("corner", "object") for arm in ("1", "chance")]
        found += runs
    return found


def photographs() -> list[Run]:
    """Tier P: ResNet-18, objects on photographs; judged with the thresholds of tier S, so all of it is reported."""
    found = []
    for seed, cue in itertools.product((91, 93, 95, 97), ("corner", "watermark")):
        found += [Run(seed, "photos", cue, arm, "resnet18", 6) for arm in ("1", "chance")]
    return found


def added() -> list[Run]:
    """A cue and an architecture that were held back until the thresholds were fixed."""
    found = []
    for seed in (101, 103, 105, 107):
        base = ("digits", "shapes")[seed // 2 % 2]
        found += [Run(seed, base, "stamp", arm) for arm in ("1", "chance", "0.95")]
        found += [Run(seed, base, cue, arm, "dense") for cue in ("corner", "object") for arm in ("1", "chance")]
    return found


def moved() -> list[Run]:
    """Nets that know the task before a cue comes in: their maps move, and their answers hardly follow."""
    seeds = (2, 4, 109, 111, 113, 115, 117, 119)
    return [Run(seed, "canvas", cue, "settled", "deep") for seed in seeds for cue in ("corner", "watermark")]


TIERS = {"S": small, "P": photographs, "added": added, "moved": moved}
