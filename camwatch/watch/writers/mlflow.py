"""MLflow, through Lightning's MLFlowLogger."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor

from camwatch.files import file_name


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
        self.logger.log_metrics({metric_name(tag, values): value for tag, value in values.items()}, step=step)

    def text(self, tag: str, text: str, step: int) -> None:
        """Writes a text in Markdown."""
        self.logger.experiment.log_text(self.logger.run_id, text, f"{file_name(tag, step, text)}.md")


def metric_name(tag: str, tags: Collection[str]) -> str:
    """Returns a tag's name for a store that keeps each metric in a file: none may be another's folder.

    Example:
        >>> metric_name("camwatch/pointing_game/right", ["camwatch/pointing_game", "camwatch/pointing_game/right"])
        'camwatch/pointing_game_right'
    """
    for other in tags:
        if tag.startswith(f"{other}/"):
            return f"{other}_{tag[len(other) + 1 :].replace('/', '_')}"
    return tag
