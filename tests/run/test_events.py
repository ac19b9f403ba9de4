"""The chain of events: a changed, moved, removed or cut entry is found."""

import json
from pathlib import Path
from typing import Any

import pytest

from rlx.run import DataError, EventLog, read_metrics, verify_events


@pytest.fixture
def chain(tmp_path: Path) -> Path:
    log = EventLog(tmp_path / "events.jsonl")
    for index in range(5):
        log.append("thing", index=index, text="é")
    log.close()
    return tmp_path / "events.jsonl"


def lines(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines(keepends=True)


def test_whole(chain: Path) -> None:
    report = verify_events(chain)
    assert (report.ok, report.count, report.bad, report.reason) == (True, 5, None, "")
    assert [entry["data"]["index"] for entry in report.entries] == list(range(5))
    assert report.entries[0]["prev"] == "0" * 64


@pytest.mark.parametrize("bad", range(1, 6))
def test_a_changed_entry_is_named(chain: Path, bad: int) -> None:
    entries = lines(chain)
    entries[bad - 1] = entries[bad - 1].replace(f'"index":{bad - 1}'.encode(), b'"index":9')
    chain.write_bytes(b"".join(entries))
    report = verify_events(chain)
    assert (report.ok, report.bad, report.count) == (False, bad, bad - 1)
    assert report.reason == f"the content of entry {bad} is not what its sha256 says"
    with pytest.raises(DataError, match=f"entry {bad}"):
        EventLog(chain)


def forge(entry: bytes) -> bytes:
    """An entry that was changed, with its own sha256 made to fit."""
    from rlx.run._events import _sha256
    from rlx.run._files import canonical

    value = json.loads(entry)
    value["data"]["index"] = 9
    return canonical({**value, "sha256": _sha256(value)}) + b"\n"


@pytest.mark.parametrize(
    ("change", "bad"),
    [
        (lambda e: [e[0], forge(e[1]), *e[2:]], 3),
        (lambda e: [e[0], *e[2:]], 2),
        (lambda e: [e[1], e[0], *e[2:]], 1),
        (lambda e: [*e[:2], e[1], *e[2:]], 3),
        (lambda e: [e[0], b"{}\n", *e[2:]], 2),
        (lambda e: [e[0], b"not json\n", *e[2:]], 2),
        (lambda e: [e[0], e[1].replace(b":", b": ", 1), *e[2:]], 2),
    ],
    ids=["forged", "removed", "swapped", "repeated", "emptied", "garbage", "spelled"],
)
def test_tampering_is_found(chain: Path, change: Any, bad: int) -> None:
    chain.write_bytes(b"".join(change(lines(chain))))
    assert verify_events(chain).bad == bad


def test_a_cut_end_shows_against_a_known_head(chain: Path) -> None:
    head = verify_events(chain).head
    chain.write_bytes(b"".join(lines(chain)[:3]))
    assert verify_events(chain).ok
    report = verify_events(chain, head=head)
    assert not report.ok
    assert report.bad is None
    assert "ends at entry 3 without the known head" in report.reason


def test_a_half_written_entry_is_cut_and_said(chain: Path) -> None:
    chain.write_bytes(chain.read_bytes() + b'{"data":{"ind')
    assert verify_events(chain).ok
    assert "half-written" in verify_events(chain).reason
    log = EventLog(chain)
    assert log.entries[-1]["kind"] == "repair"
    assert log.of("repair") == [{"file": "events.jsonl", "bytes": 13}]
    log.close()
    assert verify_events(chain).count == 6
    assert verify_events(chain).reason == ""


def test_of_matches_fields(chain: Path) -> None:
    log = EventLog(chain)
    assert log.of("thing", index=3) == [{"index": 3, "text": "é"}]
    assert log.of("other") == []
    log.close()


def test_a_damaged_line_of_metrics_is_named(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"stage":"a","step":1}\n{"stage":\n{"stage":"a"')
    with pytest.raises(DataError, match=r"metrics.jsonl, line 2: "):
        read_metrics(tmp_path)
