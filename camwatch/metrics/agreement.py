"""Agreement between maps: of two methods, of the images of a class, of the classes of an image."""

from __future__ import annotations

import torch
from torch import Tensor

from camwatch.errors import InputError
from camwatch.metrics.preparation import NAN, flatten_maps, to_double


def map_similarity(a: Tensor, b: Tensor) -> Tensor:
    """Returns Pearson's correlation over the cells of two maps of each image.

    It is the CC of saliency evaluation (Bylinskii et al., "What do different evaluation metrics tell us about
    saliency models?", TPAMI 2019). The cosine would not do: maps are non-negative, so two unrelated ones
    already have a high cosine, and uniform maps agree with everything. A map without contrast is undefined.

    Args:
        a: (N, h, w).
        b: (N, h, w), on the same grid.

    Example:
        >>> a = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])
        >>> map_similarity(a, 10 * a + 1), map_similarity(a, 5 - a)
        (tensor([1.]), tensor([-1.]))
    """
    return _mean_product(*_pair(a, b))


def map_rank_similarity(a: Tensor, b: Tensor) -> Tensor:
    """Returns Spearman's rank correlation over the cells of two maps of each image, ties sharing their rank.

    The measure of the randomization checks of Adebayo et al., "Sanity Checks for Saliency Maps", NeurIPS 2018.

    Example:
        >>> a = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])
        >>> map_rank_similarity(a, a**3)
        tensor([1.])
    """
    return _mean_product(*(_ranks(values) for values in _pair(a, b)))


def within_class_agreement(maps: Tensor, labels: Tensor) -> Tensor:
    """Returns each map's mean similarity to the maps of the other images with the same label.

    High where the evidence lies at the same place in every image: for centred objects, or for a planted cue.
    Undefined for an image that is alone in its class.

    Args:
        maps: (N, h, w).
        labels: (N,) int.

    Example:
        >>> maps = torch.tensor([[[1.0, 0.0]], [[2.0, 0.0]], [[0.0, 1.0]]])
        >>> within_class_agreement(maps, torch.tensor([7, 7, 8]))
        tensor([1., 1., nan])
    """
    if labels.shape != maps.shape[:1]:
        raise InputError(f"expected labels of shape {tuple(maps.shape[:1])}, got {tuple(labels.shape)}")
    unit = standardized(maps)
    alike = (unit @ unit.T) / unit.shape[1]
    others = (labels[:, None] == labels[None, :]) & ~torch.eye(len(labels), dtype=torch.bool, device=maps.device)
    return alike.masked_fill(~others, NAN).nanmean(1).clamp(-1, 1).float()


def between_class_agreement(maps: Tensor) -> Tensor:
    """Returns the mean similarity of the first class's map to those of the other classes of the same image.

    A map that is the same for every class (near 1) explains none. Meant for the label and its runner-up:
    ``explain(model, images, target=torch.stack([labels, runner_up(scores, labels)], 1)).maps``.

    Args:
        maps: (N, K, h, w), K >= 2 classes.

    Source: the class discriminability of Selvaraju et al., "Grad-CAM", ICCV 2017, section 5.1.

    Example:
        >>> between_class_agreement(torch.tensor([[[[1.0, 0.0]], [[2.0, 0.0]]]]))
        tensor([1.])
    """
    if maps.ndim != 4 or maps.shape[1] < 2:
        raise InputError(f"expected maps of shape (N, K, h, w) with K >= 2 classes, got {tuple(maps.shape)}")
    first, *others = maps.unbind(1)
    return torch.stack([map_similarity(first, other) for other in others]).nanmean(0)


def runner_up(scores: Tensor, labels: Tensor) -> Tensor:
    """Returns (N,) int64: the class with the highest score beside the label.

    Example:
        >>> runner_up(torch.tensor([[0.1, 0.7, 0.2]]), torch.tensor([1]))
        tensor([2])
    """
    return scores.float().scatter(1, labels[:, None], -torch.inf).argmax(1)


def standardized(maps: Tensor) -> Tensor:
    """Returns (N, h w) cells of mean 0 and variance 1, whose mean product is the similarity; NaN without contrast.

    Example:
        >>> standardized(torch.tensor([[[0.0, 2.0]]]))
        tensor([[-1.,  1.]], dtype=torch.float64)
    """
    return _standardize(flatten_maps(maps))


def _pair(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    if a.shape != b.shape:
        raise InputError(f"expected two sets of maps on one grid, got {tuple(a.shape)} and {tuple(b.shape)}")
    return flatten_maps(a), flatten_maps(b)


def _mean_product(a: Tensor, b: Tensor) -> Tensor:
    return (_standardize(a) * _standardize(b)).mean(1).clamp(-1, 1).float()


def _standardize(values: Tensor) -> Tensor:
    """Returns rows of mean 0 and variance 1; NaN where all cells are equal."""
    flat = values.amax(1, keepdim=True) == values.amin(1, keepdim=True)
    values = values / values.amax(1, keepdim=True)  # squares of very small values would be zero
    centred = values - values.mean(1, keepdim=True)
    return (centred / centred.square().mean(1, keepdim=True).sqrt()).masked_fill(flat, NAN)


def _ranks(values: Tensor) -> Tensor:
    ordered = values.sort(1).values
    below, upto = (torch.searchsorted(ordered, values.contiguous(), right=right) for right in (False, True))
    return to_double(below + upto + 1).masked_fill(values.isnan(), NAN)
