"""A monitor's state in a file beside a checkpoint, or on its way to another process."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch

from camwatch.files import write_whole


def write_state(path: Path, state: dict[str, Any]) -> None:
    """Writes a state, whole or not at all."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_whole(path, buffer.getvalue())


def read_state(path: Path) -> dict[str, Any]:
    """Reads a state; nothing in the file is run."""
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state
