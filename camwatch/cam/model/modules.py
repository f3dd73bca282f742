"""Finding one's way in models: wrappers, names, modules."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

from torch import nn

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
