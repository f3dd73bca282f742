"""Where pictures, scalars and texts go: one small protocol, one module per backend."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from torch import Tensor


@runtime_checkable
class Writer(Protocol):
    """What a backend can do. Any object with these three methods is one; ten lines make a new one.

    ``scalars`` is called on the training thread, where loggers write their own; ``image`` and ``text`` on the
    writer thread. An exception is reported once as a warning and never ends the run.

    Example:
        >>> class Printer:
        ...     def image(self, tag, picture, step):
        ...         print(step, tag, tuple(picture.shape))
        ...     def scalars(self, values, step):
        ...         print(step, values)
        ...     def text(self, tag, text, step):
        ...         print(step, tag, text)
        >>> isinstance(Printer(), Writer)
        True
    """

    def image(self, tag: str, picture: Tensor, step: int) -> None:
        """Writes a picture (3, H, W) uint8."""

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Writes numbers by tag."""

    def text(self, tag: str, text: str, step: int) -> None:
        """Writes a text in Markdown; several may follow each other at one step."""


# Class of a logger, by its name in any namespace of Lightning, -> the module and class of its writer.
_WRITERS = {
    "CSVLogger": ("csv", "CSVWriter"),
    "MLFlowLogger": ("mlflow", "MLFlowWriter"),
    "SummaryWriter": ("tensorboard", "PlainTensorBoardWriter"),
    "TensorBoardLogger": ("tensorboard", "TensorBoardWriter"),
    "WandbLogger": ("wandb", "WandbWriter"),
}


class ScalarWriter:
    """Scalars only, through ``log_metrics``: for loggers that are not known here."""

    def __init__(self, logger: Any) -> None:
        self.logger = logger

    def image(self, tag: str, picture: Tensor, step: int) -> None:
        """Writes nothing."""

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Writes numbers by tag."""
        self.logger.log_metrics(dict(values), step=step)

    def text(self, tag: str, text: str, step: int) -> None:
        """Writes nothing."""


def for_logger(logger: Any) -> Writer | None:
    """Returns the writer for a logger; None where nothing can be written to it.

    Args:
        logger: A ``Writer``, which is returned as it is; a Lightning logger, from ``lightning.pytorch``,
            ``lightning.fabric`` or ``pytorch_lightning``, or a subclass of one; or a TensorBoard
            ``SummaryWriter``. Of loggers not known here, those with ``log_metrics`` get the scalars.

    Example:
        >>> from pytorch_lightning.loggers import CSVLogger
        >>> type(for_logger(CSVLogger("logs"))).__name__
        'CSVWriter'
    """
    ancestors = [ancestor.__name__ for ancestor in type(logger).__mro__]
    if "DummyLogger" in ancestors:  # Lightning's stand-in under fast_dev_run, which has any method
        return None
    for name in ancestors:
        if name in _WRITERS:
            module, writer = _WRITERS[name]
            made: Writer = getattr(importlib.import_module(f"camwatch.watch.writers.{module}"), writer)(logger)
            return made
    if isinstance(logger, Writer):
        return logger
    return ScalarWriter(logger) if callable(getattr(logger, "log_metrics", None)) else None
