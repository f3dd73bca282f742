"""Samples that cannot be read: left out of the panel, and named."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch.utils.data import Dataset

from camwatch.errors import CamwatchError, CamwatchWarning, PanelError


class Readable(Dataset[Any]):
    """Some samples of a data set; one whose reading raises is noted, and ``None`` stands for it.

    Attributes:
        failed: Index in the data set -> what its reading raised.

    Example:
        >>> chosen = Readable(["a"], [0, 7])
        >>> [chosen[0], chosen[1]], list(chosen.failed)
        (['a', None], [7])
    """

    def __init__(self, dataset: Any, indices: Sequence[int]) -> None:
        self.dataset, self.indices = dataset, indices
        self.failed: dict[int, Exception] = {}

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> Any:
        index = self.indices[position]
        try:
            return self.dataset[index]
        except CamwatchError:
            raise
        except Exception as error:  # whatever a data set raises for a file that it cannot read
            self.failed[index] = error
            if len(self.failed) == len(self.indices):
                raise PanelError(
                    f"none of {len(self.indices)} samples of the data set can be read; sample {index}: "
                    f"{type(error).__name__}: {error}"
                ) from error
            return None


def without_failures(collate: Callable[[list[Any]], Any]) -> Callable[[list[Any]], Any]:
    """Returns a ``collate_fn`` that passes over samples that are None; None where all of them are.

    Example:
        >>> without_failures(list)([1, None, 2]), without_failures(list)([None])
        ([1, 2], None)
    """

    def collate_the_rest(samples: list[Any]) -> Any:
        read = [sample for sample in samples if sample is not None]
        return collate(read) if read else None

    return collate_the_rest


def warn_of_unreadable(failed: Mapping[int, Exception]) -> None:
    """Names the samples that were left out, if there are any."""
    if failed:
        index, error = next(iter(failed.items()))
        listed = ", ".join(str(i) for i in list(failed)[:10]) + (", …" if len(failed) > 10 else "")
        warnings.warn(
            f"{len(failed)} of the chosen samples cannot be read and are left out of the panel: {listed}. "
            f"Sample {index}: {type(error).__name__}: {error}",
            CamwatchWarning,
            stacklevel=2,
        )
