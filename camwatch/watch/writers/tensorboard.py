"""TensorBoard, through Lightning's logger or a SummaryWriter."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from camwatch.pictures.encoding import to_jpeg


class PlainTensorBoardWriter:
    """Writes to a ``torch.utils.tensorboard.SummaryWriter``."""

    def __init__(self, summary_writer: Any) -> None:
        self.summary_writer = summary_writer

    def image(self, tag: str, picture: Tensor, step: int) -> None:
        """Writes a picture (3, H, W) uint8."""
        add_image(self.summary_writer, tag, picture, step)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Writes numbers by tag."""
        for tag, value in values.items():
            self.summary_writer.add_scalar(tag, value, step)

    def text(self, tag: str, text: str, step: int) -> None:
        """Writes a text in Markdown."""
        self.summary_writer.add_text(tag, text, step)
        self.summary_writer.flush()

    def close(self) -> None:
        """Writes what is buffered and closes the file; a later call opens another."""
        self.summary_writer.close()


class TensorBoardWriter:
    """Writes to Lightning's ``TensorBoardLogger``."""

    def __init__(self, logger: Any) -> None:
        self.logger = logger
        _ = logger.experiment  # made here, not by two threads at once

    def image(self, tag: str, picture: Tensor, step: int) -> None:
        """Writes a picture (3, H, W) uint8."""
        add_image(self.logger.experiment, tag, picture, step)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Writes numbers by tag."""
        self.logger.log_metrics(dict(values), step=step)

    def text(self, tag: str, text: str, step: int) -> None:
        """Writes a text in Markdown."""
        self.logger.experiment.add_text(tag, text, step)
        self.logger.experiment.flush()


def summary_writer(directory: str | Path) -> PlainTensorBoardWriter:
    """Returns a writer of TensorBoard files into a directory.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     writer = summary_writer(folder)
        ...     writer.scalars({"camwatch/alarm": 0.0}, step=0)
        ...     writer.close()
    """
    from torch.utils.tensorboard import SummaryWriter

    return PlainTensorBoardWriter(SummaryWriter(str(directory)))


def add_image(summary_writer: Any, tag: str, picture: Tensor, step: int) -> None:
    """Adds a picture that was encoded here: ``add_image`` would encode it ten times slower.

    As JPEG: TensorBoard computes the checksum of a record byte by byte in Python, which for a PNG takes longer
    than all the rest of the snapshot's picture. The archive keeps the maps as they are.
    """
    from tensorboard.compat.proto.summary_pb2 import Summary  # type: ignore[import-untyped]

    image = Summary.Image(
        height=picture.shape[1], width=picture.shape[2], colorspace=3, encoded_image_string=to_jpeg(picture)
    )
    summary_writer._get_file_writer().add_summary(Summary(value=[Summary.Value(tag=tag, image=image)]), step)
    summary_writer.flush()
