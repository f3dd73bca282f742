"""camwatch: see where your image model looks while it trains, and be told when it cheats.

``CAMMonitor`` watches a Lightning training, ``Watcher`` any other loop (``camwatch.adapters.transformers`` has the
callback for ``transformers.Trainer``); a ``Panel`` is what they watch, ``camwatch.regions.readers`` read its regions
from annotation files. ``load_archive`` and ``replay`` look at a run again. ``audit`` measures a whole data set;
``explain`` explains one batch, ``layers`` and ``methods`` say with what. ``camwatch.metrics`` has the numbers about
maps, ``camwatch.cam`` further targets (``Contrast``, ``Similarity``, ``BoxScores``) and ``factorize``. ``camwatch
--help`` in a shell lists the commands.
"""

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
