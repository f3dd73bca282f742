"""An archive with tensors, for whoever goes on computing."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch

from camwatch.archive.reading import ArchivedRun, Snapshots, read_archive


def load_archive(path: str | Path) -> ArchivedRun:
    """Reads a run's archive: what ``run.json`` says, the panel, the snapshots and what was found, with CPU tensors.

    A damaged file is skipped, with one warning that names all such files.

    Args:
        path: The archive's folder, or any folder with exactly one archive below it, such as a log directory.

    Returns:
        The run; ``Panel.from_archive`` makes its panel, ``replay`` judges it again.

    Raises:
        InputError: There is no archive, or there are several; they are listed.
    """
    found = read_archive(path)
    assert isinstance(found.snapshots, Snapshots)
    return dataclasses.replace(found, panel=_tensors(found.panel), snapshots=found.snapshots.with_arrays(_tensor))


def _tensors(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _tensors(held) for key, held in value.items()}
    return _tensor(value) if isinstance(value, np.ndarray) else value


def _tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))
