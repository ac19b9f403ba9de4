"""What was measured of an operation on a device, by bucket of shapes and dtype: the best configuration, its gain."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

TABLE = Path(__file__).with_name("table.json")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A row of the table.

    Attributes:
      operation, device, dtype: what was measured, on what.
      bucket: sizes by name, each up to the next power of two.
      implementation, direction: which one, "forward" or "both" (with the gradient).
      config: its best configuration, by the fields of the operation's `Config`.
      ratio: how many times faster than what `auto` would take instead, in the same run; 1 inside the spread.
      record: the file of `kernels_pallas.bench` or `kernels_pallas.tune` that has the times.
    """

    operation: str
    device: str
    dtype: str
    bucket: Mapping[str, int]
    implementation: str
    direction: str
    config: Mapping[str, int]
    ratio: float
    record: str


def bucket(shape: Mapping[str, int]) -> dict[str, int]:
    """Each size up to the next power of two: shapes of one bucket share a configuration.

    Example:
      >>> bucket({"n": 5000, "d": 4096})
      {'n': 8192, 'd': 4096}
    """
    return {name: 1 << max(int(size) - 1, 0).bit_length() for name, size in shape.items()}


def recorded(operation: str, shape: Mapping[str, int], dtype: Any, device: str) -> list[Entry]:
    """The rows of a shape's bucket on a kind of device."""
    wanted = operation, device, np.dtype(dtype).name, bucket(shape)
    return [e for e in entries(TABLE) if (e.operation, e.device, e.dtype, e.bucket) == wanted]


@cache
def entries(path: Path) -> tuple[Entry, ...]:
    """The rows of a table; none where it is not there."""
    if not path.exists():
        return ()
    rows = json.loads(path.read_text())
    names = {field.name for field in fields(Entry)}
    for row in rows:
        if row.keys() != names:
            raise ValueError(f"path: a row of {path.name} has the fields {sorted(row)}, expected {sorted(names)}")
    return tuple(Entry(**row) for row in rows)


def write(path: Path, rows: list[Entry]) -> None:
    """Rows into a table: one replaces another that differs only in configuration, ratio and record."""

    def key(entry: Entry) -> tuple[Any, ...]:
        sizes = tuple(sorted(entry.bucket.items()))
        return (entry.operation, entry.device, entry.dtype, sizes, entry.implementation, entry.direction)

    merged = {key(entry): entry for entry in (*entries(path), *rows)}
    ordered = [asdict(merged[at]) for at in sorted(merged)]
    path.write_text("[\n" + ",\n".join(" " + json.dumps(row) for row in ordered) + ("\n" if ordered else "") + "]\n")
    entries.cache_clear()
