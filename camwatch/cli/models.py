"""Models by name, and their weights: what the command line is given."""

from __future__ import annotations

import importlib
import inspect
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from camwatch.errors import CamwatchError, InputError, unknown

# What loading a file, and building a model from what it says, fails with when they do not belong together.
UNFIT = (AttributeError, EOFError, KeyError, OSError, RuntimeError, TypeError, ValueError, pickle.UnpicklingError)


def load_object(path: str, what: str) -> Any:
    """Imports ``package.module.Name`` or ``package.module:Name``.

    Raises:
        InputError: There is no such module, or no such name in it.

    Example:
        >>> load_object("torch.nn.ReLU", "model")
        <class 'torch.nn.modules.activation.ReLU'>
    """
    module, _, name = path.replace(":", ".").rpartition(".")
    if not module or not name:
        raise InputError(f"{what} {path!r}: expected an import path such as package.module.Class")
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise
        raise InputError(f"{what} {path!r}: there is no module {error.name!r} here") from None
    if not hasattr(found, name):
        names = [key for key, value in vars(found).items() if isinstance(value, type)]
        raise InputError(f"{what} {path!r}: " + unknown(f"name in {module}", name, names))
    return getattr(found, name)


def load_model(
    name: str, weights: str = "default", arguments: Mapping[str, Any] | None = None, trust: bool = False
) -> tuple[nn.Module, Any]:
    """Builds a model and gives it its weights.

    Args:
        name: A torchvision model (``resnet50``), a timm model (``timm/resnet50``), or the import path of a
            class or function (``package.module.Net``).
        weights: "default", the library's pretrained ones; "none", random ones; or a file: a checkpoint of
            Lightning or a state dict.
        arguments: Of the class or function.
        trust: Whether the file may hold pickled Python objects, which can run code.

    Returns:
        The model in evaluation mode, and torchvision's weights entry, which knows the transforms, or None.

    Raises:
        InputError: No such model or file, or they do not fit.
        CamwatchError: The weights cannot be downloaded.
    """
    arguments = dict(arguments or {})
    if weights not in ("default", "none") and not Path(weights).is_file():
        raise InputError(f"weights {weights!r}: there is no such file; valid are a file, 'default' and 'none'")
    entry: Any = None
    if name.startswith("timm/"):
        model = _timm(name.removeprefix("timm/"), weights == "default", arguments)
    elif "." in name or ":" in name:
        found = load_object(name, "model")
        if hasattr(found, "load_from_checkpoint") and Path(weights).is_file():
            return _from_checkpoint(found, weights, arguments, trust).eval(), None
        if weights == "default":
            raise InputError(f"model {name!r} has no weights of its own: give a file, or 'none' for random ones")
        model = _built(found, name, arguments)
    else:
        model, entry = _torchvision(name, weights == "default", arguments)
    if Path(weights).is_file():
        _fill(model, weights, trust)
    return model.eval(), entry


def _torchvision(name: str, pretrained: bool, arguments: dict[str, Any]) -> tuple[nn.Module, Any]:
    from torchvision import models

    if name not in models.list_models():
        raise InputError(unknown("model", name, models.list_models()))
    entry = next(iter(models.get_model_weights(name)), None)
    entry = getattr(models.get_model_weights(name), "DEFAULT", entry)

    def build(**options: Any) -> Any:
        return models.get_model(name, weights=entry if pretrained else None, **options)

    if pretrained:
        return _downloaded(build, name, arguments), entry
    if "init_weights" in inspect.signature(models.get_model_builder(name)).parameters:
        arguments = {"init_weights": True, **arguments}
    without_backbone = {"weights_backbone": None} if name in models.list_models(module=models.segmentation) else {}
    return _built(build, name, {**without_backbone, **arguments}), entry


def _timm(name: str, pretrained: bool, arguments: dict[str, Any]) -> nn.Module:
    if importlib.util.find_spec("timm") is None:
        raise InputError(f"model 'timm/{name}' needs timm: pip install timm")
    timm = importlib.import_module("timm")
    if not timm.is_model(name):
        raise InputError(unknown("timm model", name, timm.list_models()))
    build = timm.create_model
    if pretrained:
        return _downloaded(build, name, {"model_name": name, "pretrained": True, **arguments})
    return _built(build, name, {"model_name": name, **arguments})


def _downloaded(build: Any, name: str, arguments: dict[str, Any]) -> nn.Module:
    try:
        return _built(build, name, arguments)
    except OSError as error:  # urllib's and requests' errors are such
        raise CamwatchError(
            f"the weights of {name} cannot be downloaded ({error}); give a file, or 'none' for random weights"
        ) from error


def _built(build: Any, name: str, arguments: dict[str, Any]) -> nn.Module:
    try:
        model = build(**arguments)
    except TypeError as error:
        raise InputError(f"model {name!r} cannot be built with the arguments {arguments}: {error}") from error
    if not isinstance(model, nn.Module):
        raise InputError(f"{name!r} gives a {type(model).__name__}, not a torch.nn.Module")
    return model


def _from_checkpoint(kind: Any, path: str, arguments: dict[str, Any], trust: bool) -> nn.Module:
    options: dict[str, Any] = {"map_location": "cpu", **arguments}
    if trust and "weights_only" in inspect.signature(kind.load_from_checkpoint).parameters:
        options["weights_only"] = False
    try:
        model: nn.Module = kind.load_from_checkpoint(path, **options)
        return model
    except UNFIT as error:
        raise InputError(_unfit(path, kind.__name__, error)) from error


def _fill(model: nn.Module, path: str, trust: bool) -> None:
    try:
        content = torch.load(path, map_location="cpu", weights_only=not trust)
        state = content.get("state_dict", content)
        if not set(state) & set(model.state_dict()):  # a module around this one was saved
            prefixes = {key.split(".")[0] for key in state}
            if len(prefixes) == 1:
                state = {key.partition(".")[2]: value for key, value in state.items()}
        model.load_state_dict(state)
    except UNFIT as error:
        raise InputError(_unfit(path, type(model).__name__, error)) from error


def _unfit(path: str, model: str, error: Exception) -> str:
    reason = " ".join(f"{error if str(error) else type(error).__name__}".split())
    reason = reason if len(reason) <= 400 else f"{reason[:400]} …"
    if isinstance(error, pickle.UnpicklingError):
        hint = "; if you trust the file, --trust loads the Python objects in it"
    elif isinstance(error, KeyError):
        hint = " is missing: a LightningModule takes a checkpoint of Lightning"
    elif isinstance(error, TypeError) or "size mismatch" in reason:
        hint = "; the model's arguments, such as its number of classes, are given by --model-args"
    else:
        hint = ""
    return f"{path} does not fit {model}: {reason}{hint}"
