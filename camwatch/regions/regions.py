"""Where the evidence ought to be: one mask per image, with zones allowed, forbidden and ignore."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from camwatch.errors import RegionError, unknown
from camwatch.regions.annotations import ZONES, per_image_regions, warn_cut, zone_masks
from camwatch.regions.shifting import roll_away


@dataclass(frozen=True, eq=False)
class Regions:
    """One region per image, on the image's own pixels.

    The three zones never overlap: a pixel of the ignore zone belongs to no other, and a forbidden pixel is
    not allowed. What is neither is outside. Pixels of the ignore zone are neither inside nor outside: they
    count neither in the share of a map nor in its total. For a map at resolution (h, w) with
    ``w = regions.considered((h, w))`` and ``p = regions.pooled((h, w))`` that share is
    ``(map * p).sum() / (map * w).sum()``.

    Attributes:
        allowed: (N, H, W) bool, where the evidence ought to be. An image on which only a forbidden zone was
            annotated allows all the rest.
        forbidden: (N, H, W) bool, where it must not be (a known watermark, ruler, token); None: nowhere.
        ignore: (N, H, W) bool, where nothing is said; None: nowhere.
        annotated: (N,) bool, whether the image has a region at all. Numbers of the others are NaN.

    Raises:
        RegionError: Shapes differ, or an annotated image is left without an allowed pixel.

    Example:
        >>> regions = Regions.coerce([[(0, 0, 2, 2)], None], n=2, size=(4, 4))
        >>> regions.area()
        tensor([0.2500,    nan])
        >>> regions.pooled((2, 2))[0]
        tensor([[1., 0.],
                [0., 0.]])
    """

    allowed: Tensor
    forbidden: Tensor | None = None
    ignore: Tensor | None = None
    annotated: Tensor = None  # type: ignore[assignment]  # all of them, where not given

    def __post_init__(self) -> None:
        shape = tuple(self.allowed.shape)
        if len(shape) != 3:
            raise RegionError(f"expected allowed masks of shape (N, H, W), got {shape}")
        annotated = torch.ones(shape[0], dtype=torch.bool) if self.annotated is None else self.annotated
        if tuple(annotated.shape) != shape[:1]:
            raise RegionError(f"expected annotated of shape {shape[:1]}, got {tuple(annotated.shape)}")
        allowed, forbidden = self.allowed.bool(), self.forbidden
        for zone in ("forbidden", "ignore"):
            mask = getattr(self, zone)
            if mask is not None and tuple(mask.shape) != shape:
                raise RegionError(f"expected {zone} masks of shape {shape}, got {tuple(mask.shape)}")
        if self.ignore is not None:
            allowed = allowed & ~self.ignore
            forbidden = None if forbidden is None else forbidden & ~self.ignore
        if forbidden is not None:
            allowed = allowed & ~forbidden
        allowed = allowed & annotated[:, None, None]
        empty = (annotated & ~allowed.flatten(1).any(1)).nonzero().flatten().tolist()
        if empty:
            raise RegionError(
                f"image {empty[0]}: the region is empty, no pixel is left beside the forbidden and ignore zone"
                f"{f' (and in {len(empty) - 1} more)' if len(empty) > 1 else ''}; "
                "pass a list with None in the place of an image without a region"
            )
        for name, value in (("allowed", allowed), ("forbidden", forbidden), ("annotated", annotated.bool())):
            object.__setattr__(self, name, value)

    @classmethod
    def coerce(cls, given: Any, n: int, size: tuple[int, int]) -> Regions:
        """Makes regions of whatever holds them.

        Args:
            given: ``Regions``; masks (N, H, W) or (N, 1, H, W) of bool or 0 and 1, NumPy or torch; or a list
                with one entry per image, which is a mask (H, W), several masks (K, H, W) to unite, boxes
                (K, 4) as x1, y1, x2, y2 in pixels of that image (half-open, fractional edges rounded
                outward, cut off at the image's border with a warning), a torchvision ``Mask`` or
                ``BoundingBoxes``, None for an image without annotation, or a dictionary of the zones
                ``allowed``, ``forbidden`` and ``ignore`` holding any of these. Such a dictionary may also
                stand at the top, with one list or array per zone.
            n: How many images there are.
            size: (H, W) of the images.

        Raises:
            RegionError: A region is empty, of another size, outside the image or ambiguous, or there are
                more or fewer than images. The message names the image.

        Example:
            >>> masks = torch.zeros(2, 4, 6, dtype=torch.bool)
            >>> masks[:, 1:3, 2:5] = True
            >>> Regions.coerce(masks, n=2, size=(4, 6)).boxes().tolist()
            [[2, 1, 5, 3], [2, 1, 5, 3]]
        """
        size = (int(size[0]), int(size[1]))
        if isinstance(given, Regions):
            if (len(given), given.size) != (n, size):
                raise RegionError(f"{len(given)} regions of (H, W) = {given.size} for {n} images of {size}")
            return given
        cut: list[str] = []
        rows = [zone_masks(entry, size, f"image {i}", cut) for i, entry in enumerate(per_image_regions(given, n))]
        warn_cut(cut, n)
        stacked: dict[str, Tensor] = {}
        nothing = torch.zeros(size, dtype=torch.bool)
        for zone in ZONES:
            found = [row[zone] for row in rows]
            if zone == "allowed" or any(mask is not None for mask in found):
                stacked[zone] = torch.stack([nothing if mask is None else mask for mask in found])
        annotated = torch.tensor([row["allowed"] is not None for row in rows])
        return cls(annotated=annotated, **stacked)

    def __len__(self) -> int:
        return len(self.allowed)

    def __getitem__(self, index: Any) -> Regions:
        """Returns the regions of some images; an integer gives one."""
        if isinstance(index, int):
            index = [index]
        return Regions.from_state({k: None if v is None else v[index] for k, v in self.state_dict().items()})

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the images."""
        return int(self.allowed.shape[1]), int(self.allowed.shape[2])

    def pooled(self, grid: tuple[int, int], zone: str = "allowed") -> Tensor:
        """Returns (N, h, w): the share of each cell's area that the zone covers."""
        from camwatch.regions.pooling import area_pool

        if zone not in ZONES:
            raise RegionError(unknown("zone", zone, ZONES))
        mask = getattr(self, zone)
        return area_pool(torch.zeros_like(self.allowed) if mask is None else mask, grid)

    def considered(self, grid: tuple[int, int]) -> Tensor:
        """Returns (N, h, w): the share of each cell's area that counts, outside of the ignore zone."""
        from camwatch.regions.pooling import area_pool

        if self.ignore is None:
            return torch.ones(len(self), *grid, device=self.allowed.device)
        return area_pool(~self.ignore, grid)

    def area(self) -> Tensor:
        """Returns (N,): the region's share of the counted pixels, which is what a uniform map has in it."""
        counted = torch.ones_like(self.allowed) if self.ignore is None else ~self.ignore
        return self._defined(self.allowed.flatten(1).sum(1) / counted.flatten(1).sum(1))

    def ceiling(self, grid: tuple[int, int]) -> Tensor:
        """Returns (N,): the largest share of its mass that a map at this resolution can have inside."""
        share = (self.pooled(grid) / self.considered(grid)).nan_to_num(0.0).clamp(max=1)
        return self._defined(share.flatten(1).amax(1))

    def boxes(self, margin: tuple[float, float] = (0, 0)) -> Tensor:
        """Returns (N, 4) int64: the allowed zones' bounding boxes x1, y1, x2, y2, half-open.

        Args:
            margin: (dy, dx) in pixels by which a box grows on each side; it is cut off at the image.

        An image without annotation has the empty box 0, 0, 0, 0.
        """
        result = torch.zeros(len(self), 4, dtype=torch.int64)
        (height, width), (dy, dx) = self.size, margin
        for i in self.annotated.nonzero().flatten().tolist():
            rows = self.allowed[i].any(1).nonzero().flatten()
            columns = self.allowed[i].any(0).nonzero().flatten()
            result[i] = torch.tensor(
                [
                    max(math.floor(int(columns[0]) - dx), 0),
                    max(math.floor(int(rows[0]) - dy), 0),
                    min(math.ceil(int(columns[-1]) + 1 + dx), width),
                    min(math.ceil(int(rows[-1]) + 1 + dy), height),
                ]
            )
        return result

    def shifted(self) -> Regions:
        """Returns the placebo: each allowed zone rolled to where it meets the image's zones least.

        A control for what is said about the regions: a finding that also holds for these speaks of the map
        as a whole. Among the rolls of least overlap (exact, by the circular cross-correlation), those that
        do not wrap around the border are preferred, and of them the farthest. A region of more than half of
        the image cannot avoid itself. The ignore zone stays in place; a forbidden zone is avoided and then
        left out.

        Example:
            >>> Regions.coerce([[(0, 0, 2, 2)]], n=1, size=(4, 4)).shifted().boxes().tolist()
            [[2, 2, 4, 4]]
        """
        blocked = self.allowed.clone()
        for zone in (self.forbidden, self.ignore):
            blocked |= False if zone is None else zone
        moved = torch.stack(
            [
                roll_away(mask, wall, box)
                for mask, wall, box in zip(self.allowed, blocked, self.boxes().tolist(), strict=True)
            ]
        )
        free = moved if self.ignore is None else moved & ~self.ignore
        return Regions(moved, ignore=self.ignore, annotated=free.flatten(1).any(1))

    def state_dict(self) -> dict[str, Tensor | None]:
        """Returns plain tensors, from which ``from_state`` makes the same regions."""
        return {
            "allowed": self.allowed,
            "forbidden": self.forbidden,
            "ignore": self.ignore,
            "annotated": self.annotated,
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor | None]) -> Regions:
        """Makes the regions that ``state_dict`` described."""
        return cls(**state)  # type: ignore[arg-type]

    def _defined(self, values: Tensor) -> Tensor:
        return values.masked_fill(~self.annotated, float("nan"))
