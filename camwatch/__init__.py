"""camwatch: see where your image model looks while it trains, and be told when it cheats."""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

# Public name -> the module that defines it. Nothing is imported before it is used.
_EXPORTS = {
    "Alarm": "camwatch.records",
    "CAMMonitor": "camwatch.adapters.lightning",
    "Explanation": "camwatch.cam.explanation",
    "Panel": "camwatch.panel",
    "Regions": "camwatch.regions",
    "Snapshot": "camwatch.records",
    "Watcher": "camwatch.watch.watcher",
    "audit": "camwatch.auditing.engine",
    "explain": "camwatch.cam.engine",
    "layers": "camwatch.cam.engine",
    "load_archive": "camwatch.watch.archive",
    "methods": "camwatch.cam.engine",
    "replay": "camwatch.drift",
}

__all__ = sorted(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(importlib.import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module 'camwatch' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_EXPORTS])
