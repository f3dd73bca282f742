"""Numbers about maps: localization, faithfulness, agreement and sanity.

Pure functions return one number per image; the classes of the same names in CamelCase are
``torchmetrics.Metric`` and average them over images, batches and processes.
"""

from camwatch._lazy import attach

__all__, __getattr__, __dir__ = attach(
    __name__,
    {
        "AverageDrop": "aggregates",
        "AverageIncrease": "aggregates",
        "BetweenClassAgreement": "aggregates",
        "DeletionAUC": "aggregates",
        "InsertionAUC": "aggregates",
        "Lift": "aggregates",
        "MapEntropy": "aggregates",
        "PointingGame": "aggregates",
        "ROAD": "aggregates",
        "RegionAUROC": "aggregates",
        "RegionIoU": "aggregates",
        "RelevanceMassAccuracy": "aggregates",
        "RelevanceRankAccuracy": "aggregates",
        "Skill": "aggregates",
        "WithinClassAgreement": "aggregates",
        "average_drop": "faithfulness",
        "average_increase": "faithfulness",
        "between_class_agreement": "agreement",
        "centre_point": "localization",
        "centre_prior": "localization",
        "deletion_auc": "faithfulness",
        "insertion_auc": "faithfulness",
        "lift": "localization",
        "map_entropy": "localization",
        "map_rank_similarity": "agreement",
        "map_similarity": "agreement",
        "perturbation_curve": "faithfulness",
        "pointing_game": "localization",
        "randomization_check": "sanity",
        "region_auroc": "localization",
        "region_iou": "localization",
        "relevance_mass_accuracy": "localization",
        "relevance_rank_accuracy": "localization",
        "road": "faithfulness",
        "runner_up": "agreement",
        "skill": "localization",
        "uniform_map": "localization",
        "within_class_agreement": "agreement",
    },
)
