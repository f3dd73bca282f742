"""An archive with tensors, for whoever goes on computing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from camwatch.archive.reading import ArchivedRun, read_changed


def load_archive(path: str | Path) -> ArchivedRun:
    """Reads a run's archive: what ``run.json`` says, the panel, the snapshots and what was found, with CPU tensors.

    A damaged file is skipped, with one warning that names all such files.

    ``run.snapshots`` holds the records, oldest first, with their raw maps (``run.snapshots[-1].maps["layer4"]`` is (N,
    h, w)); ``run.panel``, ``run.layers`` and ``run.findings`` what they are of and what was found.
    ``camwatch.replay(run)`` judges them again.

    Args:
        path: The archive's folder, or any folder with exactly one archive below it, such as a log directory.

    Returns:
        The run; ``Panel.from_state`` takes its ``panel``, where the images were stored.

    Raises:
        InputError: There is no archive, or there are several; they are listed.

    Example:
        >>> import tempfile
        >>> from camwatch.archive.writing import write_run, write_snapshot
        >>> from camwatch.records import Snapshot
        >>> folder, label = Path(tempfile.mkdtemp()), torch.tensor([1])
        >>> write_run(folder, {"layers": ["layer4"]}, {"labels": label})
        >>> write_snapshot(folder, Snapshot(-1, 0, 0, None, label, label, torch.tensor([0.75])))
        >>> load_archive(folder.parent / folder.name).snapshots[0].probability
        tensor([0.7500])
    """
    return read_changed(path, _tensor)


def _tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))
