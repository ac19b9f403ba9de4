"""An append-only log of what was decided: a hash chain to read line by line, a Merkle root to prove from."""

import hashlib
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

try:
    import fcntl
except ModuleNotFoundError:  # not on Windows
    fcntl = None

import msgspec
import rfc8785

from ._merkle import MerkleTree, consistent, included, leaf_hash

_START = hashlib.sha256(b"rlx audit log v1").hexdigest()
_LONGEST_LINE = 1 << 20  # bytes
_LARGEST_INTEGER = (1 << 53) - 1  # RFC 8785, section 3.2.2.3: what a double holds exactly
_HASH = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class LogReport:
    """What `verify_log` found.

    Attributes:
      ok: everything is as it was written, and as the checkpoint says if one was given.
      entries: how many good ones come first.
      head: hash of the last good entry.
      root: Merkle root of the good entries.
      bad: index of the first bad entry (its line is one more), None if all are good.
      reason: what is wrong.
    """

    ok: bool
    entries: int
    head: str
    root: str
    bad: int | None = None
    reason: str = ""

    def __str__(self) -> str:
        if self.ok:
            return f"{self.entries} entries, all as written\nhead {self.head}\nroot {self.root}"
        where = f"entry {self.bad} (line {self.bad + 1})" if self.bad is not None else "the log"
        return f"{where}: {self.reason}\n{self.entries} good entries before it"


class AuditLog:
    """Entries in order, each tied to all before it.

    Entry n is stored as canonical JSON (RFC 8785) of `{"entry", "index", "previous"}`; its hash is the SHA-256 of that,
    and `previous` is the hash of entry n - 1. The same bytes are leaf n of the Merkle tree of RFC 6962. With a path,
    every entry is a line of the file, on disk before `append` returns.

    A chain cannot show that its end is missing: keep `checkpoint()` elsewhere (signed, or with somebody else) and give
    it to `verify_log`.

    Args:
      path: a JSON Lines file to go on with, or to start. None keeps the log in memory.
      torn: a crash may leave half a line at the end; "error" says so, "cut" removes it.

    Raises:
      ValueError: the file is not a log, or not what was written; names the first bad entry.

    Example:
      >>> log = AuditLog()
      >>> log.append({"step": 1, "verdict": "CERTIFIED"}), log.append({"step": 2, "verdict": "REFUTED"})
      (0, 1)
      >>> proof = log.inclusion_proof(1)
      >>> verify_inclusion(log.record(1), 1, 2, proof, log.root())
      True

    References:
      RFC 6962, "Certificate Transparency", section 2.1; RFC 9162, section 2.1, for checking proofs; RFC 8785.
    """

    def __init__(self, path: str | Path | None = None, *, torn: Literal["error", "cut"] = "error") -> None:
        self._tree, self._head = MerkleTree(), _START
        self._lines: list[bytes] = []
        self._size = 0  # bytes of all lines: what the file has if nobody else wrote to it
        self.path = None if path is None else Path(path)
        if self.path is not None and self.path.exists():
            self._load(self.path, torn)

    def __len__(self) -> int:
        return len(self._lines)

    def __getitem__(self, index: int) -> Any:
        """The entry."""
        return msgspec.json.decode(self._lines[index])["entry"]

    @property
    def head(self) -> str:
        """The hash of the last entry."""
        return self._head

    def root(self, size: int | None = None) -> str:
        """The Merkle root of the first `size` entries."""
        return self._tree.root(size).hex()

    def checkpoint(self) -> dict[str, Any]:
        """Size, root and head: what to keep elsewhere, so that nothing can be cut off or replaced unseen."""
        return {"size": len(self), "root": self.root(), "head": self.head}

    def append(self, entry: Mapping[str, Any]) -> int:
        """Add an entry; its index.

        Args:
          entry: a JSON object: text, finite numbers, integers below 2^53, booleans, None, lists and objects of them.

        Raises:
          ValueError: it is not JSON, or longer than 1 MiB.
          TypeError: it is not a mapping.
          OSError: it could not be written, or the file is not the one that was read; the log is as before.
        """
        if not isinstance(entry, Mapping):
            raise TypeError(f"entry: expected a mapping, got {type(entry).__name__}")
        try:
            content = rfc8785.dumps(dict(entry))
        except (rfc8785.CanonicalizationError, UnicodeEncodeError, RecursionError) as error:
            raise ValueError(f"entry: it is not JSON that RFC 8785 can write: {error}") from error
        index = len(self)
        record = _record(content, index, self._head)
        digest = hashlib.sha256(record).hexdigest()
        line = _line(content, digest, index, self._head)
        if len(line) > _LONGEST_LINE:
            raise ValueError(f"entry: {len(line)} bytes, more than {_LONGEST_LINE}; log its hash")
        if self.path is not None:
            _append(self.path, line, self._size)
        self._add(record, line, digest)
        return index

    def record(self, index: int) -> bytes:
        """The canonical bytes of an entry with its index and the hash before it: what is hashed and proved."""
        found = msgspec.json.decode(self._lines[index], type=dict[str, msgspec.Raw])
        previous = msgspec.json.decode(found["previous"])
        return _record(bytes(found["entry"]), range(len(self))[index], previous)

    def inclusion_proof(self, index: int, size: int | None = None) -> list[str]:
        """Hashes that lead from entry `index` to the root of the first `size` entries: at most ceil(log2 size)."""
        return [node.hex() for node in self._tree.inclusion(index, size)]

    def consistency_proof(self, old_size: int, size: int | None = None) -> list[str]:
        """Hashes that show that the first `old_size` entries are the beginning of the first `size`."""
        return [node.hex() for node in self._tree.consistency(old_size, size)]

    def save(self, path: str | Path) -> None:
        """Write the whole log to a file, all or nothing.

        Raises:
          FileExistsError: a log is not written over.
        """
        path = Path(path)
        if path.exists():
            raise FileExistsError(f"path: {path} exists; a log is not written over")
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.writelines(self._lines)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except OSError:
            Path(temporary).unlink(missing_ok=True)
            raise

    def _add(self, record: bytes, line: bytes, digest: str) -> None:
        self._tree.append(leaf_hash(record))
        self._lines.append(line)
        self._size += len(line)
        self._head = digest

    def _load(self, path: Path, torn: str) -> None:
        whole = path.stat().st_size
        report = _read(path, self)
        if not report.ok and report.reason == _TORN and torn == "cut":
            with path.open("r+b") as file:
                file.truncate(sum(map(len, self._lines)))
                os.fsync(file.fileno())
            return
        if not report.ok:
            hint = '; AuditLog(path, torn="cut") removes it' if report.reason == _TORN else ""
            where = f"entry {report.bad} (line {len(self) + 1})"
            raise ValueError(f"path: {path} ({whole} bytes), {where}: {report.reason}{hint}")


_TORN = "half a line, as a crash leaves it"


def verify_log(
    path: str | Path, *, size: int | None = None, root: str | None = None, head: str | None = None
) -> LogReport:
    """Read a log from the start and find the first entry that is not what was written.

    Args:
      path: the file.
      size, root, head: of a checkpoint that was kept elsewhere: the log must have at least that many entries, and its
        first `size` must have this root, its entry `size - 1` this hash. Without `size` they are of the whole log.

    Returns:
      A `LogReport`. Without a checkpoint, a log whose end was cut off at a line, or that was written anew from some
      entry on, is a good shorter or other log.

    Raises:
      OSError: it cannot be read.
      ValueError: root or head is not a hash.
    """
    for name, value in (("root", root), ("head", head)):
        if value is not None and not _HASH.fullmatch(value):
            raise ValueError(f"{name}: {value!r} is not 64 hex digits")
    log = AuditLog()
    report = _read(Path(path), log)
    if not report.ok:
        return report
    if size is not None and len(log) < size:
        return _bad(log, len(log), f"the log ends here, the checkpoint has {size} entries: it was cut off")
    if root is not None and log.root(size) != root:
        return _bad(log, None, f"the first {size or len(log)} entries have root {log.root(size)}, not {root}")
    counted = len(log) if size is None else size
    found = hashlib.sha256(log.record(counted - 1)).hexdigest() if counted else _START
    if head is not None and found != head:
        return _bad(log, None, f"entry {counted - 1} has hash {found}, not {head}")
    return report


def verify_inclusion(record: bytes, index: int, size: int, proof: Sequence[str], root: str) -> bool:
    """Whether an entry's record (`AuditLog.record`) is entry `index` of the log of `size` entries with this root."""
    return included(leaf_hash(record), index, size, _hashes(proof), _hashes([root])[0])


def verify_consistency(old_size: int, old_root: str, size: int, root: str, proof: Sequence[str]) -> bool:
    """Whether the log with the old root is the beginning of the one with the new root."""
    old, new = _hashes([old_root, root])
    return consistent(old_size, old, size, new, _hashes(proof))


def _hashes(values: Sequence[str]) -> list[bytes]:
    for value in values:
        if not isinstance(value, str) or not _HASH.fullmatch(value):
            raise ValueError(f"proof: {value!r} is not 64 hex digits")
    return [bytes.fromhex(value) for value in values]


def _record(content: bytes, index: int, previous: str) -> bytes:
    return b'{"entry":%b,"index":%d,"previous":"%b"}' % (content, index, previous.encode())


def _line(content: bytes, digest: str, index: int, previous: str) -> bytes:
    return b'{"entry":%b,"hash":"%b","index":%d,"previous":"%b"}\n' % (
        content,
        digest.encode(),
        index,
        previous.encode(),
    )


def _append(path: Path, line: bytes, size: int) -> None:
    """The line, on disk, behind `size` bytes; if that fails, the file as before."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        if fcntl is not None:
            fcntl.flock(descriptor, fcntl.LOCK_EX)  # until it is closed
        before = os.fstat(descriptor).st_size
        if before != size:
            raise OSError(
                f"path: {path} has {before} bytes, expected {size}: somebody else writes to it; open it again"
            )
        try:
            written = 0
            while written < len(line):
                written += os.write(descriptor, line[written:])
            os.fsync(descriptor)
        except OSError:
            os.ftruncate(descriptor, before)
            raise
    finally:
        os.close(descriptor)


def _read(path: Path, log: AuditLog) -> LogReport:
    """Add the file's entries to an empty log until one is bad."""
    with path.open("rb") as file:
        while line := file.readline(_LONGEST_LINE + 1):
            reason = _wrong(line, log)
            if reason:
                return _bad(log, len(log), reason)
    return LogReport(True, len(log), log.head, log.root())


def _bad(log: AuditLog, index: int | None, reason: str) -> LogReport:
    return LogReport(False, len(log), log.head, log.root(), index, reason)


def _wrong(line: bytes, log: AuditLog) -> str:
    """Why the line is not the next entry; empty if it is, and then it is added."""
    index, previous = len(log), log.head
    if not line.endswith(b"\n"):
        return _TORN if len(line) <= _LONGEST_LINE else f"a line of more than {_LONGEST_LINE} bytes"
    tail = b',"hash":"%b","index":%d,"previous":"%b"}\n' % (b"0" * 64, index, previous.encode())
    content = line[9 : -len(tail)]
    digest = line[len(line) - len(tail) + 9 : len(line) - len(tail) + 73].decode("latin-1")
    if line != _line(content, digest, index, previous):
        return _what_differs(line, index, previous)
    record = _record(content, index, previous)
    if hashlib.sha256(record).hexdigest() != digest:
        return "its hash is not that of its content: it was changed"
    try:
        entry = msgspec.json.decode(content)
        if not isinstance(entry, dict) or _canonical(entry) != content:
            return "its entry is not canonical JSON (RFC 8785)"
    except (ValueError, RecursionError, rfc8785.CanonicalizationError) as error:
        return f"its entry is not JSON: {error}"
    log._add(record, line, digest)
    return ""


def _what_differs(line: bytes, index: int, previous: str) -> str:
    try:
        found = msgspec.json.decode(line)
    except (ValueError, RecursionError) as error:
        return f"it is not JSON: {error}"
    if not isinstance(found, dict) or set(found) != {"entry", "hash", "index", "previous"}:
        return "it is not an entry of this log"
    if found["index"] != index:
        return f"its index is {found['index']!r}, expected {index}: entries were removed, added or moved"
    if found["previous"] != previous:
        return "it follows another entry than the one before it"
    return "it is not written as canonical JSON (RFC 8785)"


def _canonical(entry: dict[str, Any]) -> bytes:
    """RFC 8785; what is flat and plain, by a faster encoder that writes the same."""
    for key, value in entry.items():
        if not key.isascii() or not (
            value is None
            or type(value) in (str, bool)
            or (type(value) is int and -_LARGEST_INTEGER <= value <= _LARGEST_INTEGER)
        ):
            return rfc8785.dumps(entry)
    return msgspec.json.encode(entry, order="sorted")
