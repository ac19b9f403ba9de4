"""The record of the exported decoder: the page has its rows, and what was not reached is said there."""

import json
from pathlib import Path

import numpy as np

from experiments import bench_export

ROOT = Path(__file__).parents[2]


def record() -> dict[str, dict]:
    rows = json.loads((ROOT / "docs/benchmarks/export.json").read_text())["rows"]
    return {row["what"]: row for row in rows}


def test_the_page_has_the_rows_of_the_record() -> None:
    page = (ROOT / "docs/export.md").read_text()
    for row in record().values():
        mark = "" if row["kept"] else ", not reached"
        assert f"| {row['what']} | {row['rlx']} | {row['peer']} | {row['target']}{mark} |" in page, row


def test_greedy_tokens_and_what_explains_the_errors() -> None:
    rows = record()
    for model in ("float32", "8 bits", "4 bits", "2 bits", "8 bits, float activations", "4 bits, float activations"):
        for signature in ("prefill", "decode"):
            assert rows[f"{model}, {signature}: greedy token"]["kept"]
            errors = rows[f"{model}, {signature}: error <= 1e-4"]
            assert float(errors["rlx"].partition("%")[0]) >= 98
            assert errors["kept"] or model in ("8 bits", "4 bits", "2 bits")


def test_prompts_are_padded_on_the_left() -> None:
    config = bench_export.Config(inputs=50, prompt=8)
    tokens, mask = bench_export.padded(np.arange(100), config)
    assert tokens.shape == mask.shape == (50, 8)
    assert mask[:, -1].all()
    assert (np.diff(mask.astype(int), axis=1) >= 0).all()
    assert not tokens[~mask].any()
    assert {1, 8} <= set(mask.sum(axis=1).tolist())


def test_rows_say_what_was_missed() -> None:
    errors = {"decode": np.array([1e-7, 1e-7, 1e-7, 1e-2])}
    greedy = {"decode": np.array([True] * 4)}
    found = bench_export.Compared(bytes=10, errors=errors, greedy=greedy, answers=1.0, ms={"decode": 0.5})
    first, second, third = bench_export.rows_of("8 bits", found)
    assert (first.rlx, first.peer, first.kept) == ("75.0% of inputs", "median 1e-07, largest 1e-02", False)
    assert (second.rlx, second.kept, third.rlx) == ("100.0% same", True, "100.0% same")
