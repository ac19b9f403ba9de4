"""Milliseconds of functions side by side: interleaved in one process, with the spread of a thing against itself."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax


def interleaved(functions: Mapping[str, Callable[[], Any]], *, rounds: int, calls: int) -> dict[str, list[float]]:
    """Milliseconds a call of each function, once a round, the order turned round by round.

    Args:
      functions: by name; each starts its work and returns what it gives. All are compiled before they are timed.
      rounds: how many times each is timed.
      calls: how many calls are enqueued for one time.
    """
    for function in functions.values():
        jax.block_until_ready(function())
    found: dict[str, list[float]] = {name: [] for name in functions}
    names = list(functions)
    for i in range(rounds):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            began = time.perf_counter()
            out = None
            for _ in range(calls):
                out = functions[name]()
            jax.block_until_ready(out)
            found[name].append((time.perf_counter() - began) / calls * 1e3)
    return found


def summary(times: list[float]) -> dict[str, float]:
    """Median, 20th and 80th percentile, and how many."""
    ordered = sorted(times)
    last = len(ordered) - 1
    return {
        "median": statistics.median(ordered),
        "p20": ordered[round(0.2 * last)],
        "p80": ordered[round(0.8 * last)],
        "n": len(ordered),
    }


def ratio(ours: list[float], theirs: list[float], spread: float) -> float | None:
    """How many times faster ours is, round by round; None where that is inside what a thing differs from itself."""
    found = statistics.median(t / o for o, t in zip(ours, theirs, strict=True))
    return found if abs(found - 1) > spread else None


def spread(one: list[float], again: list[float]) -> float:
    """How far from 1 the ratio of a thing to itself is."""
    return abs(statistics.median(a / o for o, a in zip(one, again, strict=True)) - 1)
