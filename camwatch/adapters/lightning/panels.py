"""The panel, drawn from what the trainer validates on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pytorch_lightning.trainer.states import RunningStage
from torch.utils.data import IterableDataset

from camwatch.cam.model.nested import replace_tensors, tensors
from camwatch.errors import CamwatchError, PanelError
from camwatch.isolation import eval_mode, isolate_generators, isolate_rng
from camwatch.panel.drawing import draw
from camwatch.panel.panel import Panel


def draw_panel(trainer: Any, pl_module: Any, n: int, unpack: Callable[..., Any] | None) -> Panel:
    """Draws a panel from the first validation loader, through the module's transfer hooks, without a trace.

    Raises:
        PanelError: There is no validation loader, or its samples cannot be read or understood.
    """

    def transfer(batch: Any) -> Any:
        batch = pl_module._on_before_batch_transfer(trainer.precision_plugin.convert_input(batch), 0)
        return trainer.strategy.batch_to_device(batch, dataloader_idx=0)

    stage = trainer.state.stage
    trainer.state.stage = RunningStage.VALIDATING  # transfer hooks that augment ask for it
    try:
        with isolate_rng(), eval_mode(pl_module):
            loader = validation_loader(trainer)
            with isolate_generators(getattr(loader, "dataset", None), getattr(loader, "collate_fn", None)):
                return draw(loader, n, unpack, transfer)
    except CamwatchError:
        raise
    except Exception as error:  # whatever a data set raises for a file that cannot be read
        raise PanelError(
            f"the panel cannot be drawn from the validation data, {type(error).__name__}: {error}. Remove or repair "
            f"the sample, or give CAMMonitor a panel of your own, CAMMonitor(Panel(images, labels, regions=...))"
        ) from error
    finally:
        trainer.state.stage = stage


def validation_loader(trainer: Any) -> Any:
    """Returns the first validation loader, asking for it where the trainer has not loaded it yet."""
    loaders = trainer.val_dataloaders
    if loaders is None:
        source = trainer.fit_loop.epoch_loop.val_loop._data_source
        loaders = source.dataloader() if source.instance is not None and source.is_defined() else None
    found = _first(loaders)
    if found is None:
        raise PanelError(
            "no validation loader to draw the panel from: pass val_dataloaders to fit, define val_dataloader(), or "
            "give CAMMonitor a panel of your own, CAMMonitor(Panel(images, labels, regions=...))"
        )
    return found


def _first(loaders: Any) -> Any:
    while isinstance(loaders, (list, tuple, dict)):
        loaders = next(iter(loaders.values() if isinstance(loaders, dict) else loaders), None)
    return loaders


def is_iterable(trainer: Any) -> bool:
    """Whether the first validation loader's data set has no indices."""
    return isinstance(getattr(_first(trainer.val_dataloaders), "dataset", None), IterableDataset)


def length(batch: Any) -> int:
    """Returns the number of samples in a batch."""
    return next((len(t) for t in tensors(batch) if t.ndim), 1)


def copied(batch: Any) -> Any:
    """Returns a batch as it is now, on the CPU."""
    return replace_tensors(batch, lambda tensor: tensor.detach().cpu().clone())


def archived_panel(path: str) -> Panel | None:
    """Returns the panel in an archive, None where that is gone, damaged or without images."""
    try:
        return Panel.from_archive(path)
    except Exception:  # the panel is drawn again
        return None
