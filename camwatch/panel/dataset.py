"""What a data set tells about its samples without reading them: labels, names, ids, normalization."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils.data import ConcatDataset, Subset, TensorDataset

from camwatch.errors import PanelError
from camwatch.isolation import isolate_rng
from camwatch.panel.normalization import walk

# At most so many samples are read to learn their labels.
READ_AT_MOST = 512


def choose(dataset: Any, n: int, seed: int = 0, label: Callable[[Any], Any] | None = None) -> list[int]:
    """Chooses samples, the same every time, balanced over the classes when the labels can be had cheaply.

    Labels come from the attributes ``targets``, ``labels`` or ``_labels``, through ``Subset``,
    ``ConcatDataset``, ``TensorDataset`` and wrappers with a ``dataset``. Otherwise at most 512 samples are
    read, and the choice is made among them. Samples with a negative label are left out.

    Args:
        dataset: With ``len`` and integer indices.
        n: How many; all if there are fewer.
        seed: Chooses the samples.
        label: Finds the label of a sample that was read; by default its second element.

    Returns:
        Indices, the classes taking turns, so that the first few are balanced too.

    Example:
        >>> data = TensorDataset(torch.rand(100, 1), torch.arange(100) // 90)
        >>> sorted(data.tensors[1][choose(data, 8)].tolist())
        [0, 0, 0, 0, 1, 1, 1, 1]
    """
    generator = torch.Generator().manual_seed(seed)
    order: list[int] = torch.randperm(len(dataset), generator=generator).tolist()
    labels = per_sample(dataset, _labels)
    known = dict(enumerate(labels)) if labels is not None else None
    if known is None and n < min(len(order), READ_AT_MOST):
        known = _read_labels(dataset, order[:READ_AT_MOST], label or _second)
    groups: dict[int, list[int]] = {}
    for i in order:
        group = 0 if known is None else known.get(i, -1)
        if group >= 0:
            groups.setdefault(group, []).append(i)
    turns = sorted((turn, k, i) for k, group in enumerate(groups.values()) for turn, i in enumerate(group))
    return [i for _, _, i in turns[:n]]


def _second(sample: Any) -> Any:
    return sample[1]


def _read_labels(dataset: Any, order: list[int], label: Callable[[Any], Any]) -> dict[int, int] | None:
    known = {}
    with isolate_rng():
        for i in order:
            try:
                known[i] = int(label(dataset[i]))
            except OSError:  # a file that cannot be read is not chosen
                continue
            except (PanelError, TypeError, ValueError, RuntimeError, LookupError):
                return None  # no label to be had: the samples are not balanced
    return known or None


def per_sample(dataset: Any, read: Callable[[Any], Sequence[Any] | None]) -> Sequence[Any] | None:
    """Reads one value per sample off a data set's attributes, through the usual wrappers."""
    if isinstance(dataset, Subset):
        inner = per_sample(dataset.dataset, read)
        return None if inner is None else [inner[i] for i in dataset.indices]
    if isinstance(dataset, ConcatDataset):
        parts = [per_sample(part, read) for part in dataset.datasets]
        return None if any(part is None for part in parts) else [v for part in parts for v in part or ()]
    found = read(dataset)
    if found is None and hasattr(dataset, "dataset"):
        found = per_sample(dataset.dataset, read)
    return found if found is not None and len(found) == len(dataset) else None


def _labels(dataset: Any) -> list[int] | None:
    tensors = dataset.tensors[1:2] if isinstance(dataset, TensorDataset) else ()
    for given in (*tensors, *(getattr(dataset, name, None) for name in ("targets", "labels", "_labels"))):
        try:
            labels = torch.as_tensor(given)
        except (TypeError, ValueError, RuntimeError):
            continue
        if labels.ndim == 1 and not labels.is_floating_point():
            return [int(v) for v in labels.tolist()]
    return None


def sample_ids(dataset: Any) -> Sequence[str]:
    """Returns one id per sample: its path where the data set tells it, else its index."""
    found = per_sample(dataset, _paths)
    return [str(i) for i in range(len(dataset))] if found is None else found


def _paths(dataset: Any) -> list[str] | None:
    for name in ("samples", "imgs", "images", "_images"):
        given = getattr(dataset, name, None)
        if isinstance(given, (list, tuple)) and given:
            paths = [item[0] if isinstance(item, (list, tuple)) else item for item in given]
            if all(isinstance(path, str) or hasattr(path, "__fspath__") for path in paths):
                return [str(path) for path in paths]
    return None


def class_names(dataset: Any) -> list[str] | None:
    """Returns the class names that a data set carries as ``classes``, through the usual wrappers."""
    for part in walk(dataset, ("dataset", "datasets")):
        names = getattr(part, "classes", None)
        if isinstance(names, (list, tuple)) and names and all(isinstance(name, str) for name in names):
            return list(names)
    return None
