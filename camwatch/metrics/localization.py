"""Numbers about maps, as pure functions: one number per image.

Every function takes ``maps`` (N, h, w), raw and non-negative at the layer's own resolution, and most take
``regions``: masks (N, H, W) of bool or of shares in [0, 1], or ``camwatch.Regions``, whose ignore zone then
counts neither as inside nor as outside. Regions of another size are pooled to the maps' grid by exact area,
so a cell may lie inside in part.

They return (N,) float32. A number that is undefined is NaN: of an empty region, of a map that is all zero
(within the counted cells) or not finite. It is never scored as 0 or 0.5.

Notation: A the map, m the share of each cell that lies in the region, w the share of each cell that counts
(1 without an ignore zone), a = sum(m) / sum(w) the region's share of the area.
"""

from __future__ import annotations

import torch
from torch import Tensor

from camwatch.errors import InputError
from camwatch.metrics.preparation import area_share, cumulative_areas, defined, flatten_maps, pool_regions
from camwatch.regions.regions import Regions


def relevance_mass_accuracy(maps: Tensor, regions: Tensor | Regions) -> Tensor:
    """Returns the share of the map's mass inside the region, sum(A m) / sum(A w).

    A uniform map has the region's share of the area. Also known as the energy-based pointing game.

    Source: Arras, Osman, Samek, "CLEVR-XAI", Information Fusion 2022; Wang et al., "Score-CAM", CVPRW 2020.

    Example:
        >>> maps = torch.tensor([[[3.0, 1.0], [0.0, 0.0]]])
        >>> relevance_mass_accuracy(maps, torch.tensor([[[True, False], [True, False]]]))
        tensor([0.7500])
    """
    values, inside, counted = pool_regions(maps, regions)
    return defined((values * inside).sum(1) / (values * counted).sum(1), inside.sum(1) > 0)


def lift(maps: Tensor, regions: Tensor | Regions) -> Tensor:
    """Returns how many times more mass is inside than a uniform map would have: share / a.

    Example:
        >>> lift(torch.tensor([[[3.0, 1.0]]]), torch.tensor([[[True, False]]]))
        tensor([1.5000])
    """
    return (relevance_mass_accuracy(maps, regions) / area_share(maps, regions)).float()


def skill(maps: Tensor, regions: Tensor | Regions) -> Tensor:
    """Returns the share over that of a uniform map, (share - a) / (1 - a): 1 all inside, 0 uniform.

    Undefined for a region that covers everything.

    Example:
        >>> skill(torch.tensor([[[3.0, 1.0]]]), torch.tensor([[[True, False]]]))
        tensor([0.5000])
    """
    area = area_share(maps, regions)
    value = (relevance_mass_accuracy(maps, regions) - area) / (1 - area)
    return defined(value, area < 1)


def relevance_rank_accuracy(maps: Tensor, regions: Tensor | Regions) -> Tensor:
    """Returns which share of the region the map's highest cells cover, |top(A) ∩ M| / |M|.

    The top holds as much area as the region: cells from the highest value on, the last one in part. Tied
    cells are taken in equal parts, so a uniform map scores the region's share of the area.

    Source: Arras et al. 2022.

    Example:
        >>> maps = torch.tensor([[[4.0, 3.0, 2.0, 1.0]]])
        >>> relevance_rank_accuracy(maps, torch.tensor([[[True, False, True, False]]]))
        tensor([0.5000])
    """
    values, inside, counted = pool_regions(maps, regions)
    covered, outside = cumulative_areas(values, inside, counted)
    taken, budget = covered + outside, covered[:, -1:].contiguous()
    right = torch.searchsorted(taken, budget).clamp(1, taken.shape[1] - 1)
    (x0, x1), (y0, y1) = ((t.gather(1, right - 1), t.gather(1, right)) for t in (taken, covered))
    part = ((budget - x0) / (x1 - x0).clamp(min=1e-30)).clamp(0, 1)
    return defined(((y0 + part * (y1 - y0)) / budget).squeeze(1), budget.squeeze(1) > 0)


def region_auroc(maps: Tensor, regions: Tensor | Regions) -> Tensor:
    """Returns P(A inside > A outside) + P(equal) / 2, each cell weighted by its area inside and outside.

    Chance is 0.5 whatever the region's size. Undefined for a region that covers everything.

    Example:
        >>> maps = torch.tensor([[[4.0, 3.0, 2.0, 2.0]]])
        >>> region_auroc(maps, torch.tensor([[[True, False, True, False]]]))
        tensor([0.6250])
    """
    covered, outside = cumulative_areas(*pool_regions(maps, regions))
    area = torch.trapezoid(covered, outside) / (covered[:, -1] * outside[:, -1])
    return defined(area, (covered[:, -1] > 0) & (outside[:, -1] > 0))


def region_iou(maps: Tensor, regions: Tensor | Regions, threshold: float = 0.5) -> Tensor:
    """Returns the intersection over union of the region and the cells with A >= threshold * max(A).

    Cells that lie inside in part take part with their areas.

    Args:
        threshold: In (0, 1].

    Example:
        >>> maps = torch.tensor([[[4.0, 3.0, 1.0, 0.0]]])
        >>> region_iou(maps, torch.tensor([[[True, False, False, False]]]))
        tensor([0.5000])
    """
    if not 0 < threshold <= 1:
        raise InputError(f"expected a threshold in (0, 1], got {threshold}")
    values, inside, counted = pool_regions(maps, regions)
    seen = values.masked_fill(counted <= 0, 0)
    high = (seen >= threshold * seen.amax(1, keepdim=True)) * counted
    both = torch.minimum(high, inside).sum(1)
    return defined(both / (high.sum(1) + inside.sum(1) - both), (inside.sum(1) > 0) & ~values.isnan().any(1))


def pointing_game(maps: Tensor, regions: Tensor | Regions, tolerance: float = 0.0) -> Tensor:
    """Returns 1 where the map's highest cell points at the region, else 0.

    The centre of the cell is looked up in the region at the region's own resolution. Of several highest
    cells the mean is taken, so a map that is flat at the top is not scored by the order of its cells.
    Partial masks count from a share of 0.5 on.

    Args:
        tolerance: How far a pixel of the region may be from the point, in pixels of the region's image,
            exclusive. The literature uses 15 on photographs of about 500 pixels.

    Source: Zhang et al., "Top-down Neural Attention by Excitation Backprop", ECCV 2016; TorchRay's
    ``PointingGame``, of which this is the hit of each image. The published score is the mean over classes of
    each class's mean: ``camwatch.metrics.PointingGame(num_classes=...)``.

    Example:
        >>> maps = torch.tensor([[[0.0, 3.0], [1.0, 0.0]]])
        >>> region = torch.zeros(1, 8, 8, dtype=torch.bool)
        >>> region[:, 6:, 6:] = True
        >>> pointing_game(maps, region), pointing_game(maps, region, tolerance=5)
        (tensor([0.]), tensor([1.]))
    """
    values, _, counted = pool_regions(maps, regions)
    masks = regions.allowed if isinstance(regions, Regions) else regions
    masks = (masks if masks.dtype == torch.bool else masks >= 0.5).to(maps.device)
    seen = values.masked_fill(counted <= 0, -1)
    # NaN equals nothing and a map without a counted cell is undefined anyway: such maps have no peaks.
    peaks = ((seen == seen.amax(1, keepdim=True)) & (seen > 0)).nonzero()
    hits = torch.zeros_like(values)
    (height, width), (h, w) = masks.shape[1:], maps.shape[1:]
    y, x = (torch.arange(n, device=maps.device) + 0.5 for n in (height, width))
    # In blocks: a flat map has as many peaks as cells, and each is compared with a whole image.
    for start in range(0, len(peaks), 256):
        image, cell = peaks[start : start + 256].unbind(1)
        dy = ((cell // w + 0.5) * (height / h))[:, None] - y
        dx = ((cell % w + 0.5) * (width / w))[:, None] - x
        on = (dy.abs() <= 0.5)[:, :, None] & (dx.abs() <= 0.5)[:, None, :]
        near = (dy**2)[:, :, None] + (dx**2)[:, None, :] < tolerance**2
        hits[image, cell] = ((on | near) & masks[image]).flatten(1).any(1).to(hits.dtype)
    number = torch.bincount(peaks[:, 0], minlength=len(maps))
    return defined(hits.sum(1) / number, masks.flatten(1).any(1) & (number > 0))


def map_entropy(maps: Tensor) -> Tensor:
    """Returns the entropy of the map's mass over its cells, divided by log(h w): 1 uniform, 0 one cell.

    Example:
        >>> map_entropy(torch.tensor([[[1.0, 1.0], [0.0, 0.0]]]))
        tensor([0.5000])
    """
    values = flatten_maps(maps)
    share = values / values.sum(1, keepdim=True)
    entropy = torch.special.entr(share).sum(1) / torch.log(torch.tensor(share.shape[1]))
    return defined(entropy.clamp(0, 1), torch.full_like(entropy, share.shape[1] > 1, dtype=torch.bool))


def uniform_map(n: int, grid: tuple[int, int]) -> Tensor:
    """Returns (n, h, w) of ones: the baseline that looks everywhere."""
    return torch.ones(n, *grid)


def centre_point(n: int, grid: tuple[int, int]) -> Tensor:
    """Returns (n, h, w): the baseline that points at the centre; along an even side, at both cells beside it.

    On VOC07 the centre point alone wins the pointing game on 69.6 % of all images (TorchRay's table): a score
    without this baseline beside it says little.

    Example:
        >>> centre_point(1, (3, 4))[0]
        tensor([[0., 0., 0., 0.],
                [0., 1., 1., 0.],
                [0., 0., 0., 0.]])
    """
    rows, columns = ((2 * torch.arange(side) + 1 - side).abs() <= 1 for side in grid)
    return (rows[:, None] & columns[None, :]).float().expand(n, *grid).clone()


def centre_prior(n: int, grid: tuple[int, int]) -> Tensor:
    """Returns (n, h, w): the baseline that looks around the centre, whatever the image.

    A Gaussian with a standard deviation of a quarter of each side; its peak is the centre point.

    Example:
        >>> centre_prior(1, (3, 3))[0, 1]
        tensor([0.4111, 1.0000, 0.4111])
    """
    sides = ((2 * torch.arange(side) + 1 - side) / (2 * side) for side in grid)
    rows, columns = (torch.exp(-0.5 * (position / 0.25) ** 2) for position in sides)
    return (rows[:, None] * columns[None, :]).expand(n, *grid).clone()
