"""camwatch: see where your image model looks while it trains, and be told when it cheats."""

from camwatch._lazy import attach

__version__ = "0.2.0"

__all__, __getattr__, __dir__ = attach(
    __name__,
    {
        "CAMMonitor": "adapters.lightning.callback",
        "Explanation": "cam.explanation",
        "Finding": "records",
        "Panel": "panel.panel",
        "Regions": "regions.regions",
        "Snapshot": "records",
        "Watcher": "watch.watcher",
        "audit": "adapters.lightning.audit",
        "explain": "cam.engine",
        "layers": "cam.model.layers",
        "load_archive": "archive.tensors",
        "methods": "cam.methods.registry",
        "replay": "watch.replay",
    },
)
