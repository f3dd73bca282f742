"""A folder of photos with their regions, as a data set: what the command line audits."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from camwatch.errors import CamwatchWarning, InputError
from camwatch.panel.files import find_name, read_aligned
from camwatch.regions.readers.formats import read_regions

Sample = tuple[Tensor, int, Any]


class PhotoFolder(Dataset[Sample]):
    """Photos in one folder per class; samples are (image, label, region or None).

    Args:
        root: Holds the classes' folders, as torchvision's ``ImageFolder`` takes them.
        regions: File name -> region, as ``read_regions`` returns it; None: there are none.
        transform: Of ``torchvision.transforms.v2``: the regions go through it with their photos.

    Raises:
        InputError: There is no photo, or none of the photos has a region.
    """

    def __init__(self, root: Path, regions: Mapping[str, Any] | None, transform: Any) -> None:
        from torchvision.datasets import ImageFolder

        try:
            files = ImageFolder(str(root), allow_empty=True)
        except (FileNotFoundError, NotADirectoryError):
            raise InputError(f"{root} has no folders with photos in them; expected {root}/<class>/*.jpg") from None
        self.samples: list[tuple[str, int]] = files.samples
        self.targets: list[int] = files.targets
        self.classes: list[str] = files.classes
        self.regions, self.transform = regions, transform
        if not self.samples:
            raise InputError(f"{root} is empty: no photo was found in {', '.join(self.classes[:4])}")
        if regions is not None and not any(find_name(path, regions) for path, _ in self.samples):
            first = Path(self.samples[0][0])
            raise InputError(
                f"none of the {len(self.samples)} photos, such as {first.parent.name}/{first.name}, has a region; "
                "masks are looked for as <class>/<name>.png, boxes and COCO files by <class>/<file> or <file>"
            )

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        path, label = self.samples[index]
        name = None if self.regions is None else find_name(path, self.regions)
        entry = None if self.regions is None else [None if name is None else self.regions[name]]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CamwatchWarning)  # a region that the crop removed: "not measurable"
            images, regions = read_aligned([path], self.transform, entry)
        return images[0], label, None if regions is None else regions[0]


def collate(samples: list[Sample]) -> tuple[Tensor, Tensor, list[Any]]:
    """Makes a batch; the regions stay a list, because some photos have none."""
    images, labels, regions = zip(*samples, strict=True)
    return torch.stack(images), torch.tensor(labels), list(regions)


def open_folder(data: Path, split: str, regions: Path | None, transform: Any) -> PhotoFolder:
    """Opens ``data/<split>/<class>/*``, or ``data/<class>/*``.

    Args:
        data: The folder.
        split: The folder in it that is audited, where there is one.
        regions: See ``read_regions``; None: ``masks`` or ``boxes.csv`` beside the split, where there is one.
        transform: See ``PhotoFolder``.

    Raises:
        InputError: There is no photo, or none of the photos has a region.
    """
    root = data / split if (data / split).is_dir() else data
    beside = [data / name for name in ("masks", "boxes.csv") if root != data and (data / name).exists()]
    source = regions or next(iter(beside), None)
    return PhotoFolder(root, None if source is None else read_regions(source), transform)
