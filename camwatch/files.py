"""Files that are there as a whole or not at all, and their names."""

from __future__ import annotations

import os
import re
from pathlib import Path
from zlib import crc32


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file that is either there as a whole or not at all."""
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_bytes(content)
    os.replace(temporary, path)


def write_atomically(path: Path, data: bytes) -> None:
    """Writes a file so that whoever reads it finds the old content or the new, also after a kill or crash."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if os.name == "posix":  # the new name itself has to reach the disk, too
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def file_name(tag: str, step: int, content: str = "") -> str:
    """Returns where a tag's file of a step lies; texts of one step are told apart by their content.

    Example:
        >>> file_name("camwatch/layer 4/../overlays", 12)
        'camwatch/layer_4/overlays/step_00000012'
    """
    parts = [re.sub(r"[^\w.\-]+", "_", part) for part in tag.split("/")]
    folder = "/".join(part for part in parts if part.strip("."))
    return f"{folder}/step_{step:08d}" + (f"_{crc32(content.encode()):08x}" if content else "")
