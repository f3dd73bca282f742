"""The table of numbers about maps: a new one is a function and its line."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cached_property, partial

from torch import Tensor

from camwatch.metrics.agreement import map_similarity
from camwatch.metrics.localization import (
    centre_point,
    centre_prior,
    map_entropy,
    pointing_game,
    region_auroc,
    region_iou,
    relevance_mass_accuracy,
    relevance_rank_accuracy,
)
from camwatch.records import Measure
from camwatch.regions.regions import Regions

# Undefined where the region, as the layer's grid sees it, cannot hold half of a perfect map's mass.
LEAST_CEILING = 0.5


class PooledMaps:
    """Maps with what the lines of the table share, each computed once and only if it is asked for.

    Args:
        maps: (N, h, w) raw maps.
        regions: Of the images, or None.
        reference: (N, h, w) maps to compare with, or None.
    """

    def __init__(self, maps: Tensor, regions: Regions | None = None, reference: Tensor | None = None) -> None:
        self.maps, self.given, self.reference = maps, regions, reference
        self.grid = (int(maps.shape[1]), int(maps.shape[2]))

    @property
    def known(self) -> set[str]:
        """What there is of a measure's needs."""
        zones = () if self.given is None else ("regions", *(() if self.given.forbidden is None else ("forbidden",)))
        return {*zones, *(() if self.reference is None else ("reference",))}

    @property
    def regions(self) -> Regions:
        """The regions, which a line that needs them has."""
        assert self.given is not None
        return self.given

    @cached_property
    def inside(self) -> Tensor | Regions:
        """The regions on the maps' grid; where an ignore zone counts, too, the regions themselves."""
        return self.regions if self.regions.ignore is not None else self.regions.pooled(self.grid)

    @cached_property
    def area(self) -> Tensor:
        """(N,) share of the image that the region covers."""
        return self.regions.area()

    @cached_property
    def ceiling(self) -> Tensor:
        """(N,) share of the mass that a perfect map could have inside on this grid."""
        return self.regions.ceiling(self.grid)

    @cached_property
    def mass(self) -> Tensor:
        """(N,) share of the mass inside, NaN where the grid cannot resolve the region."""
        return self.resolved(relevance_mass_accuracy(self.maps, self.inside))

    @cached_property
    def forbidden(self) -> Tensor:
        """(N, h, w) share of each cell in the forbidden zone."""
        return self.regions.pooled(self.grid, "forbidden")

    def resolved(self, share: Tensor) -> Tensor:
        """Returns the share, NaN where the grid cannot resolve the region."""
        return share.masked_fill(~(self.ceiling >= LEAST_CEILING), math.nan)

    def where_forbidden(self, share: Tensor) -> Tensor:
        """Returns the share, NaN for images without a forbidden zone."""
        return share.masked_fill(~self.forbidden.flatten(1).any(1), math.nan)


def _skill(p: PooledMaps) -> Tensor:
    return ((p.mass - p.area) / (1 - p.area)).masked_fill(~(p.area < 1), math.nan)


def _forbidden_mass(p: PooledMaps) -> Tensor:
    counted = (p.maps * p.regions.considered(p.grid)).flatten(1).sum(1)
    return p.where_forbidden((p.maps * p.forbidden).flatten(1).sum(1) / counted)


# What the same regions give to the centre, whatever the image: a score is to be read beside it.
def _centre_mass(p: PooledMaps) -> Tensor:
    return p.resolved(relevance_mass_accuracy(centre_prior(1, p.grid).expand(p.maps.shape), p.inside))


def _centre_pointing(p: PooledMaps) -> Tensor:
    return pointing_game(centre_point(1, p.grid).expand(p.maps.shape), p.regions)


def _similarity(p: PooledMaps) -> Tensor:
    assert p.reference is not None
    return map_similarity(p.maps, p.reference)


_layer = partial(Measure, of="layer")
_share = partial(_layer, unit="share", low=0.0, high=1.0, needs=frozenset({"regions"}))
_zone = partial(_share, needs=frozenset({"regions", "forbidden"}))

LINES: tuple[tuple[Measure, Callable[[PooledMaps], Tensor]], ...] = (
    (
        _share(name="relevance_mass_accuracy", title="share of the map inside the regions", better="high",
               uninformative="region_area", split=True, logged=True),
        lambda p: p.mass,
    ),
    (
        _share(name="relevance_rank_accuracy", title="share of the strongest cells inside the regions", better="high",
               uninformative="region_area"),
        lambda p: relevance_rank_accuracy(p.maps, p.inside),
    ),
    (
        _share(name="pointing_game", title="strongest cell inside the region", unit="rate", better="high",
               uninformative="region_area", split=True, logged=True),
        lambda p: pointing_game(p.maps, p.regions),
    ),
    (
        _share(name="region_iou", title="overlap of the map's upper half with the region", better="high"),
        lambda p: region_iou(p.maps, p.inside),
    ),
    (
        _share(name="region_auroc", title="cells inside ranked above cells outside", better="high", uninformative=0.5),
        lambda p: region_auroc(p.maps, p.inside),
    ),
    (
        _share(name="lift", title="share inside over the region's area", unit="amount", high=None, better="high",
               uninformative=1.0),
        lambda p: p.mass / p.area,
    ),
    (
        _share(name="skill", title="share inside above chance: 0 looks everywhere, 1 all inside", low=None,
               better="high", uninformative=0.0),
        _skill,
    ),
    (
        _layer(name="map_entropy", title="how spread out the map is", unit="share", low=0.0, high=1.0, better=None,
               uninformative=1.0, split=True),
        lambda p: map_entropy(p.maps),
    ),
    (
        _layer(name="map_mass", title="sum of the raw map", unit="amount", low=0.0, high=None, better=None,
               uninformative=0.0),
        lambda p: p.maps.flatten(1).sum(1),
    ),
    (
        _layer(name="map_similarity", title="correlation with the reference map", unit="correlation", low=-1.0,
               high=1.0, better=None, needs=frozenset({"reference"}), uninformative=1.0, logged=True),
        _similarity,
    ),
    (
        _share(name="region_area", title="share of the image that the regions cover", better=None,
               uninformative="region_area"),
        lambda p: p.area,
    ),
    (
        _share(name="region_ceiling", title="share inside that a perfect map could have on this grid", better=None,
               uninformative=1.0),
        lambda p: p.ceiling,
    ),
    (
        _zone(name="forbidden_mass", title="share of the map in the forbidden zone", better="low",
              uninformative="forbidden_area", logged=True),
        _forbidden_mass,
    ),
    (
        _zone(name="forbidden_area", title="share of the image that the forbidden zone covers", better=None,
              uninformative="forbidden_area"),
        lambda p: p.where_forbidden(p.forbidden.flatten(1).mean(1)),
    ),
    (
        _share(name="centre_mass_accuracy", title="share inside of a map at the centre of the image", better=None),
        _centre_mass,
    ),
    (
        _share(name="centre_pointing_game", title="centre of the image inside the region", unit="rate", better=None),
        _centre_pointing,
    ),
)  # fmt: skip

NAMES = tuple(measure.name for measure, _ in LINES)
# A whole data set has no reference; a snapshot leaves out what follows from its other numbers, or from the regions.
AUDITED = tuple(name for name in NAMES if name not in ("map_similarity", "forbidden_area"))
_AUDITED_ALONE = ("region_iou", "lift", "skill", "centre_mass_accuracy", "centre_pointing_game")
WATCHED = tuple(name for name in NAMES if name not in _AUDITED_ALONE)


def measure_maps(
    maps: Tensor, regions: Regions | None, reference: Tensor | None = None, names: Sequence[str] = NAMES
) -> dict[str, Tensor]:
    """Measures (N, h, w) maps: name -> (N,) float32, NaN where it is undefined.

    Args:
        maps: Raw maps.
        regions: Of the images; without them the measures that need them are left out.
        reference: Maps to compare with, likewise.
        names: Which measures.

    Example:
        >>> import torch
        >>> measure_maps(torch.ones(1, 2, 2), Regions.coerce([[(0, 0, 2, 4)]], 1, (4, 4)))["lift"]
        tensor([1.])
    """
    pooled = PooledMaps(maps, regions, reference)
    asked = ((measure, line) for measure, line in LINES if measure.name in names)
    return {measure.name: line(pooled) for measure, line in asked if measure.needs <= pooled.known}
