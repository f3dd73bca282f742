"""The table, as CSV or Parquet, written row by row."""

from __future__ import annotations

import csv
import importlib
import importlib.util
import os
from collections.abc import Iterable, Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

from camwatch.auditing.verdicts import COLUMNS, Row
from camwatch.errors import InputError

INTEGERS, WORDS = ("index", "label", "predicted"), ("id", "verdict", "note")
ROWS_AT_ONCE = 4096


def check_output(output: str | Path) -> Path:
    """Returns the table's path.

    Raises:
        InputError: Its format is unknown, or it cannot be written there.
    """
    path = Path(output)
    if path.suffix not in (".csv", ".parquet"):
        raise InputError(f"output={str(output)!r} must end in .csv or .parquet")
    if path.suffix == ".parquet" and importlib.util.find_spec("pyarrow") is None:
        raise InputError(
            f"output={str(output)!r} needs pyarrow: pip install 'camwatch[parquet]', or choose a .csv file"
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        reason = "it is a folder" if path.is_dir() else "" if os.access(path.parent, os.W_OK) else "not permitted"
    except OSError as error:
        reason = error.strerror or str(error)
    if reason:
        raise InputError(f"the audit cannot be written to {str(output)!r}: {reason}")
    return path


def written(rows: Iterable[Row], path: Path) -> Iterator[Row]:
    """Hands on the rows and writes them on the way; the file appears when all are written."""
    temporary = path.with_name(f"{path.name}.tmp")
    yield from (_parquet if path.suffix == ".parquet" else _csv)(rows, temporary)
    os.replace(temporary, path)


def _csv(rows: Iterable[Row], path: Path) -> Iterator[Row]:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for row in rows:
            writer.writerow(row)
            yield row


def _parquet(rows: Iterable[Row], path: Path) -> Iterator[Row]:
    pa, pq = (importlib.import_module(name) for name in ("pyarrow", "pyarrow.parquet"))

    def kind(column: str) -> Any:
        return pa.int64() if column in INTEGERS else pa.string() if column in WORDS else pa.float64()

    schema = pa.schema([(column, kind(column)) for column in COLUMNS])
    left = iter(rows)
    with closing(pq.ParquetWriter(path, schema)) as writer:
        while block := list(islice(left, ROWS_AT_ONCE)):
            columns = [list(column) for column in zip(*block, strict=True)]
            writer.write_table(pa.table(columns, schema=schema))
            yield from block
