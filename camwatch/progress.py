"""A progress bar for what takes a while."""

from __future__ import annotations

from collections.abc import Iterator


def progress(steps: range, label: str) -> Iterator[int]:
    """Yields the steps under a progress bar, where tqdm is installed, a terminal looks on, and it takes a while."""
    try:
        from tqdm import tqdm
    except ImportError:
        yield from steps
    else:
        yield from tqdm(steps, desc=label, leave=False, delay=2, disable=None)
