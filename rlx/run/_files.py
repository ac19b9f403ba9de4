"""Files that are whole or absent, JSON that has one spelling, and JSON lines that survive a kill."""

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ._exits import DataError


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file so that a kill at any moment leaves the old content or the new: tmp, fsync, rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.tmp")
    try:
        with open(partial, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Make renames in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def canonical(value: Any) -> bytes:
    """The canonical JSON of a value (RFC 8785): one spelling, so that a digest of it means something.

    >>> canonical({"b": 1.0, "a": [True, None]})
    b'{"a":[true,null],"b":1}'
    """
    import rfc8785

    return rfc8785.dumps(value)


def strict_loads(data: bytes | str) -> Any:
    """JSON without what the standard forbids and Python allows: NaN, infinities, a key given twice.

    >>> strict_loads('{"lr": 1, "lr": 2}')
    Traceback (most recent call last):
    ValueError: lr: given twice
    >>> strict_loads('{"lr": NaN}')
    Traceback (most recent call last):
    ValueError: lr: NaN is not a number that JSON has
    """
    outlaws: list[float] = []

    def number(text: str) -> float:
        value = float(text)
        if not math.isfinite(value):
            outlaws.append(value)
        return value

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        seen: dict[str, Any] = {}
        for name, value in items:
            if name in seen:
                raise ValueError(f"{name}: given twice")
            for part in value if isinstance(value, list) else [value]:
                if isinstance(part, float) and not math.isfinite(part):
                    shown = "NaN" if math.isnan(part) else "an infinite number"
                    raise ValueError(f"{name}: {shown} is not a number that JSON has")
            seen[name] = value
        return seen

    try:
        value = json.loads(data, parse_constant=number, parse_float=number, object_pairs_hook=pairs)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if outlaws:
        raise ValueError("NaN or an infinite number is not JSON")
    return value


def complete_lines(path: Path) -> tuple[list[bytes], int]:
    """The lines of a file that end with a newline, and the number of bytes after them.

    What follows the last newline was half-written when the process died.
    """
    if not path.exists():
        return [], 0
    *lines, rest = path.read_bytes().split(b"\n")
    return lines, len(rest)


def cut_half_line(path: Path) -> int:
    """Remove what a kill left after the last newline; return how many bytes that was."""
    _, extra = complete_lines(path)
    if extra:
        with open(path, "r+b") as file:
            file.truncate(path.stat().st_size - extra)
            os.fsync(file.fileno())
    return extra


def json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSON-lines file, without a half-written last line.

    Raises:
      DataError: a line is not a JSON object; names the file and the line.
    """
    for number, line in enumerate(complete_lines(path)[0], 1):
        try:
            value = strict_loads(line)
        except ValueError as error:
            raise DataError(f"{path}, line {number}: {error}") from error
        if not isinstance(value, dict):
            raise DataError(f"{path}, line {number}: expected an object, got {type(value).__name__}")
        yield value


class LineFile:
    """A file that lines are appended to, each whole or not at all."""

    def __init__(self, path: Path):
        """Open for appending; `repaired` is how many bytes of a half-written line were cut."""
        self.path = path
        self.repaired = cut_half_line(path)
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115 -- closed by `close`

    def append(self, line: bytes) -> None:
        """Write one line. A write that fails half-way is taken back, so the file stays whole."""
        data = line + b"\n"
        size = os.fstat(self._file.fileno()).st_size
        try:
            while data:
                data = data[self._file.write(data) or 0 :]
        except OSError:
            os.ftruncate(self._file.fileno(), size)
            raise

    def sync(self) -> None:
        """Make every line durable."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Sync and close."""
        if not self._file.closed:
            try:
                self.sync()
            finally:
                self._file.close()
