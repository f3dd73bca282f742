"""What tells two runs, panels or audits apart: descriptions as plain data, and what has changed between two of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from types import CodeType
from typing import Any

UNTOLD = "?"  # in the place of a checksum that cannot be taken
PLAIN = (str, int, float, bool, bytes, type(None))


def fingerprint(*values: Any) -> str:
    """Returns a checksum of data: of arrays and tensors, nested in sequences and mappings, and of plain values.

    Example:
        >>> fingerprint([1, "a"]) == fingerprint([1, "b"]), fingerprint("a", "b") == fingerprint("ab")
        (False, False)
    """
    total = hashlib.sha256()
    for part in _content(values):
        total.update(len(part).to_bytes(8, "little"))
        total.update(part)
    return f"sha {total.hexdigest()[:16]}"


def _content(value: Any) -> Iterator[bytes]:
    if isinstance(value, Mapping):
        value = [*value.keys(), *value.values()]
    if hasattr(value, "dtype"):
        yield f"{value.dtype} {tuple(value.shape)}".encode()
        yield _array(value)
    elif isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        yield str(len(value)).encode()
        for held in value:
            yield from _content(held)
    else:
        yield repr(value).encode()


def _array(value: Any) -> bytes:
    if not hasattr(value, "detach"):
        return bytes(value.tobytes())
    if value.is_meta or not value.numel():
        return b""
    import torch  # a tensor is at hand, so that it is loaded

    flat = value.detach().cpu().contiguous().reshape(-1)
    return bytes(flat.view(torch.uint8).numpy().tobytes())


def described(given: Any) -> Any:
    """Returns a callable's qualified name and a checksum of its code; anything else as it is.

    Where what a callable does hangs on more than its code (an object's state, a closure over an object), the checksum
    is "?".

    Example:
        >>> import math
        >>> described(7), described(math.floor)
        (7, 'math.floor#?')
    """
    if not callable(given):
        return given
    name = f"{getattr(given, '__module__', '')}.{getattr(given, '__qualname__', type(given).__qualname__)}"
    code = getattr(given, "__code__", None)
    held = [cell.cell_contents for cell in getattr(given, "__closure__", None) or ()]
    held += list(getattr(given, "__defaults__", None) or ())
    if code is None or not all(isinstance(value, PLAIN) for value in held):
        return f"{name}#{UNTOLD}"
    text = repr([*_instructions(code), *held])
    return f"{name}#{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def _instructions(code: CodeType) -> Iterator[Any]:
    yield from (code.co_code, code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _instructions(constant)
        else:
            yield constant


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Says what makes one description that of something else.

    Callables of one name of which no checksum can be taken are taken for the same.

    Example:
        >>> changes({"target": "label", "images": "sha 1"}, {"target": "predicted", "images": "sha 2"})
        ["target 'label', now 'predicted'", 'other images']
    """
    keys = [*now, *(key for key in before if key not in now)]
    pairs = [(key, before.get(key), now.get(key)) for key in keys]
    return [_told(key, old, new) for key, old, new in pairs if old != new and not _may_be_one(old, new)]


def _told(key: str, old: Any, new: Any) -> str:
    data = any(isinstance(value, str) and value.startswith("sha ") for value in (old, new))
    return f"other {key}" if data else f"{key} {old!r}, now {new!r}"


def _may_be_one(old: Any, new: Any) -> bool:
    if not isinstance(old, str) or not isinstance(new, str):
        return False
    (name, *one), (other, *two) = old.rsplit("#", 1), new.rsplit("#", 1)
    return name == other and UNTOLD in (*one, *two)
