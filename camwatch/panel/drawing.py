"""Drawing the panel from the data that a model is validated on."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset

from camwatch.errors import PanelError
from camwatch.isolation import isolate_rng
from camwatch.panel.batch import describe, split_sample
from camwatch.panel.dataset import choose, class_names, sample_ids
from camwatch.panel.normalization import find_normalization
from camwatch.panel.panel import Panel
from camwatch.panel.readable import Readable, warn_of_unreadable, without_failures
from camwatch.regions.annotations import drop_empty, per_image_regions


def draw(
    loader: Any,
    n: int,
    unpack: Callable[[Any], Any] | None = None,
    transfer: Callable[[Any], Any] | None = None,
    seed: int = 0,
) -> Panel:
    """Draws a panel from what a data loader loads, without touching the loader.

    The samples are read in this process by a loader of its own with the same ``collate_fn``; the random
    states are set for the reading and restored after it, so that the same panel is drawn every time and
    nothing else changes. Samples that cannot be read are left out, with a warning. A data set with indices
    gives the samples that ``choose`` chooses; an iterable one, or one that yields whole batches, the first.

    Args:
        loader: A ``DataLoader``, or any iterable of batches.
        n: How many images; all if there are fewer.
        unpack: Makes (images, labels[, regions]) of a batch of another shape than ``split_sample`` knows.
        transfer: Applied to each batch first, as the model's own batch-transfer hooks would be.
        seed: Chooses the samples.

    Raises:
        PanelError: There is no sample, none can be read, they cannot be collated, or no images are found in a batch.
        RegionError: A region does not fit its image.

    Example:
        >>> from torch.utils.data import TensorDataset
        >>> data = TensorDataset(torch.rand(10, 3, 8, 8), torch.arange(10) % 2)
        >>> draw(DataLoader(data, batch_size=4), 6)
        Panel(6 images of 3 x 8 x 8, 2 classes)
    """
    if n < 1:
        raise PanelError(f"expected a panel of at least 1 image, got {n}")
    dataset = getattr(loader, "dataset", None)
    if not isinstance(loader, DataLoader) or dataset is None:
        return gather(loader, n, unpack, transfer)
    collate = _explained(loader.collate_fn)
    indexed = not isinstance(dataset, IterableDataset) and hasattr(dataset, "__len__")
    if indexed and len(dataset) == 0:
        raise PanelError(f"no panel can be drawn from an empty data set, {type(dataset).__name__} of length 0")
    if not indexed or loader.batch_sampler is None:
        own = DataLoader(dataset, loader.batch_size, collate_fn=collate)
        return gather(own, n, unpack, transfer, dataset)

    def label(sample: Any) -> Any:
        return split_sample(collate([sample]), unpack)[1]

    indices = choose(dataset, n, seed, label)
    ids = sample_ids(dataset)
    chosen = Readable(dataset, indices)
    own = DataLoader(chosen, loader.batch_size or min(n, 32), collate_fn=without_failures(collate))
    panel = gather(own, n, unpack, transfer, dataset, lambda: [ids[i] for i in indices if i not in chosen.failed], seed)
    warn_of_unreadable(chosen.failed)
    return panel


def gather(
    batches: Iterable[Any],
    n: int,
    unpack: Callable[[Any], Any] | None = None,
    transfer: Callable[[Any], Any] | None = None,
    dataset: Any = None,
    ids: Callable[[], list[str]] | None = None,
    seed: int = 0,
) -> Panel:
    """Makes a panel of the first n images in batches.

    Args:
        batches: As a loader yields them, None for an empty one; no more than needed are read.
        n: How many images; all if there are fewer.
        unpack: As in ``draw``.
        transfer: As in ``draw``.
        dataset: Where class names and the normalization are looked for.
        ids: Returns one per image, in order; called when all are read.
        seed: Of the random states while reading, which are restored afterwards.

    Raises:
        PanelError: There is no batch, no images are found, or they differ in size.
        RegionError: A region does not fit its image.
    """
    images: list[torch.Tensor] = []
    labels: list[torch.Tensor] | None = []
    regions: list[Any] = []
    count = 0
    with isolate_rng(), torch.inference_mode(False):
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed a GPU that is not guarded
        for batch in batches:
            if batch is None:
                continue
            found = split_sample(batch if transfer is None else transfer(batch), unpack)
            images.append(found[0].detach().cpu())
            if images[-1].shape[1:] != images[0].shape[1:]:
                sizes = sorted({tuple(part.shape[1:]) for part in images})
                raise PanelError(f"the images of a panel must have one size, got (C, H, W) of {sizes}")
            labels = None if labels is None or found[1] is None else [*labels, found[1].detach().cpu()]
            k = len(images[-1])
            regions += [None] * k if found[2] is None else per_image_regions(found[2], k)
            count += k
            if count >= n:
                break
        if not count:
            raise PanelError("no panel can be drawn: the loader gave no batch")
        joined = torch.cat(images)[:n]
        bands, names, known = int(joined.shape[1]), class_names(dataset), find_normalization(dataset)
        classes = None if labels is None else torch.cat(labels)[:n]
        fits = names is not None and (classes is None or int(classes.max()) < len(names))
        return Panel(
            joined,
            classes,
            drop_empty(regions[:n]),
            class_names=names if fits else None,
            ids=None if ids is None else ids(),
            denormalize=known if known is not None and len(known[0]) in (1, bands) else None,
            rgb=(0, 1, min(2, max(bands - 1, 1))),
        )


def _explained(collate: Callable[[list[Any]], Any]) -> Callable[[list[Any]], Any]:
    def collate_or_explain(samples: list[Any]) -> Any:
        try:
            return collate(samples)
        except (RuntimeError, TypeError, ValueError) as error:
            first = describe(samples[0] if isinstance(samples, list) and samples else samples)
            raise PanelError(
                f"the loader's collate_fn ({getattr(collate, '__name__', type(collate).__name__)}) cannot make "
                f"a batch of samples like {first}: {error}. Images have to share one size; boxes that vary in "
                "number, or annotations missing on some images, need a collate_fn that keeps them as a list "
                "with one entry per image"
            ) from error

    return collate_or_explain
