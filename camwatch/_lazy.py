"""What the faces of packages are made of: a table of names, of which nothing is loaded before it is used."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any


def attach(package: str, names: Mapping[str, str]) -> tuple[list[str], Callable[[str], Any], Callable[[], list[str]]]:
    """Returns ``__all__``, ``__getattr__`` and ``__dir__`` of a package whose names lie in its modules.

    Args:
        package: Its ``__name__``.
        names: Public name -> the module that defines it, below the package.

    Example:
        >>> everything, get, listed = attach("camwatch", {"Panel": "panel.panel"})
        >>> everything, get("Panel").__name__, listed()
        (['Panel'], 'Panel', ['Panel'])
    """

    def get(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{package}.{names[name]}"), name)

    return sorted(names), get, lambda: sorted(names)
