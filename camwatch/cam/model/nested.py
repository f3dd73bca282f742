"""Tensors in nested outputs: tuples, lists, mappings, dataclasses."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor


def join_outputs(outputs: list[Any]) -> Any:
    """Joins what the model returned for consecutive batches, tensor by tensor."""
    if isinstance(outputs[0], list) and not any(isinstance(o, Tensor) for o in outputs[0]):
        return [item for output in outputs for item in output]  # a detector's list of results per image
    streams = zip(*[list(tensors(output)) for output in outputs], strict=True)
    joined = iter([torch.cat(list(s)) if s[0].ndim else torch.stack(list(s)).mean() for s in streams])
    return replace_tensors(outputs[0], lambda _: next(joined))


def rows_of(output: Any, rows: list[int], total: int) -> Any:
    """Picks images from an output: rows of its tensors, or items of a detector's list of results."""
    if isinstance(output, list) and len(output) == total and not any(isinstance(item, Tensor) for item in output):
        return [output[row] for row in rows]
    return replace_tensors(output, lambda t: t[rows] if t.ndim and len(t) == total else t)


def tensors(output: Any) -> Iterator[Tensor]:
    """Yields the tensors in tuples, lists, mappings and dataclasses, in order."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, Mapping):
        for value in output.values():
            yield from tensors(value)
    elif isinstance(output, (tuple, list)):
        for value in output:
            yield from tensors(value)
    elif dataclasses.is_dataclass(output):
        for field in dataclasses.fields(output):
            yield from tensors(getattr(output, field.name))


def replace_tensors(output: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Returns the same nested structure with every tensor changed; what is not a tensor stays.

    Example:
        >>> import torch
        >>> replace_tensors({"a": (torch.ones(1), None)}, lambda t: t + 1)
        {'a': (tensor([2.]), None)}
    """
    if isinstance(output, Tensor):
        return change(output)
    if isinstance(output, Mapping):
        mapping: Any = copy.copy(output)
        for key, value in output.items():
            mapping[key] = replace_tensors(value, change)
        return mapping
    if isinstance(output, (tuple, list)):
        values = [replace_tensors(value, change) for value in output]
        if hasattr(output, "_fields"):
            return type(output)(*values)
        return type(output)(values)
    if dataclasses.is_dataclass(output) and not isinstance(output, type):
        changed = copy.copy(output)
        for field in dataclasses.fields(output):
            object.__setattr__(changed, field.name, replace_tensors(getattr(output, field.name), change))
        return changed
    return output
