"""Plain files: Lightning's CSVLogger for scalars, PNG and Markdown files beside its table."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zlib import crc32

from torch import Tensor

from camwatch.imaging import to_png
from camwatch.watch.archive import write_atomically


class CSVWriter:
    """Writes scalars to Lightning's ``CSVLogger``, images and texts below ``images`` and ``texts`` beside it."""

    def __init__(self, logger: Any) -> None:
        self.logger = logger

    def image(self, tag: str, picture: Tensor, step: int) -> None:
        """Writes a picture (3, H, W) uint8."""
        write_atomically(self._folder("images") / f"{file_name(tag, step)}.png", to_png(picture))

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Writes numbers by tag."""
        self.logger.log_metrics(dict(values), step=step)

    def text(self, tag: str, text: str, step: int) -> None:
        """Writes a text in Markdown."""
        write_atomically(self._folder("texts") / f"{file_name(tag, step, text)}.md", text.encode())

    def _folder(self, name: str) -> Path:
        return Path(self.logger.log_dir) / name


def file_name(tag: str, step: int, content: str = "") -> str:
    """Returns where a tag's file of a step lies; texts of one step are told apart by their content.

    Example:
        >>> file_name("camwatch/layer 4/../overlays", 12)
        'camwatch/layer_4/overlays/step_00000012'
    """
    parts = [re.sub(r"[^\w.\-]+", "_", part) for part in tag.split("/")]
    folder = "/".join(part for part in parts if part.strip("."))
    return f"{folder}/step_{step:08d}" + (f"_{crc32(content.encode()):08x}" if content else "")
