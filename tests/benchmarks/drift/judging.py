"""What the detectors say of a trained run, beside the truth; nothing is trained here."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import torch
from training import Run

from camwatch.detectors.behaviour import Reliance, reliance
from camwatch.detectors.coercion import coerce
from camwatch.records import Snapshot
from camwatch.watch.replay import replay

CLEAN, RELIANT = 0.05, 0.20
DETECTORS = ("drop", "level", "probe", "dead_maps")
BASELINES = (
    "validation accuracy",
    "validation loss",
    "share inside",
    "shifted mask",
    "centre prior",
    "mean activation",
    "outside-only accuracy",
)


def load(path: Path) -> dict[str, Any]:
    """Returns a stored run, its snapshots as records."""
    stored = torch.load(path, weights_only=True)
    stored["run"] = Run(**stored["run"])
    stored["snapshots"] = {k: [Snapshot(**s) for s in v] for k, v in stored["snapshots"].items()}
    stored["transplant"] = torch.load(path.with_suffix(".place"), weights_only=True)
    return stored


def judge(stored: dict[str, Any], detectors: Any = "default") -> dict[str, Any]:
    """Returns one row: the truth, the first alarm of each detector, the score and the baselines at the end."""
    run, looks = stored["run"], [look for look in stored["looks"] if look["epoch"] >= 0]
    truth = {look["epoch"]: round(look["reliance"], 6) for look in looks}  # 16 of 320 is .05, and no more
    onset = next((epoch for epoch, value in truth.items() if value >= RELIANT), None)
    last, end = stored["snapshots"]["true"][-1], looks[-1]
    alarms = said(stored["snapshots"]["true"], detectors)
    state = "clean" if max(truth.values()) <= CLEAN else "reliant" if truth[end["epoch"]] >= RELIANT else "grey"
    found: Reliance | None = reliance(last)
    row: dict[str, Any] = {
        "key": run.key,
        "seed": run.seed,
        "base": run.base,
        "net": run.net,
        "cue": run.cue,
        "arm": run.arm,
        "state": state,
        "reliance": end["reliance"],
        "largest reliance": max(truth.values()),
        "onset": onset,
        "alarm": min((epoch for _, epoch, _ in alarms), default=None),
        "confirmed alarm": min((epoch for _, epoch, behaviour in alarms if behaviour == "agrees"), default=None),
    }
    for name in DETECTORS:
        row[name] = min((epoch for detector, epoch, _ in alarms if detector == name), default=None)
    row["alarms"] = [
        {"detector": detector, "behaviour": behaviour, "reliance": truth.get(epoch, 0.0)}
        for detector, epoch, behaviour in alarms
    ]
    row["looks judged"] = sum(reliance(snapshot) is not None for snapshot in stored["snapshots"]["true"])
    row["score"] = 0.0 if found is None else found.score
    row |= {name: end[name] for name in BASELINES if name != "share inside"}
    share = last.per_image.get("relevance_mass_accuracy")
    row["share inside"] = math.nan if share is None else float(share.nanmean())
    for name, snapshots in stored["snapshots"].items():
        row[f"annotations: {name}"] = bool(said(snapshots, detectors))
    row["named"], row["named rightly"] = stored["transplant"]["named"], stored["transplant"]["hits"]
    row["seconds"] = stored["seconds"]
    return row


def said(snapshots: list[Snapshot], detectors: Any) -> list[tuple[str, int, str]]:
    """Returns (detector, epoch, what it says of behaviour) of every alarm."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about panels annotated in part
        alarms = replay(snapshots, coerce(detectors))
    return [(alarm.detector, alarm.epoch, alarm.evidence.get("behaviour", "none")) for alarm in alarms]
