"""Contracts beside what a careful person would write by hand: every number in one run, ratios not seconds.

    python -m experiments.bench_contracts [--json FILE] [--quick]

The contract has 20 terms of one score each, four stakeholders of five terms, and four constraints (two Expect, a Chance
and a CVaR). By hand it is one jitted function of the same arrays with the same outputs. Times are the least of many
rounds, the two sides in turn, after compilation; memory is what XLA says that the compiled program needs besides its
arguments. On two shared cores the time ratios vary by a tenth from run to run.
"""

import argparse
import importlib.util
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rlx import contracts


@dataclass(frozen=True)
class Config:
    """What is measured."""

    batch: int = 65_536
    terms: int = 20
    people: int = 4
    rounds: int = 60
    calls: int = 2_000
    entries: int = 100_000
    quick: bool = False


@dataclass(frozen=True)
class Row:
    """One promise and its number.

    Attributes:
      what: what is measured.
      rlx, peer: as text, with units.
      target: as text.
      kept: whether the target is reached.
    """

    what: str
    rlx: str
    peer: str
    target: str
    kept: bool


SHAPES: tuple[Callable[[jax.Array], jax.Array], ...] = (
    jnp.tanh,
    jax.nn.sigmoid,
    lambda x: jnp.clip(x, -0.5, 0.5),
    lambda x: x * x,
    lambda x: jnp.exp(-jnp.abs(x)),
)


def scores(config: Config, size: int) -> dict[str, jax.Array]:
    """One score `[B]` in [-1, 1] a term."""
    rng = np.random.default_rng(0)
    return {f"s{i}": jnp.asarray(rng.uniform(-1, 1, size), jnp.float32) for i in range(config.terms)}


def contract(config: Config) -> contracts.Contract:
    """The contract that is measured."""
    terms = []
    for i in range(config.terms):
        shape = SHAPES[i % len(SHAPES)]
        terms.append(contracts.Term(f"t{i}", lambda b, i=i, f=shape: f(b[f"s{i}"]), range=(-1.0, 1.0), unit="score"))
    each = config.terms // config.people
    people = tuple(
        contracts.Stakeholder(
            f"p{k}", {f"t{i}": 0.1 * (i + 1) for i in range(k * each, (k + 1) * each)}, weight=1.0 + k
        )
        for k in range(config.people)
    )
    return contracts.Contract(
        "bench",
        terms=tuple(terms),
        stakeholders=people,
        constraints=(
            contracts.Expect("t0") <= 0.5,
            contracts.Chance(terms[1] > 0.6) <= 0.25,
            contracts.Expect("t2") >= -0.25,
            contracts.CVaR("t3", 0.9, at=0.75) <= 0.95,
        ),
        signals={f"s{i}": contracts.Signal("B", "float32", (-1.0, 1.0)) for i in range(config.terms)},
    )


def by_hand(config: Config) -> Callable[[Any, Any], Any]:
    """The same formula, written out."""
    each = config.terms // config.people

    def reward(params: Any, batch: Any) -> Any:
        x = [SHAPES[i % len(SHAPES)](batch[f"s{i}"]) for i in range(config.terms)]
        utility, weights, levels = params["utility"], params["weights"], params["levels"]
        people = [sum(utility[k, i] * x[i] for i in range(k * each, (k + 1) * each)) for k in range(config.people)]
        tail = levels[2] + jnp.maximum(x[3] - levels[2], 0.0) / (1.0 - levels[1])
        costs = [x[0], (x[1] > levels[0]).astype(jnp.float32), -x[2], tail]
        total: Any = sum(weights[k] * u for k, u in enumerate(people))
        total = total - sum(params["multipliers"][m] * (c - params["thresholds"][m]) for m, c in enumerate(costs))
        cost = jnp.stack(costs, axis=-1)
        margin = params["thresholds"][None] - cost
        terms = {f"t{i}": value for i, value in enumerate(x)}
        return contracts.RewardOut(total, None, terms, jnp.stack(people, axis=-1), cost, margin < 0, margin)

    return reward


def fastest(functions: dict[str, Callable[[], Any]], rounds: int, calls: int = 1) -> dict[str, float]:
    """The least seconds a call of each, in turn."""
    best = dict.fromkeys(functions, float("inf"))
    for _ in range(rounds):
        for name, function in functions.items():
            start = time.perf_counter()
            for _ in range(calls - 1):
                function()
            jax.block_until_ready(function())
            best[name] = min(best[name], (time.perf_counter() - start) / calls)
    return best


def needed(function: Callable[..., Any], *arguments: Any) -> int:
    """Bytes of results and temporaries of the compiled function."""
    stats: Any = jax.jit(function).lower(*arguments).compile().memory_analysis()
    return stats.output_size_in_bytes + stats.temp_size_in_bytes


def beside(what: str, ours: float, by_hand: float, unit: str) -> Row:
    """A row that compares with the function written by hand."""
    ratio = ours / by_hand
    return Row(what, f"{ours:.4g} {unit}", f"by hand {by_hand:.4g} {unit}, {ratio:.2f}x", "<= 1.10x", ratio <= 1.10)


def compiled(config: Config) -> list[Row]:
    """Time and memory of the reward at a large batch, dispatch at a small one."""
    reward, hand = contracts.compile(contract(config)), by_hand(config)
    params = reward.params | {"multipliers": jnp.array([0.1, 0.2, 0.3, 0.4])}
    large, small = scores(config, config.batch), scores(config, 4)
    for ours, theirs in zip(jax.tree.leaves(reward(params, large)), jax.tree.leaves(hand(params, large)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    rows = []
    for what, pick in (("all outputs", lambda out: out), ("total only", lambda out: out.total)):
        ours = jax.jit(lambda p, b, pick=pick: pick(reward(p, b)))
        theirs = jax.jit(lambda p, b, pick=pick: pick(hand(p, b)))
        jax.block_until_ready((ours(params, large), theirs(params, large)))
        found = fastest(
            {"rlx": lambda f=ours: f(params, large), "hand": lambda f=theirs: f(params, large)}, config.rounds
        )
        size = f"20 terms, B={config.batch}, {what}"
        rows.append(beside(f"{size}: time", found["rlx"] * 1e6, found["hand"] * 1e6, "us"))
        mine, peers = (needed(f, params, large) / 1e6 for f in (ours, theirs))
        rows.append(beside(f"{size}: memory", mine, peers, "MB"))
    bare = jax.jit(hand)
    jax.block_until_ready((reward(params, small), bare(params, small)))
    found = fastest({"rlx": lambda: reward(params, small), "bare": lambda: bare(params, small)}, 9, config.calls)
    ratio = found["rlx"] / found["bare"]
    told = f"jitted {found['bare'] * 1e6:.1f} us, {ratio:.2f}x"
    rows.append(Row("one call, B=4", f"{found['rlx'] * 1e6:.1f} us", told, "<= 1.25x", ratio <= 1.25))
    return rows


def started() -> list[Row]:
    """Compile, verify and hash a contract that nobody has seen."""
    config = Config()
    seconds = []
    for _ in range(3):
        jax.clear_caches()
        start = time.perf_counter()
        fresh = contract(config)
        reward = contracts.compile(fresh)
        jax.block_until_ready(reward(reward.params, scores(config, 4)))
        checks = contracts.verify(fresh)
        seconds.append(time.perf_counter() - start)
    refuted = sum(check.verdict == "REFUTED" for check in checks)
    told = f"{len(checks)} checks, {refuted} refuted"
    rows = [Row("compile, first call, verify", f"{max(seconds):.2f} s", told, "<= 1.5 s", max(seconds) <= 1.5)]
    start = time.perf_counter()
    contracts.digest(fresh)
    first = time.perf_counter() - start
    again = fastest({"hash": lambda: contracts.digest(fresh)}, 50)["hash"]
    told = f"first time {first * 1e3:.0f} ms"
    return [*rows, Row("hash", f"{again * 1e3:.2f} ms", told, "<= 1 ms", again <= 1e-3)]


def traced() -> list[Row]:
    """How often new values trace anew."""
    config, traces = Config(), []
    reward = contracts.compile(contract(config))
    batch = scores(config, 4)

    @jax.jit
    def step(params: Any) -> jax.Array:
        traces.append(1)
        return reward(params, batch).total

    step(reward.params)
    for i in range(1, 101):
        step(jax.tree.map(lambda x, i=i: x * (1.0 + 0.01 * i), reward.params))
    extra = len(traces) - 1
    return [Row("retraces in 100 new values", str(extra), "-", "0", extra == 0)]


def logged(config: Config) -> list[Row]:
    """An audit log of many entries: time to verify, length of a proof."""
    log = contracts.AuditLog()
    for i in range(config.entries):
        log.append({"step": i, "verdict": "CERTIFIED", "contract": f"{i:064x}"})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "audit.jsonl"
        log.save(path)
        start = time.perf_counter()
        report = contracts.verify_log(path)
        seconds = time.perf_counter() - start
    if not report.ok:
        raise RuntimeError(f"the log that was just written does not verify: {report}")
    longest = max(len(log.inclusion_proof(i)) for i in range(0, config.entries, max(config.entries // 997, 1)))
    return [
        Row(f"{config.entries} log entries verified", f"{seconds:.2f} s", "-", "<= 2 s", seconds <= 2.0),
        Row("an inclusion proof", f"{longest} hashes", "log2 n = 16.6", "<= 17", longest <= 17),
    ]


def measure(config: Config) -> list[Row]:
    """Every row."""
    from . import bench_certify, bench_intervals

    rows = [*started(), *compiled(config), *traced(), *logged(config)]
    rows += [Row(**row) for row in bench_intervals.rows(quick=config.quick)]
    return rows + [Row(**row) for row in bench_certify.rows(quick=config.quick)]


def environment() -> dict[str, Any]:
    """What the numbers depend on."""
    peer = "immrax" if importlib.util.find_spec("immrax") else None
    versions = {name: version(name) for name in ("jax", "numpy", "msgspec", "rfc8785", *([peer] if peer else []))}
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"python": platform.python_version(), "machine": platform.machine(), "cores": cores, **versions}


def table(rows: list[Row]) -> str:
    """Text of at most 80 columns, two lines a row."""
    lines = []
    for row in rows:
        mark = "ok" if row.kept else "NO"
        lines.append(f"{mark}  {row.what}"[:80])
        lines.append(f"    {row.rlx:<16} {row.peer:<38} to reach {row.target}"[:80])
    return "\n".join(lines)


def main() -> int:
    """Print the table; exit 1 if a target is missed."""
    parser = argparse.ArgumentParser(prog="python -m experiments.bench_contracts", description="Contracts by number.")
    parser.add_argument("--json", type=Path, help="write the rows and the environment here")
    parser.add_argument("--quick", action="store_true", help="smaller samples, less than a minute")
    given = parser.parse_args()
    config = Config(rounds=15, calls=200, entries=10_000, quick=True) if given.quick else Config()
    rows = measure(config)
    print(table(rows))
    if given.json:
        record = {"environment": environment(), "rows": [vars(row) for row in rows]}
        given.json.write_text(json.dumps(record, indent=1) + "\n")
    return 0 if all(row.kept for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
