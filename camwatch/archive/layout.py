"""Where the files of an archive lie, and what they say beside their arrays: JSON, for any reader.

A snapshot's arrays: ``measures`` (M, N), ``labels``, ``predicted``, ``probability`` (N,), ``maps/i`` (N, h, w) of the
i-th layer, ``predicted/i`` (n, h, w) uint8 with ``predicted_scale/i`` (n,) and ``predicted_rows/i`` (n,), the images
that these maps of the predicted class belong to, ``top_classes`` and ``top_probabilities`` (N, K), ``places`` (M, 4),
``pastes`` (P, 5) and ``paste_chances`` (P, 2). Integers are as short as their values allow. The text beside them
stands under the one key ``camwatch`` of the safetensors' metadata.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from camwatch.records import Finding

FORMAT = 2
RUN, PANEL, END, SNAPSHOTS, PICTURES = "run.json", "panel.safetensors", "end.json", "snapshots", "panel"
KEY = "camwatch"


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
        >>> to_text({"rate": float("nan"), "box": (1, 2)})
        '{"format":2,"rate":null,"box":[1,2]}'
    """
    text = json.dumps(plain({"format": FORMAT, **content}), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    # Half of a surrogate pair, as in a file's name that is no UTF-8, is escaped, which JSON takes.
    return text.encode("utf-8", "backslashreplace").decode()


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
    """Returns what JSON can hold: sequences, sets and arrays as lists, null for what is not finite, else its text."""
    if isinstance(value, Mapping):
        return {str(key): plain(held) for key, held in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(held) for held in value]
    if hasattr(value, "tolist") and hasattr(value, "dtype"):
        return plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (str, int)):
        return value
    return os.fsdecode(value) if isinstance(value, (os.PathLike, bytes)) else str(value)


def findings_as_data(findings: Sequence[Finding]) -> list[dict[str, Any]]:
    """Returns findings as mappings of their fields."""
    return [{one.name: getattr(finding, one.name) for one in fields(Finding)} for finding in findings]


def pack_means(
    measures: Sequence[str], scalars: Mapping[str, float], intervals: Mapping[str, tuple[float, float]]
) -> dict[str, list[Any]]:
    """Returns panel means with their intervals as lists; names that a measure has are told by its number.

    Means are float32 numbers and read back exactly; intervals have six digits.

    Example:
        >>> pack_means(["correct"], {"correct": 0.5, "correct/right": 1.0, "blank": 0.0}, {"correct": (0.4, 0.6)})
        {'of': [0, [0, 'right'], 'blank'], 'mean': [0.5, 1.0, 0.0], 'low': [0.4, nan, nan], 'high': [0.6, nan, nan]}
    """
    number = {name: i for i, name in enumerate(measures)}

    def short(key: str) -> int | str | list[Any]:
        name, slash, group = key.rpartition("/")
        return number[key] if key in number else [number[name], group] if slash and name in number else key

    bounds = [intervals.get(key, (math.nan, math.nan)) for key in scalars]
    return {
        "of": [short(key) for key in scalars],
        "mean": [float(str(np.float32(mean))) for mean in scalars.values()],
        "low": [float(f"{low:.6g}") for low, _ in bounds],
        "high": [float(f"{high:.6g}") for _, high in bounds],
    }


def unpack_means(
    measures: Sequence[str], packed: Mapping[str, Sequence[Any]]
) -> tuple[dict[str, float], dict[str, tuple[float, float]]]:
    """Returns the panel means and those intervals that there are.

    Example:
        >>> unpack_means(["a"], {"of": [0, [0, "right"]], "mean": [0.5, 1.0], "low": [0.4, None], "high": [0.6, None]})
        ({'a': 0.5, 'a/right': 1.0}, {'a': (0.4, 0.6)})
    """

    def name(of: int | str | list[Any]) -> str:
        return of if isinstance(of, str) else measures[of] if isinstance(of, int) else f"{measures[of[0]]}/{of[1]}"

    means, intervals = {}, {}
    for of, mean, low, high in zip(*(packed[key] for key in ("of", "mean", "low", "high")), strict=True):
        means[name(of)] = math.nan if mean is None else float(np.float32(mean))
        if low is not None and high is not None:
            intervals[name(of)] = (float(low), float(high))
    return means, intervals
