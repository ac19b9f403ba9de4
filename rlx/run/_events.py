"""What happened in a run, each entry bound to the one before it by a sha256."""

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ._exits import DataError
from ._files import LineFile, canonical, complete_lines, strict_loads

FIRST = "0" * 64


def _sha256(entry: dict[str, Any]) -> str:
    return hashlib.sha256(canonical({name: value for name, value in entry.items() if name != "sha256"})).hexdigest()


@dataclass(frozen=True, kw_only=True)
class ChainReport:
    """What `verify_events` found.

    Args:
      ok: the chain is whole, and the head that was asked for is in it.
      count: entries before the first bad one.
      head: sha256 of the last good entry; 64 zeros for an empty chain.
      bad: the number of the first bad entry, from 1; None when there is none.
      reason: what is wrong with it, or with the end of the chain.
      entries: the good entries.
    """

    ok: bool
    count: int
    head: str
    bad: int | None
    reason: str
    entries: tuple[dict[str, Any], ...]


def verify_events(path: str | Path, *, head: str | None = None) -> ChainReport:
    """Check a chain of events; name the first bad entry, or what is missing at the end.

    `sha256_i = SHA256(canonical(entry_i without sha256))`, and `prev_i = sha256_{i-1}`. A chain that is
    consistent in itself may still have been cut or written anew as a whole; only a head that is kept
    elsewhere (a checkpoint holds one) shows that.

        >>> import tempfile, rlx
        >>> path = Path(tempfile.mkdtemp()) / "events.jsonl"
        >>> log = rlx.run.EventLog(path)
        >>> log.append("start", seed=0); log.append("end"); log.close()
        >>> rlx.run.verify_events(path, head=log.head).ok
        True
        >>> _ = path.write_bytes(path.read_bytes().replace(b'"seed":0', b'"seed":1'))
        >>> rlx.run.verify_events(path).reason
        'the content of entry 1 is not what its sha256 says'

    Args:
      path: an events.jsonl.
      head: a sha256 that must be in the chain.
    Returns:
      ChainReport.
    """
    entries: list[dict[str, Any]] = []
    previous, bad, reason = FIRST, None, ""
    lines, rest = complete_lines(Path(path))
    for number, line in enumerate(lines, 1):
        reason = _wrong(line, number, previous)
        if reason:
            bad = number
            break
        entries.append(strict_loads(line))
        previous = entries[-1]["sha256"]
    if bad is None and head not in (None, FIRST) and all(entry["sha256"] != head for entry in entries):
        reason = f"the chain ends at entry {len(entries)} without the known head {str(head)[:12]}: its end was cut"
    half = f"the last {rest} bytes are a half-written entry" if rest else ""
    return ChainReport(
        ok=not reason, count=len(entries), head=previous, bad=bad, reason=reason or half, entries=tuple(entries)
    )


def _wrong(line: bytes, number: int, previous: str) -> str:
    try:
        entry = strict_loads(line)
        whole = isinstance(entry, dict) and canonical(entry) == line
    except ValueError:
        return f"entry {number} is not JSON"
    if not whole:
        return f"entry {number} is not canonical JSON"
    if entry.get("sha256") != _sha256(entry):
        return f"the content of entry {number} is not what its sha256 says"
    if entry.get("prev") != previous or entry.get("seq") != number:
        return f"entry {number} does not follow the entry before it"
    return ""


class EventLog:
    """events.jsonl, open for appending; every entry is on disk before `append` returns.

    It shows tampering only against a head that is kept outside of the file; each checkpoint holds one.
    """

    def __init__(self, path: str | Path):
        """Open, or begin, a chain.

        Raises:
          DataError: the chain that stands is broken; names the first bad entry.
        """
        path = Path(path)
        report = verify_events(path)
        if not report.ok:
            raise DataError(f"{path}: {report.reason}; move the file aside to begin a new chain")
        self.entries = list(report.entries)
        self._file = LineFile(path)
        if self._file.repaired:
            self.append("repair", file=path.name, bytes=self._file.repaired)

    @property
    def head(self) -> str:
        """sha256 of the last entry; 64 zeros when there is none."""
        return self.entries[-1]["sha256"] if self.entries else FIRST

    def append(self, kind: str, **data: Any) -> None:
        """Add an entry of a kind with JSON data, durably."""
        entry: dict[str, Any] = {
            "seq": len(self.entries) + 1,
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "kind": kind,
            "data": data,
            "prev": self.head,
        }
        entry["sha256"] = _sha256(entry)
        self._file.append(canonical(entry))
        self._file.sync()
        self.entries.append(entry)

    def of(self, kind: str, **match: Any) -> list[dict[str, Any]]:
        """The data of the entries of a kind whose fields match, oldest first."""
        return [
            entry["data"]
            for entry in self.entries
            if entry["kind"] == kind and all(entry["data"].get(name) == value for name, value in match.items())
        ]

    def close(self) -> None:
        """Close the file."""
        self._file.close()
