"""Plain files: Lightning's CSVLogger for scalars, PNG and Markdown files beside its table."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from camwatch.files import file_name, write_whole
from camwatch.pictures.encoding import to_png


class CSVWriter:
    """Writes scalars to Lightning's ``CSVLogger``, images and texts below ``images`` and ``texts`` beside it."""

    def __init__(self, logger: Any) -> None:
        self.logger = logger

    def image(self, tag: str, picture: Tensor, step: int) -> None:
        """Writes a picture (3, H, W) uint8."""
        write_whole(self._folder("images") / f"{file_name(tag, step)}.png", to_png(picture))

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Writes numbers by tag."""
        self.logger.log_metrics(dict(values), step=step)

    def text(self, tag: str, text: str, step: int) -> None:
        """Writes a text in Markdown."""
        write_whole(self._folder("texts") / f"{file_name(tag, step, text)}.md", text.encode())

    def _folder(self, name: str) -> Path:
        return Path(self.logger.log_dir) / name
