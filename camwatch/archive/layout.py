"""Where the files of an archive lie, and how they say which format they have."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

FORMAT = 2
RUN, PANEL, END, SNAPSHOTS, PICTURES = "run.json", "panel.safetensors", "end.json", "snapshots", "panel"
KEY = "camwatch"  # of the one text in the metadata of a safetensors file


def is_archive(folder: Path) -> bool:
    """Whether a folder is an archive."""
    return (folder / RUN).is_file() and (folder / SNAPSHOTS).is_dir()


def snapshot_file(folder: Path, look: int) -> Path:
    """Returns where the look-th snapshot lies."""
    return folder / SNAPSHOTS / f"{look:06d}.safetensors"


def snapshot_files(folder: Path) -> list[Path]:
    """Returns the files of all snapshots, oldest first."""
    found = (file for file in (folder / SNAPSHOTS).glob("*.safetensors") if file.stem.isdecimal())
    return sorted(found, key=lambda file: int(file.stem))


def picture_files(folder: Path, image: int) -> tuple[Path, Path]:
    """Returns where an image of the panel lies, for the eye: whole (PNG) and small (JPEG)."""
    return folder / PICTURES / f"{image:06d}.png", folder / PICTURES / "small" / f"{image:06d}.jpg"


def to_text(content: Mapping[str, Any]) -> str:
    """Returns content as JSON, the format noted; what is not finite becomes null.

    Example:
        >>> to_text({"rate": float("nan")})
        '{"format":2,"rate":null}'
    """
    return json.dumps(plain({"format": FORMAT, **content}), ensure_ascii=False, separators=(",", ":"))


def from_text(text: str | bytes) -> dict[str, Any]:
    """Reads what ``to_text`` wrote.

    Raises:
        ValueError: It is none, or of a newer format.
    """
    content = json.loads(text)
    if not isinstance(content, dict) or not isinstance(content.get("format"), int):
        raise ValueError("this is no file of an archive")
    if content["format"] > FORMAT:
        raise ValueError(f"format {content['format']} is newer than this camwatch, which reads {FORMAT}")
    return content


def plain(value: Any) -> Any:
    """Returns what JSON can hold: sequences as lists, arrays too, null for what is not finite."""
    if isinstance(value, Mapping):
        return {str(key): plain(held) for key, held in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(held) for held in value]
    if isinstance(value, (np.ndarray, np.generic)) or (hasattr(value, "tolist") and hasattr(value, "dtype")):
        return plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return os.fspath(value) if isinstance(value, os.PathLike) else value
