"""Numbers about maps: localization, faithfulness, agreement and sanity.

Pure functions return one number per image; the classes of the same names in CamelCase are
``torchmetrics.Metric`` and average them over images, batches and processes.

- Is the evidence in the region? ``RelevanceMassAccuracy``, ``RelevanceRankAccuracy``,
  ``PointingGame(tolerance=, num_classes=)``, ``RegionIoU``, ``RegionAUROC``, ``Lift``, ``Skill``; to be read beside
  what ``uniform_map``, ``centre_point`` and ``centre_prior`` score.
- Is it a map of this class? ``MapEntropy``, ``WithinClassAgreement``, ``BetweenClassAgreement`` (label and
  ``runner_up``).
- Does the model use what the map shows? ``InsertionAUC``, ``DeletionAUC`` (fills zero, mean, blur), ``AverageDrop``,
  ``AverageIncrease``, ``ROAD``.
- Does the map depend on the weights? ``randomization_check(model, images)``; ``print`` it, or draw its ``figure()``.

What is undefined (no region, a blank map) is counted and left out, never scored. Quantus differs: it scores an empty
region and a flat map as hits, and orders ties by their place. In a LightningModule the classes are synced over
processes by themselves, to the last bit however the batches are cut.

Example:
    >>> import torch
    >>> from camwatch.metrics import RelevanceMassAccuracy
    >>> mass = RelevanceMassAccuracy()
    >>> mass.update(torch.tensor([[[3.0, 1.0]]]), torch.tensor([[[True, False]]]))
    >>> mass.compute()
    tensor(0.7500)
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
