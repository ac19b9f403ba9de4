"""The benchmark compares the same formula, its untimed rows hold, and the README has the record's numbers."""

import json
from pathlib import Path

import jax
import numpy as np

from experiments import bench_certify, bench_contracts
from rlx import contracts

ROOT = Path(__file__).parents[2]
CONFIG = bench_contracts.Config(batch=64, rounds=1, calls=1, entries=300, quick=True)


def test_what_is_written_by_hand_is_the_contract():
    reward, hand = contracts.compile(bench_contracts.contract(CONFIG)), bench_contracts.by_hand(CONFIG)
    params = reward.params | {"multipliers": jax.numpy.linspace(0.1, 0.4, 4)}
    batch = bench_contracts.scores(CONFIG, 64)
    for ours, theirs in zip(jax.tree.leaves(reward(params, batch)), jax.tree.leaves(hand(params, batch)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_rows_that_no_clock_decides():
    rows = [*bench_contracts.compiled(CONFIG), *bench_contracts.traced(), *bench_contracts.logged(CONFIG)]
    kept = {row.what: row.kept for row in rows}
    assert [kept[what] for what in kept if "memory" in what] == [True, True]
    assert kept["retraces in 100 new values"]
    assert kept["an inclusion proof"]
    assert max(map(len, bench_contracts.table(rows).splitlines())) <= 80


def test_false_certificates():
    assert bench_certify.agrees(2)
    anytime, naive = bench_certify.false_certificates(300)
    assert anytime <= 0.05 < naive


def test_the_readme_has_the_numbers_of_the_record():
    rows = json.loads((ROOT / "docs/benchmarks/contracts.json").read_text())["rows"]
    readme = (ROOT / "README.md").read_text()
    for row in rows:
        assert f"| {row['what']} | {row['rlx']} | {row['peer']} | {row['target']} |" in readme
