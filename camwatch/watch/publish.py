"""From a snapshot to pictures, scalars and texts in the writers. Runs on the writer thread."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from camwatch.errors import DisplayWarning
from camwatch.measures import key_of
from camwatch.panel.panel import Panel
from camwatch.pictures.colours import to_uint8
from camwatch.pictures.film_sheet import Frame, film_sheet
from camwatch.pictures.outlines import outline
from camwatch.pictures.sheets import SheetImages, overlay_sheet, panel_sheet
from camwatch.probes.cue import Cue
from camwatch.records import Finding, Snapshot
from camwatch.run import PanelTarget

if TYPE_CHECKING:
    from camwatch.watch.writers.base import Writer


@dataclass(frozen=True, eq=False)
class ShownImages:
    """What every picture of a run shares.

    Attributes:
        rows: (n,) indices of the images that are shown.
        images: These images, with their regions and names.
        layers: Names of the layers.
        target: Whose map is shown, in a word.
    """

    rows: Tensor
    images: SheetImages
    layers: tuple[str, ...]
    target: str

    @classmethod
    def of(cls, panel: Panel, layers: tuple[str, ...], target: PanelTarget, show: int) -> ShownImages:
        """Chooses the panel's first images, which a drawn panel has balanced over the classes."""
        rows = torch.arange(min(show, len(panel)))
        return cls(rows, sheet_images(panel, rows), layers, target if isinstance(target, str) else "target")


def sheet_images(panel: Panel, rows: Tensor) -> SheetImages:
    """Returns some of a panel's images as sheets take them."""
    return SheetImages(
        panel.rgb_images()[rows],
        None if panel.regions is None else panel.regions[rows],
        None if panel.labels is None else panel.labels[rows],
        panel.class_names,
        [panel.ids[i] for i in rows.tolist()],
    )


def warn_if_stretched(panel: Panel, stacklevel: int) -> None:
    """Warns where images are shown in other colours than their own."""
    if panel.stretched:
        warnings.warn(
            "no normalization was found in the data set's transforms, so each image is shown stretched to its "
            "own range; pass denormalize=(mean, std) with the panel for true colours",
            DisplayWarning,
            stacklevel=stacklevel,
        )


def publish_panel(writers: Sequence[Writer], shown: ShownImages, name: str) -> None:
    """Writes the panel with its regions' outlines, once, at step 0."""
    if writers and len(shown.rows):
        _each(writers, "image", f"{name}/panel", panel_sheet(shown.images), 0)


def publish_cue(writers: Sequence[Writer], panel: Panel, cue: Cue, name: str, step: int) -> None:
    """Writes what a named cue looks like: one image of each class with its place outlined, and the patches."""
    if cue.box is None:
        return
    x1, y1, x2, y2 = cue.box
    place = torch.zeros(len(cue.images), *panel.size, dtype=torch.bool)
    place[:, y1:y2, x1:x2] = True
    images = replace(sheet_images(panel, cue.images), regions=None, ids=None)
    outlined = outline(to_uint8(images.rgb), place, color=(255, 0, 0)).float() / 255
    title = f"the cue: moved between images, this patch goes {cue.rate:.0%} of the way to the other answer"
    whole = panel_sheet(replace(images, rgb=outlined), title)
    patch = panel_sheet(replace(images, rgb=images.rgb[:, :, y1:y2, x1:x2]), "what lies there")
    width = max(whole.shape[2], patch.shape[2])
    parts = [torch.nn.functional.pad(part, (0, width - part.shape[2]), value=255) for part in (whole, patch)]
    _each(writers, "image", f"{name}/cue", torch.cat(parts, 1), step)


def publish_texts(writers: Sequence[Writer], findings: Sequence[Finding], summary: str, name: str, step: int) -> None:
    """Writes what was found, under its severity, and at the end of a run its summary."""
    texts = [(f"{name}/{finding.severity}", _text_of(finding)) for finding in findings]
    markdown = summary.replace("\n", "\n\n")  # else Markdown runs the lines together
    for tag, text in [*texts, (f"{name}/summary", markdown)]:
        if text:
            _each(writers, "text", tag, text, step)


def _text_of(finding: Finding) -> str:
    return f"**{finding.detector}**, epoch {finding.epoch}, step {finding.global_step}\n\n{finding.message}"


def publish_scalars(writers: Sequence[Writer], scalars: Mapping[str, float], step: int) -> None:
    """Writes one snapshot's scalars."""
    _each(writers, "scalars", scalars, step)


def publish(
    writers: Sequence[Writer],
    shown: ShownImages,
    snapshot: Snapshot,
    findings: Sequence[Finding],
    frames: Sequence[Frame],
    name: str,
) -> None:
    """Writes one snapshot: overlays of each layer, the film strip, and the findings' texts."""
    if not writers:
        return
    step = snapshot.global_step
    publish_texts(writers, findings, "", name, step)
    if snapshot.error is not None or not len(shown.rows):
        return
    for layer in shown.layers:
        _each(writers, "image", f"{name}/{layer}/overlays", _overlays(shown, snapshot, layer), step)
    strip = film_sheet(frames, shown.images, f"{name}, {shown.layers[0]}")
    _each(writers, "image", f"{name}/{shown.layers[0]}/film_strip", strip, step)


def _overlays(shown: ShownImages, snapshot: Snapshot, layer: str) -> Tensor:
    rows = shown.rows
    right = (snapshot.predicted == snapshot.labels)[rows]
    others = snapshot.predicted_maps[layer][rows].masked_fill(right[:, None, None], math.nan)
    moment = "start" if snapshot.epoch < 0 else f"epoch {snapshot.epoch}"
    mass = snapshot.scalars.get(key_of(layer, "relevance_mass_accuracy", shown.layers))
    inside = "" if mass is None else f", {mass:.0%} of the mass inside the regions"
    return overlay_sheet(
        shown.images,
        snapshot.maps[layer][rows],
        snapshot.predicted[rows],
        snapshot.probability[rows],
        right if shown.images.labels is not None else None,
        others,
        title=f"{moment}, step {snapshot.global_step}, {layer}{inside}",
        target=shown.target,
    )


def _each(writers: Sequence[Writer], what: str, *args: Any) -> None:
    """Hands the same to every writer; one that raises keeps none of the others from theirs."""
    errors: list[Exception] = []
    for writer in writers:
        try:
            getattr(writer, what)(*args)
        except Exception as error:
            errors.append(error)
    if errors:
        raise errors[0]
