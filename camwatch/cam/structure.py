"""Finding one's way in models and in what they return: wrappers, names, nested outputs."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

from torch import Tensor, nn

from camwatch.errors import LayerError, unknown


def unwrap(model: nn.Module) -> nn.Module:
    """Returns the module inside wrappers that change how, not what, it computes (compile, DP, DDP)."""
    while True:
        if hasattr(model, "_orig_mod"):
            model = cast(nn.Module, model._orig_mod)
        elif isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            model = model.module
        else:
            return model


def named_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yields every module inside a model once, with its name; Keras layers too, which torch does not register.

    Example:
        >>> [name for name, _ in named_modules(nn.Sequential(nn.Sequential(nn.ReLU())))]
        ['0', '0.0']
    """
    seen = {id(model)}

    def inside(prefix: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
        layers = getattr(module, "layers", None) if hasattr(module, "_flatten_layers") else None
        for name, child in [(layer.name, layer) for layer in layers] if layers else module._modules.items():
            if child is not None and id(child) not in seen:
                seen.add(id(child))
                yield prefix + name, child
                yield from inside(f"{prefix}{name}.", child)

    yield from inside("", model)


def channels_last(module: nn.Module) -> bool:
    """Whether a module's output has its channels last, by its kind."""
    return isinstance(module, (nn.Linear, nn.LayerNorm)) or getattr(module, "data_format", None) == "channels_last"


def find_module(model: nn.Module, layer: str | nn.Module) -> tuple[str, nn.Module]:
    """Returns a layer's name and module.

    Raises:
        LayerError: No such layer; the message offers near names.

    Example:
        >>> find_module(nn.Sequential(nn.ReLU()), "0")
        ('0', ReLU())
    """
    model = unwrap(model)
    modules = dict(named_modules(model))
    if isinstance(layer, str):
        if layer not in modules:
            raise LayerError(unknown(f"layer of {type(model).__name__}", layer, modules))
        return layer, modules[layer]
    if not isinstance(layer, nn.Module):
        raise LayerError(f"a layer is a name or a module of the model, got {type(layer).__name__}")
    layer = unwrap(layer)
    for name, module in modules.items():
        if unwrap(module) is layer:
            return name, module
    raise LayerError(f"the layer {type(layer).__name__} is not part of the model {type(model).__name__}")


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


def replace(output: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Returns the same nested structure with every tensor changed; what is not a tensor stays.

    Example:
        >>> import torch
        >>> replace({"a": (torch.ones(1), None)}, lambda t: t + 1)
        {'a': (tensor([2.]), None)}
    """
    if isinstance(output, Tensor):
        return change(output)
    if isinstance(output, Mapping):
        mapping: Any = copy.copy(output)
        for key, value in output.items():
            mapping[key] = replace(value, change)
        return mapping
    if isinstance(output, (tuple, list)):
        values = [replace(value, change) for value in output]
        if hasattr(output, "_fields"):
            return type(output)(*values)
        return type(output)(values)
    if dataclasses.is_dataclass(output) and not isinstance(output, type):
        changed = copy.copy(output)
        for field in dataclasses.fields(output):
            object.__setattr__(changed, field.name, replace(getattr(output, field.name), change))
        return changed
    return output
