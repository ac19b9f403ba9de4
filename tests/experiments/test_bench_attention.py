"""The record of attention: what it says was reached, and the page has its numbers."""

import json
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_row_of_the_record_is_kept_and_on_the_page() -> None:
    rows = json.loads((ROOT / "docs/benchmarks/attention.json").read_text())["rows"]
    page = (ROOT / "docs/attention.md").read_text()
    assert [row["what"] for row in rows if not row["kept"]] == []
    assert len(rows) == 9
    for row in rows:
        if row["what"].startswith(("everything opened", "cached", "log FLOPs")):
            assert row["rlx"] in page


def test_every_row_of_what_was_trained_is_kept_and_on_the_page() -> None:
    rows = json.loads((ROOT / "docs/benchmarks/attention_trained.json").read_text())["rows"]
    page = (ROOT / "docs/attention.md").read_text()
    assert [row["what"] for row in rows if not row["kept"]] == []
    assert len(rows) == 3
    for row in rows:
        assert f"| {row['what']} | {row['rlx']} | {row['peer'].removeprefix('dense ')} | {row['target']} |" in page
