"""A folder of photos with their regions, as a data set: what the command line audits."""

from __future__ import annotations

import csv
import warnings
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from camwatch.errors import CamwatchWarning, InputError
from camwatch.panel.files import read_aligned

Sample = tuple[Tensor, int, Any]


class MaskFiles:
    """A folder of masks: photo -> mask."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def file(self, photo: Path) -> Path | None:
        names = (f"{photo.parent.name}/{photo.stem}.png", f"{photo.stem}.png")
        return next((path for name in names if (path := self.folder / name).exists()), None)

    def __call__(self, photo: Path) -> Tensor | None:
        from PIL import Image
        from torchvision.transforms.v2.functional import pil_to_tensor

        path = self.file(photo)
        if path is None:
            return None
        with Image.open(path) as mask:
            found: Tensor = pil_to_tensor(mask.convert("L"))[0] > 0
        return found if bool(found.any()) else None


class NamedRegions:
    """Regions by file name: photo -> region."""

    def __init__(self, regions: Mapping[str, Any]) -> None:
        self.regions = regions

    def file(self, photo: Path) -> str | None:
        names = (f"{photo.parent.name}/{photo.name}", photo.name, photo.stem)
        return next((name for name in names if name in self.regions), None)

    def __call__(self, photo: Path) -> Any:
        name = self.file(photo)
        return None if name is None else self.regions[name]


RegionFiles = MaskFiles | NamedRegions


class PhotoFolder(Dataset[Sample]):
    """Photos in one folder per class; samples are (image, label, region or None).

    Args:
        root: Holds the classes' folders, as torchvision's ``ImageFolder`` takes them.
        regions: As ``find_regions`` returns it; None: there are none.
        transform: Of ``torchvision.transforms.v2``: the regions go through it with their photos.

    Raises:
        InputError: There is no photo, or none of the photos has a region.
    """

    def __init__(self, root: Path, regions: RegionFiles | None, transform: Any) -> None:
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
        if regions is not None and not any(regions.file(Path(path)) for path, _ in self.samples):
            first = Path(self.samples[0][0])
            raise InputError(
                f"none of the {len(self.samples)} photos, such as {first.parent.name}/{first.name}, has a region; "
                "masks are looked for as <class>/<name>.png, boxes and COCO files by <class>/<file> or <file>"
            )

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        path, label = self.samples[index]
        entry = None if self.regions is None else [self.regions(Path(path))]
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
        regions: See ``find_regions``; None: ``masks`` or ``boxes.csv`` beside the split, where there is one.
        transform: See ``PhotoFolder``.

    Raises:
        InputError: There is no photo, or none of the photos has a region.
    """
    root = data / split if (data / split).is_dir() else data
    beside = [data / name for name in ("masks", "boxes.csv") if root != data and (data / name).exists()]
    source = regions or next(iter(beside), None)
    return PhotoFolder(root, None if source is None else find_regions(source), transform)


def find_regions(source: Path) -> RegionFiles:
    """Returns a function from a photo's path to its region or None.

    Args:
        source: A folder of masks (``<class>/<name>.png`` or ``<name>.png``, any pixel above 0), a CSV file of
            boxes (``file,x1,y1,x2,y2`` with file = ``<class>/<name>.jpg`` or ``<name>.jpg``, in the photo's
            pixels), or a COCO JSON file.

    Raises:
        InputError: It is none of these.
    """
    if source.is_dir():
        return MaskFiles(source)
    if not source.is_file() or source.suffix not in (".csv", ".json"):
        kind = "is no folder and no .csv or .json file" if source.exists() else "does not exist"
        raise InputError(f"regions {source} {kind}; valid are a folder of masks, boxes as .csv, and COCO's .json")
    if source.suffix == ".csv":
        return NamedRegions(_read_boxes(source))
    from camwatch.regions.readers.coco import read

    return NamedRegions(read(source))


def _read_boxes(path: Path) -> dict[str, Tensor]:
    boxes: dict[str, list[list[float]]] = defaultdict(list)
    with open(path, newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        columns = ("file", "x1", "y1", "x2", "y2")
        if not set(columns) <= set(reader.fieldnames or ()):
            raise InputError(
                f"{path}: expected the columns {','.join(columns)}, got {','.join(reader.fieldnames or ())}"
            )
        for row in reader:
            try:
                boxes[row["file"]].append([float(row[key]) for key in columns[1:]])
            except (TypeError, ValueError):
                raise InputError(f"{path}, line {reader.line_num}: {row} holds no box of four numbers") from None
    return {name: torch.tensor(found) for name, found in boxes.items()}
