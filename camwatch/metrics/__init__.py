"""Numbers about maps: localization, faithfulness, agreement and sanity.

Pure functions return one number per image; the classes of the same names in CamelCase are
``torchmetrics.Metric`` and average them over images, batches and processes.
"""

from __future__ import annotations

import importlib
from typing import Any

# Public name -> the module that defines it. torchmetrics and scipy are not imported before they are used.
_EXPORTS = {
    name: f"camwatch.metrics.{module}"
    for module, names in {
        "aggregate": (
            "AverageDrop",
            "AverageIncrease",
            "DeletionAUC",
            "InsertionAUC",
            "Lift",
            "MapEntropy",
            "PointingGame",
            "ROAD",
            "RegionAUROC",
            "RegionIoU",
            "RelevanceMassAccuracy",
            "RelevanceRankAccuracy",
            "Skill",
        ),
        "agreement": (
            "between_class_agreement",
            "map_rank_similarity",
            "map_similarity",
            "runner_up",
            "within_class_agreement",
        ),
        "alike": ("BetweenClassAgreement", "WithinClassAgreement"),
        "faithfulness": (
            "average_drop",
            "average_increase",
            "deletion_auc",
            "insertion_auc",
            "perturbation_curve",
            "road",
        ),
        "functional": (
            "centre_point",
            "centre_prior",
            "lift",
            "map_entropy",
            "pointing_game",
            "region_auroc",
            "region_iou",
            "relevance_mass_accuracy",
            "relevance_rank_accuracy",
            "skill",
            "uniform_map",
        ),
        "sanity": ("randomization_check",),
    }.items()
    for name in names
}

__all__ = sorted(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(importlib.import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module 'camwatch.metrics' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_EXPORTS])
