"""MLflow, through Lightning's MLFlowLogger."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from camwatch.watch.writers.csv import file_name


class MLFlowWriter:
    """Writes to Lightning's ``MLFlowLogger``; texts as artifacts."""

    def __init__(self, logger: Any) -> None:
        self.logger = logger
        _ = logger.experiment  # made here, not by two threads at once

    def image(self, tag: str, picture: Tensor, step: int) -> None:
        """Writes a picture (3, H, W) uint8."""
        pixels = picture.permute(1, 2, 0).cpu().numpy()
        self.logger.experiment.log_image(self.logger.run_id, pixels, key=tag, step=step)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Writes numbers by tag."""
        self.logger.log_metrics(dict(values), step=step)

    def text(self, tag: str, text: str, step: int) -> None:
        """Writes a text in Markdown."""
        self.logger.experiment.log_text(self.logger.run_id, text, f"{file_name(tag, step, text)}.md")
