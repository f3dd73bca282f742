"""What every reader of annotation files shares: shapes, and regions by file name."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from camwatch.errors import RegionError, unknown
from camwatch.regions.annotations import ZONES

Class = int | str


@dataclass(frozen=True, eq=False)
class Shape:
    """One annotated object.

    Attributes:
        classes: The names under which its class may be called: id, name, or both.
        region: (4,) box x1, y1, x2, y2 in pixels, or (H, W) bool mask; one kind per file.
        zone: Where the format itself says that it belongs elsewhere (a crowd is to be ignored).
    """

    classes: tuple[Class, ...]
    region: Tensor
    zone: str = "allowed"


@dataclass(frozen=True, eq=False)
class FileRegions(Mapping[str, Any]):
    """Image file name -> region; a file is read when it is asked for.

    Attributes:
        shapes: Image file name -> function that returns its shapes.
        class_ids: See the module.
        zones: See the module.
        per_class: See the module.

    Example:
        >>> cat, dog = Shape(("cat",), torch.tensor([0, 0, 4, 4])), Shape(("dog",), torch.tensor([4, 4, 8, 8]))
        >>> regions = FileRegions({"a.jpg": lambda: [cat, dog]}, class_ids={"cat": 0, "dog": 1}, per_class=True)
        >>> regions.of("a.jpg", label=1)
        {'allowed': tensor([[4, 4, 8, 8]])}
    """

    shapes: Mapping[str, Callable[[], Iterable[Shape]]]
    class_ids: Mapping[Class, int] | None = None
    zones: Mapping[Class, str] | None = None
    per_class: bool = False

    def __post_init__(self) -> None:
        for zone in (self.zones or {}).values():
            if zone not in ZONES:
                raise RegionError(unknown("zone", zone, ZONES))

    def __getitem__(self, name: str) -> dict[str, Tensor] | None:
        return self.of(name)

    def __contains__(self, name: object) -> bool:
        return name in self.shapes  # without reading a file

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)

    def of(self, name: str, label: int | None = None) -> dict[str, Tensor] | None:
        """Returns the zones of one image, as ``Regions.coerce`` takes them; None if nothing is annotated.

        Args:
            name: The image's file name.
            label: With ``per_class`` only annotations of this class are allowed zones.
        """
        found: dict[str, list[Tensor]] = {}
        for shape in self.shapes[name]():
            zone = next((self.zones[c] for c in shape.classes if self.zones and c in self.zones), shape.zone)
            if zone != "allowed" or self._is_wanted(shape, label):
                found.setdefault(zone, []).append(shape.region)
        return {zone: torch.stack(regions) for zone, regions in found.items()} or None

    def _is_wanted(self, shape: Shape, label: int | None) -> bool:
        if self.class_ids is None:
            ids = [c for c in shape.classes if isinstance(c, int)]
            if self.per_class and not ids:
                raise RegionError(
                    f"per_class needs class_ids, such as {{{shape.classes[0]!r}: 0}}, where classes have names"
                )
        else:
            ids = [self.class_ids[c] for c in shape.classes if c in self.class_ids]
            if not ids:
                return False
        return not self.per_class or label is None or label in ids


def load_json(path: Path, expected: str, keys: set[str]) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
        RegionError: It is no JSON, or lacks one of the keys.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RegionError(f"{path}: expected {expected}'s JSON, which this is not ({error})") from None
    if not isinstance(content, dict) or not keys <= set(content):
        got = sorted(content) if isinstance(content, dict) else type(content).__name__
        raise RegionError(f"{path}: expected {expected}'s keys {', '.join(sorted(keys))}, got {got}")
    return content
