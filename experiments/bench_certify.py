"""Certificates beside intervals that are not made for looking: false certificates, widths, seconds.

    python -m experiments.bench_certify [--quick]

False certificates: p is .05, the claim is p < .05, and whoever samples looks after every sample up to n = 2000 and
stops when the claim is certified. The naive interval is Wilson's one-sided 95%.
"""

import argparse
import sys
import time
from typing import Any

import numpy as np
import scipy.stats

from rlx.contracts import certify
from rlx.contracts._certify import STAKES

ALPHA = 0.05


def false_certificates(runs: int, steps: int = 2000, rate: float = 0.05) -> tuple[float, float]:
    """The share of runs that are ever certified to have a rate below the true one: rlx, and a naive interval.

    `certify` certifies at n if and only if the capital against "the mean is at least the threshold" has reached
    2 / alpha by then, so one pass over the capital has looked at every n (`agrees` checks that on some runs).
    """
    rng = np.random.default_rng(0)
    with np.errstate(divide="ignore"):
        gains = np.log(np.maximum(1.0 - STAKES + STAKES * np.array([[1.0], [0.0]]) / (1.0 - rate), 1e-300))
    anytime = naive = 0
    n = np.arange(1, steps + 1)
    z = scipy.stats.norm.ppf(1.0 - ALPHA)
    for _ in range(runs):
        hits = rng.random(steps) < rate
        capital = np.cumsum(gains[hits.astype(int)], axis=0)
        top = capital.max(axis=1)
        most = top + np.log(np.mean(np.exp(capital - top[:, None]), axis=1))
        anytime += bool(np.any(most >= np.log(2.0 / ALPHA)))
        p = np.cumsum(hits) / n
        upper = (p + z * z / (2 * n) + z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))) / (1 + z * z / n)
        naive += bool(np.any(upper < rate))
    return anytime / runs, naive / runs


def agrees(runs: int) -> bool:
    """Whether `certify` itself, called on prefixes, certifies exactly when the capital says so."""
    rng = np.random.default_rng(1)
    for _ in range(runs):
        hits = (rng.random(400) < 0.03).astype(float)
        with np.errstate(divide="ignore"):
            gains = np.log(np.maximum(1.0 - STAKES + STAKES * (1.0 - hits[:, None]) / 0.95, 1e-300))
        capital = np.cumsum(gains, axis=0)
        most = np.log(np.mean(np.exp(capital), axis=1))
        for size in range(20, 401, 20):
            reached = bool(np.any(most[:size] >= np.log(2.0 / ALPHA)))
            if (certify(hits[:size], 0.05, ALPHA).verdict == "CERTIFIED") != reached:
                return False
    return True


def rows(*, quick: bool = False) -> list[dict[str, Any]]:
    """The rows for the benchmark of contracts."""
    runs = 500 if quick else 4000
    if not agrees(3 if quick else 20):
        raise RuntimeError("certify and the capital disagree: the shares below would not be certify's")
    anytime, naive = false_certificates(runs)
    found = [
        {
            "what": f"false certificates of p < .05 at p = .05, every n <= 2000, {runs} runs",
            "rlx": f"{100 * anytime:.1f}%",
            "peer": f"naive interval {100 * naive:.1f}%",
            "target": f"<= {100 * ALPHA:.0f}%",
            "kept": anytime <= ALPHA,
        }
    ]
    start = time.perf_counter()
    bound = certify(np.zeros(3000), 0.0037, ALPHA)
    seconds = time.perf_counter() - start
    exact = scipy.stats.binomtest(0, 3000).proportion_ci(1 - ALPHA).high
    found.append(
        {
            "what": "0 violations in 3,000 samples: bound",
            "rlx": f"{bound.upper:.5f}",
            "peer": f"Clopper-Pearson {exact:.5f}, {seconds * 1e3:.0f} ms",
            "target": "<= .0037",
            "kept": bound.upper <= 0.0037,
        }
    )
    hits = np.zeros(4096)
    hits[np.random.default_rng(0).permutation(4096)[:410]] = 1.0
    bound, one = certify(hits, 0.1, ALPHA), scipy.stats.binomtest(410, 4096).proportion_ci(1 - ALPHA)
    ratio = (bound.upper - bound.lower) / (one.high - one.low)
    found.append(
        {
            "what": "width at 410 in 4,096, looked at any time",
            "rlx": f"{bound.upper - bound.lower:.4f}",
            "peer": f"Clopper-Pearson, once: {one.high - one.low:.4f}, {ratio:.2f}x",
            "target": "<= 2x",
            "kept": ratio <= 2.0,
        }
    )
    return found


def main() -> int:
    """Print the rows; exit 1 if a target is missed."""
    parser = argparse.ArgumentParser(prog="python -m experiments.bench_certify", description="Certificates by number.")
    parser.add_argument("--quick", action="store_true", help="fewer runs")
    found = rows(quick=parser.parse_args().quick)
    for row in found:
        print(f"{'ok' if row['kept'] else 'NO'}  {row['what']}"[:80])
        print(f"    {row['rlx']:<12} {row['peer']:<42} to reach {row['target']}"[:80])
    return 0 if all(row["kept"] for row in found) else 1


if __name__ == "__main__":
    sys.exit(main())
