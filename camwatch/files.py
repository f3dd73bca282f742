"""Files that are there as a whole or not at all, and their names."""

from __future__ import annotations

import os
import re
from pathlib import Path
from zlib import crc32


def write_whole(path: Path, content: bytes, *, durable: bool = True) -> None:
    """Writes a file so that whoever reads it finds the old content or the new, also after a kill.

    Args:
        path: Its folder is made where it does not exist.
        content: All of it.
        durable: Whether it is also so after a crash of the machine; that takes milliseconds.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "new" / "note.txt"
        >>> write_whole(file, b"done")
        >>> file.read_bytes()
        b'done'
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if durable and os.name == "posix":  # the new name itself has to reach the disk, too
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def remove_leftovers(folder: Path) -> None:
    """Removes what a process that was killed left half-written in a folder."""
    for leftover in folder.glob(".*.tmp"):
        leftover.unlink(missing_ok=True)


def file_name(tag: str, step: int, content: str = "") -> str:
    """Returns where a tag's file of a step lies; texts of one step are told apart by their content.

    Example:
        >>> file_name("camwatch/layer 4/../overlays", 12)
        'camwatch/layer_4/overlays/step_00000012'
    """
    parts = [re.sub(r"[^\w.\-]+", "_", part) for part in tag.split("/")]
    folder = "/".join(part for part in parts if part.strip("."))
    return f"{folder}/step_{step:08d}" + (f"_{crc32(content.encode()):08x}" if content else "")
