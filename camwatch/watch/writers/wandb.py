"""Weights & Biases, through Lightning's WandbLogger."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import Tensor

from camwatch.pictures.encoding import to_png


class WandbWriter:
    """Writes to Lightning's ``WandbLogger``; texts as tables."""

    def __init__(self, logger: Any) -> None:
        self.logger = logger
        _ = logger.experiment  # made here, not by two threads at once

    def image(self, tag: str, picture: Tensor, step: int) -> None:
        """Writes a picture (3, H, W) uint8."""
        with TemporaryDirectory() as folder:
            file = Path(folder) / "picture.png"
            file.write_bytes(to_png(picture))
            self.logger.log_image(key=tag, images=[str(file)], step=step)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Writes numbers by tag."""
        self.logger.log_metrics(dict(values), step=step)

    def text(self, tag: str, text: str, step: int) -> None:
        """Writes a text in Markdown."""
        self.logger.log_text(key=tag, columns=["step", "text"], data=[[step, text]], step=step)
