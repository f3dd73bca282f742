"""The table of annotation formats: what a path holds, and who reads it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from camwatch.errors import RegionError
from camwatch.regions.readers import boxes, coco, labelme, masks, voc
from camwatch.regions.readers.base import FileRegions


@dataclass(frozen=True)
class Format:
    """One way in which annotations lie on a disk.

    Attributes:
        name: For messages.
        suffix: Of the file, or of files in the folder; empty: any folder is taken for one.
        in_folder: Whether it is a folder of such files.
        read: From the path to image file name -> region.
    """

    name: str
    suffix: str
    in_folder: bool
    read: Callable[[Path], FileRegions]

    def holds(self, path: Path) -> bool:
        """Whether a path is of this format, as far as its names tell."""
        if self.in_folder:
            return path.is_dir() and (not self.suffix or any(path.glob(f"*{self.suffix}")))
        return path.is_file() and path.suffix == self.suffix


# The first that fits is taken. YOLO is not among them: its files say nothing without the images' sizes.
FORMATS = (
    Format("boxes as .csv", ".csv", False, boxes.read),
    Format("COCO's .json", ".json", False, coco.read),
    Format("a folder of VOC's .xml", ".xml", True, voc.read),
    Format("a folder of LabelMe's .json", ".json", True, labelme.read),
    Format("a folder of masks", "", True, masks.read_binary),
)


def read_regions(path: str | Path) -> FileRegions:
    """Reads annotations of any format in the table, all classes alike.

    Raises:
        RegionError: The path does not exist, is of no known format, or its content is not what its name says.
    """
    path = Path(path)
    found = next((one for one in FORMATS if one.holds(path)), None)
    if found is not None:
        return found.read(path)
    files = " or ".join(one.suffix for one in FORMATS if not one.in_folder)
    kind = f"is no folder and no {files} file" if path.exists() else "does not exist"
    raise RegionError(f"regions {path} {kind}; valid are {', '.join(one.name for one in FORMATS)}")
