"""Interval bounds beside immrax's natural inclusion functions: width and soundness, operation by operation.

    python -m experiments.bench_intervals [--quick]

Each function is bounded on random boxes; then points are drawn in the boxes (corners among them) and the function is
evaluated under jit in float32. A point outside is an unsound bound. immrax (0.3.8; `pip install immrax`, which needs
the system library libcdd) computes in float32 and does not round outward; where it is missing, its columns are empty.
"""

import argparse
import importlib
import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rlx.contracts._bounds import bounds
from rlx.contracts._interval import Interval, Unsupported

SIZE = 4
_MATRIX = np.random.default_rng(7).normal(size=(SIZE, SIZE)).astype(np.float32)


def _turned(x: jax.Array) -> jax.Array:
    """The last two elements before the first two: two slices, which everybody has a rule for."""
    return jnp.concatenate([x[2:], x[:2]])


@dataclass(frozen=True)
class Case:
    """A function of x `[4]`, and where its boxes lie."""

    name: str
    fn: Callable[[jax.Array], jax.Array]
    low: float = -2.0
    high: float = 2.0


CASES = (
    Case("x + y", lambda x: x + _turned(x)),
    Case("x - y", lambda x: x - _turned(x)),
    Case("x * y", lambda x: x * _turned(x)),
    Case("x / y", lambda x: x / _turned(x), 0.5, 3.0),
    Case("-x", lambda x: -x),
    Case("abs", jnp.abs),
    Case("exp", jnp.exp),
    Case("log", jnp.log, 0.1, 5.0),
    Case("sqrt", jnp.sqrt, 0.01, 4.0),
    Case("tanh", jnp.tanh),
    Case("sin", jnp.sin, -4.0, 4.0),
    Case("cos", jnp.cos, -4.0, 4.0),
    Case("tan", jnp.tan, -1.2, 1.2),
    Case("arctan", jnp.arctan),
    Case("logistic", jax.nn.sigmoid),
    Case("x ** 2", lambda x: x**2),
    Case("x ** 3", lambda x: x**3),
    Case("x ** -1", lambda x: x**-1, 0.5, 3.0),
    Case("maximum", lambda x: jnp.maximum(x, _turned(x))),
    Case("minimum", lambda x: jnp.minimum(x, 0.25)),
    Case("relu", lambda x: jnp.maximum(x, 0.0)),
    Case("sum", lambda x: jnp.sum(x)[None]),
    Case("mean", lambda x: jnp.mean(x)[None]),
    Case("max", lambda x: jnp.max(x)[None]),
    Case("matrix product", lambda x: jnp.matmul(_MATRIX, x)),
    Case("layer", lambda x: jnp.tanh(jnp.matmul(_MATRIX, x) + 0.5)),
    Case("two layers", lambda x: jnp.matmul(_MATRIX.T, jnp.maximum(jnp.matmul(_MATRIX, x), 0.0))),
    Case("polynomial", lambda x: 1.0 + x * (2.0 - x * (0.5 + x))),
    Case("gaussian", lambda x: jnp.exp(-(x**2))),
    Case("pendulum", lambda x: jnp.sin(x) - 0.1 * _turned(x)),
    Case("log-sum-exp", lambda x: jnp.log(jnp.sum(jnp.exp(x)))[None]),
    Case("ratio", lambda x: x / (1.0 + x), 0.1, 3.0),
)


def boxes(case: Case, count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Lows and highs `[count, 4]`, from narrow to the whole range."""
    middle = rng.uniform(case.low, case.high, (count, SIZE))
    half = 0.5 * (case.high - case.low) * 10.0 ** rng.uniform(-3, 0, (count, 1))
    ends = np.clip(middle - half, case.low, case.high), np.clip(middle + half, case.low, case.high)
    return ends[0].astype(np.float32), ends[1].astype(np.float32)


def ours(case: Case) -> Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """rlx's bounds of the function."""
    closed = jax.make_jaxpr(case.fn)(jax.ShapeDtypeStruct((SIZE,), jnp.float32))

    def bound(low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        found = bounds(closed, [Interval(low.astype(np.float64), high.astype(np.float64))])[0]
        return found.low, found.high

    return bound


def theirs(case: Case) -> Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]] | None:
    """immrax's, or None where it has none."""
    if importlib.util.find_spec("immrax") is None:
        return None
    immrax: Any = importlib.import_module("immrax")
    inclusion = jax.jit(immrax.natif(case.fn))

    def bound(low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        found = inclusion(immrax.interval(jnp.asarray(low), jnp.asarray(high)))
        return np.asarray(found.lower, np.float64), np.asarray(found.upper, np.float64)

    return bound


@dataclass(frozen=True)
class Result:
    """One case: widths relative to immrax's (median and largest), and points outside of either."""

    name: str
    median: float
    largest: float
    outside: int
    immrax_outside: int
    points: int
    note: str = ""


def measure(case: Case, points: int, count: int) -> Result:
    """One case on `count` boxes with `points` points in all."""
    rng = np.random.default_rng(0)
    low, high = boxes(case, count, rng)
    each = points // count
    drawn = low[:, None] + (high - low)[:, None] * rng.random((count, each, SIZE)).astype(np.float32)
    corner = rng.random((count, each, SIZE)) < 0.5
    drawn[:, ::4] = np.where(corner, high[:, None], low[:, None])[:, ::4]
    drawn = np.clip(drawn, low[:, None], high[:, None])
    values = np.asarray(jax.jit(jax.vmap(jax.vmap(case.fn)))(drawn), np.float64)
    mine, peer, note = ours(case), theirs(case), ""
    outside = peer_outside = 0
    ratios = []
    for i in range(count):
        try:
            a, b = mine(low[i], high[i])
        except Unsupported as error:
            return Result(case.name, np.nan, np.inf, 0, 0, 0, f"no rule: {error}")
        outside += int(np.sum((values[i] < a) | (values[i] > b) | np.isnan(values[i])))
        if peer is not None:
            try:
                c, d = peer(low[i], high[i])
            except (NotImplementedError, KeyError, TypeError, AttributeError, ValueError) as error:
                peer, note = None, f"immrax: {type(error).__name__}"
                continue
            peer_outside += int(np.sum((values[i] < c) | (values[i] > d)))
            wide = d - c > 1e-3 * (1.0 + np.abs(c) + np.abs(d))  # narrower: the last place decides
            ratios.append(((b - a) / np.where(wide, d - c, 1.0))[wide & np.isfinite(d - c)])
    found = np.concatenate(ratios) if ratios else np.zeros(0)
    median, largest = (float(np.median(found)), float(found.max())) if found.size else (np.nan, np.nan)
    return Result(case.name, median, largest, outside, peer_outside, values.size, note)


def results(*, quick: bool = False) -> list[Result]:
    """All cases: 100,000 points together, or each if not quick."""
    points, count = (4_000, 20) if quick else (100_000, 100)
    return [measure(case, points, count) for case in CASES]


def rows(*, quick: bool = False) -> list[dict[str, Any]]:
    """The rows for the benchmark of contracts."""
    found = results(quick=quick)
    outside, points = sum(r.outside for r in found), sum(r.points for r in found)
    unsupported = [r.name for r in found if np.isinf(r.largest)]
    made = [
        {
            "what": f"intervals: points outside, {len(found)} functions",
            "rlx": f"{outside} of {points:.3g}",
            "peer": f"immrax {sum(r.immrax_outside for r in found)}",
            "target": "0",
            "kept": outside == 0 and not unsupported,
        }
    ]
    shared = [r for r in found if np.isfinite(r.largest)]
    if shared:
        worst = max(shared, key=lambda r: r.largest)
        made.append(
            {
                "what": f"intervals: width beside immrax's, {len(shared)} shared functions",
                "rlx": f"{worst.largest:.3f}x",
                "peer": f"at most, in {worst.name}",
                "target": "<= 1.5x",
                "kept": worst.largest <= 1.5,
            }
        )
    return made


def main() -> int:
    """Print the table; exit 1 if a bound is unsound or wider than it should be."""
    parser = argparse.ArgumentParser(prog="python -m experiments.bench_intervals", description="Intervals by number.")
    parser.add_argument("--quick", action="store_true", help="fewer points")
    quick = parser.parse_args().quick
    print(f"{'':<16}{'width / immrax':>18}{'points outside':>22}")
    print(f"{'function':<16}{'median':>9}{'largest':>9}{'rlx':>11}{'immrax':>11}")
    for r in results(quick=quick):
        print(f"{r.name:<16}{r.median:>9.4f}{r.largest:>9.4f}{r.outside:>11}{r.immrax_outside:>11}  {r.note}"[:80])
    made = rows(quick=True) if quick else rows()
    for row in made:
        print(
            f"{'ok' if row['kept'] else 'NO'}  {row['what']}: {row['rlx']} ({row['peer']}), to reach {row['target']}"[
                :80
            ]
        )
    return 0 if all(row["kept"] for row in made) else 1


if __name__ == "__main__":
    sys.exit(main())
