"""How a layer's output lies on the image: channels first, channels last, or a sequence of tokens."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Grid = tuple[int, ...]
MAX_PREFIX = 16  # class, distillation and register tokens in front of the patches
MAX_DISTORTION = 1.2  # how far a grid's aspect ratio may lie from the image's


@dataclass(frozen=True)
class Layout:
    """The place of the channels and of the grid in a layer's output.

    Attributes:
        grid: Cells along each axis of the image: (h, w) for images.
        channels: Number of channels.
        channel_axis: 1, or -1 for channels last.
        prefix: Leading tokens that belong to no cell; None where the output is a grid already.
    """

    grid: Grid
    channels: int
    channel_axis: int
    prefix: int | None = None

    def apply(self, output: Tensor) -> Tensor:
        """Returns the output as (N, C, *grid).

        Example:
            >>> Layout(grid=(14, 14), channels=8, channel_axis=-1, prefix=1).apply(torch.zeros(2, 197, 8)).shape
            torch.Size([2, 8, 14, 14])
        """
        if self.channel_axis == -1:
            output = output.movedim(-1, 1)
        if self.prefix is None:
            return output
        cells = output[:, :, self.prefix : self.prefix + math.prod(self.grid)]
        return cells.reshape(*cells.shape[:2], *self.grid)

    def invert(self, cells: Tensor, like: Tensor) -> Tensor:
        """Puts (M, C, *grid) back into the form of the layer's output, other tokens taken from ``like``."""
        if self.prefix is not None:
            cells = cells.flatten(2)
        if self.channel_axis == -1:
            cells = cells.movedim(1, -1)
        if self.prefix is None:
            return cells
        axis = 1 if self.channel_axis == -1 else 2
        size = math.prod(self.grid)
        after = like.shape[axis] - self.prefix - size
        parts = torch.split(like, [self.prefix, size, after], dim=axis)
        return torch.cat([parts[0], cells, parts[2]], dim=axis)


def _distortion(grid: Sequence[int], size: Sequence[int]) -> float:
    """The largest ratio between the strides of two axes: 1 where every cell covers a square."""
    strides = [extent / cells for extent, cells in zip(size, grid, strict=True)]
    return max(strides) / min(strides)


def _is_grid(grid: Sequence[int], size: Sequence[int]) -> bool:
    """A grid has two cells or more along each axis, no more cells than pixels, and the image's proportions."""
    if min(grid) < 2 or any(cells > extent for cells, extent in zip(grid, size, strict=True)):
        return False
    # Rounding at the borders matters on coarse grids: 7 x 5 cells may stem from 224 x 144 pixels.
    slack = 1 + 1 / min(grid)
    return _distortion(grid, size) <= max(MAX_DISTORTION, slack)


def token_grid(tokens: int, size: Sequence[int], known: Collection[Grid] = ()) -> tuple[Grid, int] | None:
    """Finds the grid that a number of tokens spans on an image, and how many tokens stand before it.

    A grid already seen in the same pass, or one that square patches of a whole number of pixels span, goes
    before others; then the fewest extra tokens.

    Args:
        tokens: Length of the sequence.
        size: Extent of the image along each axis, in pixels.
        known: Grids seen elsewhere in the same forward pass.

    Returns:
        The grid and the number of leading tokens, or None.

    Example:
        >>> token_grid(197, (224, 224)), token_grid(433, (384, 288)), token_grid(768, (224, 224))
        (((14, 14), 1), ((24, 18), 1), None)
    """
    found: list[tuple[bool, bool, int, float, Grid]] = []
    for prefix in range(min(MAX_PREFIX, tokens - 1) + 1):
        for grid in _factorizations(tokens - prefix, size):
            if _is_grid(grid, size):
                distortion = _distortion(grid, size)
                found.append((grid not in known, not _is_patched(grid, size), prefix, distortion, grid))
    if not found:
        return None
    # A grid that was not seen, nor spanned by whole patches, is believed only where no token stands before it.
    found = [f for f in found if not f[0] or not f[1] or f[2] == 0]
    return (min(found)[-1], min(found)[2]) if found else None


def _is_patched(grid: Sequence[int], size: Sequence[int]) -> bool:
    """Whether square patches of a whole number of pixels span the grid, the border dropped or padded."""
    patch = round(size[0] / grid[0])
    return any(
        all(extent // side == cells for extent, cells in zip(size, grid, strict=True))
        or all(-(-extent // side) == cells for extent, cells in zip(size, grid, strict=True))
        for side in (patch - 1, patch, patch + 1)
        if side > 0
    )


def _factorizations(cells: int, size: Sequence[int]) -> list[Grid]:
    """All grids of that many cells; for more than two axes, only those with the image's proportions."""
    if len(size) == 1:
        return [(cells,)]
    if len(size) == 2:
        return [(h, cells // h) for h in range(1, cells + 1) if cells % h == 0]
    stride = (math.prod(size) / cells) ** (1 / len(size))
    grid = tuple(max(1, round(extent / stride)) for extent in size)
    return [grid] if math.prod(grid) == cells else []


def lay_out(
    shape: Sequence[int],
    size: Sequence[int],
    batch: int,
    *,
    channels_last: bool = False,
    known: Collection[Grid] = (),
    tokens: Collection[int] = (),
) -> Layout | None:
    """Tells how an output of that shape lies on the image, or None where it has no spatial grid.

    Args:
        shape: Shape of the output, batch included.
        size: Extent of the image along each axis, in pixels.
        batch: Number of images.
        channels_last: Whether channels last is the likelier reading of an ambiguous shape.
        known: Grids seen elsewhere in the same pass.
        tokens: Lengths of token sequences seen in the same pass: a 4-D tensor with such an axis holds
            attention per head, not a grid.

    Example:
        >>> lay_out((2, 512, 7, 7), (224, 224), 2)
        Layout(grid=(7, 7), channels=512, channel_axis=1, prefix=None)
        >>> lay_out((2, 7, 7, 768), (224, 224), 2).channel_axis
        -1
        >>> lay_out((2, 1000), (224, 224), 2) is None
        True
    """
    axes = len(size)
    if len(shape) < 3 or shape[0] != batch:
        return None
    if len(shape) == axes + 2:
        first = Layout(tuple(shape[2:]), shape[1], 1)
        last = Layout(tuple(shape[1:-1]), shape[-1], -1)
        order = [last, first] if channels_last else [first, last]
        # (N, C, 1) is a pooled vector, not C cells of one channel.
        fitting = [o for o in order if _is_grid(o.grid, size) and (o is first or o.channels > 1)]
        if (
            axes > 1
            and any(extent in tokens for extent in shape[2:])
            and not any(layout.grid in known for layout in fitting)
        ):
            return None
        if fitting:
            return min(fitting, key=lambda layout: layout.grid not in known)
        if axes > 1:
            return None
    if len(shape) == 3 and axes > 1:
        readings = []
        for axis in (1, 2):
            found = token_grid(shape[axis], size, known)
            # (N, C, 1) is a pooled vector, not C tokens. Tokens along the last axis, some before the grid and the
            # grid seen nowhere else, are the class scores of many boxes.
            if found is not None and shape[3 - axis] > 1 and (axis == 1 or not found[1] or found[0] in known):
                channel_axis = -1 if axis == 1 else 1
                readings.append(Layout(found[0], shape[3 - axis], channel_axis, found[1]))
        if readings:
            return min(readings, key=lambda layout: (layout.grid not in known, layout.channel_axis != -1))
    return None
