"""What ``explain`` returns: raw maps, the model's output, and pictures made from them on request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from camwatch.cam.blank_maps import map_defects
from camwatch.cam.methods.fusion import fuse
from camwatch.cam.model.nested import join_outputs
from camwatch.cam.model.targets import probabilities
from camwatch.errors import InputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False)
class Explanation:
    """The maps of one layer for a batch of images.

    Attributes:
        maps: (N, h, w) float32, or (N, K, h, w) for K targets per image: raw, non-negative, never
            normalized, at the layer's own resolution. Statistics belong on these.
        output: What the model returned.
        layer: The layer's name.
        method: The method's name.
        size: The images' extent in pixels, (H, W).
        images: The images that were explained, to be drawn; not copied.
    """

    maps: Tensor
    output: Any = field(repr=False)
    layer: str
    method: str
    size: tuple[int, ...]
    images: Tensor | None = field(default=None, repr=False)

    def heatmaps(self) -> Tensor:
        """Returns (N[, K], H, W) maps upsampled to the image and scaled to [0, 1] by each one's maximum.

        They are for the eye. A blank map stays blank.

        Raises:
            InputError: The maps are of signals or volumes, not of images.
        """
        from camwatch.pictures import colours

        if len(self.size) != 2:
            raise InputError(f"only maps of images can be drawn, these span {len(self.size)} axes; use .maps")
        return colours.heatmaps(self.maps, (self.size[0], self.size[1]))

    def overlays(
        self, images: Tensor | None = None, alpha: float = 0.5, colormap: str = "jet", **true_colours: Any
    ) -> Tensor:
        """Returns (N, 3, H, W) uint8 pictures: the images in true colours under their heatmaps.

        Of K targets per image the first is shown. Where a map is blank or saturated, the plain image is hatched
        instead, lest it look like a result.

        Args:
            images: (N, C, H, W), as the model took them; those that were explained by default.
            alpha: Weight of the heatmap where it is strongest, 0 to 1.
            colormap: Any of matplotlib's.
            **true_colours: ``denormalize=(mean, std)`` and ``rgb=(r, g, b)``; see ``Panel``.
        """
        from camwatch.pictures import colours

        pictures = colours.true_colours(self._drawn(images), **true_colours)
        heatmaps = self.heatmaps().to(pictures.device)
        heatmaps = heatmaps[:, 0] if heatmaps.ndim == 4 else heatmaps
        flawed = torch.tensor([bool(flaw) for flaw in self._first_flaws()], device=pictures.device)
        overlays = colours.overlay(pictures, heatmaps, alpha=alpha, colormap=colormap)
        rows, columns = (torch.arange(n, device=pictures.device) for n in self.size)
        grey = torch.full((), 128, dtype=torch.uint8, device=pictures.device)
        hatched = torch.where((rows[:, None] + columns) % 12 < 3, grey, colours.to_uint8(pictures))
        return torch.where(flawed[:, None, None, None], hatched, overlays)

    def top(self, k: int = 5) -> tuple[Tensor, Tensor]:
        """Returns the (N, k) most probable classes and their probabilities, highest first.

        Example:
            >>> e = Explanation(torch.zeros(1, 2, 2), torch.tensor([[0.0, 9.0, 1.0]]), "0", "gradcam", (4, 4))
            >>> e.top(2)[0]
            tensor([[1, 2]])
        """
        values = probabilities(self.output)
        best = values.topk(min(k, values.shape[1]), dim=1)
        return best.indices, best.values

    def blank(self) -> Tensor:
        """Returns (N[, K]) bool: which maps show nothing (all zero, not finite, or the same everywhere).

        Example:
            >>> Explanation(torch.ones(1, 2, 2), None, "0", "gradcam", (4, 4)).blank()
            tensor([True])
        """
        found = [flaw not in ("", "saturated") for flaw in self.flaws()]
        return torch.tensor(found, device=self.maps.device).view(self.maps.shape[: -len(self.size)])

    def flaws(self) -> list[str]:
        """Names what is wrong with each map: "zero", "not finite", "constant", "saturated", or "" for a sound one.

        The first three are blank. A saturated map's cells differ by less than a tenth: to the eye it is one colour.

        Example:
            >>> Explanation(torch.zeros(1, 2, 2), None, "0", "gradcam", (4, 4)).flaws()
            ['zero']
        """
        return map_defects(self.maps, len(self.size))

    def figure(
        self,
        images: Tensor | None = None,
        class_names: Sequence[str] | None = None,
        alpha: float = 0.5,
        colormap: str = "jet",
        **true_colours: Any,
    ) -> Figure:
        """Draws original | heatmap | overlay for each image, with the five most probable classes.

        Args:
            images: (N, C, H, W), as the model took them; those that were explained by default.
            class_names: One name per class; indices are shown without.
            alpha: Weight of the heatmap in the overlay.
            colormap: Any of matplotlib's.
            **true_colours: ``denormalize=`` and ``rgb=``; see ``Panel``.
        """
        from matplotlib.figure import Figure

        from camwatch.pictures import colours

        images = self._drawn(images)
        pictures = colours.true_colours(images, **true_colours).permute(0, 2, 3, 1).cpu().numpy()
        overlays = self.overlays(images, alpha, colormap, **true_colours).permute(0, 2, 3, 1).cpu().numpy()
        heatmaps = self.heatmaps().cpu().reshape(len(images), -1, *self.size)[:, 0].numpy()
        flawed = self._first_flaws()
        classes, values = (t.cpu() for t in self.top(5))
        height = 2.6 * self.size[0] / self.size[1]
        figure = Figure(figsize=(10.5, (height + 0.35) * len(images) + 0.2), layout="constrained")
        axes = figure.subplots(len(images), 4, squeeze=False, width_ratios=[1, 1, 1, 0.9])
        for i, row in enumerate(axes):
            row[0].imshow(pictures[i])
            row[1].imshow(heatmaps[i], cmap=colormap, vmin=0, vmax=1)
            row[2].imshow(overlays[i])
            if flawed[i]:
                shown = "saturated map" if flawed[i] == "saturated" else f"blank map ({flawed[i]})"
                row[1].set_xlabel(f"{shown}: shows nothing", color="crimson")
            if i == 0:
                for axis, title in zip(row, ["original", f"{self.method}, {self.layer}", "overlay"], strict=False):
                    axis.set_title(title, fontsize=10)
            for axis in row[:3]:
                axis.set(xticks=[], yticks=[])
            names = [class_names[c] if class_names else str(c) for c in classes[i].tolist()]
            lines = [f"{p:6.1%}  {n}" for n, p in zip(names, values[i].tolist(), strict=True)]
            row[3].axis("off")
            row[3].text(0, 0.5, "\n".join(lines), va="center", family="monospace", fontsize=9)
        return figure

    def _first_flaws(self) -> list[str]:
        """Each image's flaw, of its first target's map."""
        targets = self.maps.shape[1] if self.maps.ndim > 1 + len(self.size) else 1
        return self.flaws()[::targets]

    def _drawn(self, images: Tensor | None) -> Tensor:
        chosen = self.images if images is None else images
        if chosen is None:
            raise InputError("this explanation holds no images to draw on; pass images=")
        return chosen


def concatenate(parts: list[Explanation]) -> Explanation:
    """Joins the explanations of consecutive batches."""
    if len(parts) == 1:
        return parts[0]
    first = parts[0]
    maps = torch.cat([part.maps for part in parts])
    return Explanation(maps, join_outputs([p.output for p in parts]), first.layer, first.method, first.size)


def fuse_explanations(parts: list[Explanation], how: str) -> Explanation:
    """Returns one explanation from those of several layers, whose names it carries."""
    maps = fuse([part.maps for part in parts], how, len(parts[0].size))
    return replace(parts[0], maps=maps, layer="+".join(part.layer for part in parts))
