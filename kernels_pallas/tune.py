"""Find the best configuration of each kernel on this device, and write it into the table that `auto` reads.

    python -m kernels_pallas.tune [--op NAME] [--table FILE]

Never runs by itself. A kernel that differs from XLA by less than XLA from itself gets the ratio 1, which `auto` does
not take.
"""

import argparse
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
import numpy as np

from kernels_pallas import _timing
from kernels_pallas._case import Case
from kernels_pallas._dispatch import device
from kernels_pallas._table import TABLE, Entry, bucket, write
from kernels_pallas.bench import cases, difference

WRONG = 2e-2
"""Relative error beside XLA from which on a configuration counts as wrong: bfloat16 has 4e-3."""


def tune(case: Case, *, rounds: int, calls: int, record: str) -> tuple[Entry | None, Mapping[str, str]]:
    """The best configuration of a case, or None; and why a configuration was left out, by its text."""
    if case.tuned is None or not case.configs:
        return None, {}
    arguments = case.arguments()
    other = jax.jit(case.implementations[case.fallback]).lower(*arguments).compile()
    expected = jax.tree.map(np.asarray, other(*arguments))
    left_out: dict[str, str] = {}
    able: dict[str, Any] = {}
    for config in case.configs:
        try:
            way = jax.jit(case.tuned(config)).lower(*arguments).compile()
            found = jax.tree.map(np.asarray, way(*arguments))
        except (NotImplementedError, ValueError, jax.errors.JaxRuntimeError) as error:
            left_out[str(config)] = str(error).splitlines()[0]
            continue
        if not (wrong := difference(found, expected)) < WRONG:
            left_out[str(config)] = f"differs from XLA by {wrong:.1e}"
            continue
        able[str(config)] = way
    if not able:
        return None, left_out
    running = {name: lambda way=way: way(*arguments) for name, way in able.items()}
    theirs = {"other": lambda: other(*arguments), "other again": lambda: other(*arguments)}
    times = _timing.interleaved(running | theirs, rounds=rounds, calls=calls)
    best = min(able, key=lambda name: _timing.summary(times[name])["median"])
    ratio = _timing.ratio(times[best], times["other"], _timing.spread(times["other"], times["other again"]))
    return Entry(
        operation=case.op,
        device=device(),
        dtype=case.dtype,
        bucket=bucket(case.shape),
        implementation="mosaic_gpu",
        direction=case.direction,
        config=next(asdict(config) for config in case.configs if str(config) == best),
        ratio=1.0 if ratio is None else ratio,
        record=record,
    ), left_out


def main() -> None:
    """Tune what can be tuned here, print it, and write the table."""
    parser = argparse.ArgumentParser(prog="python -m kernels_pallas.tune", description=__doc__)
    parser.add_argument("--op", help="only this operation")
    parser.add_argument("--table", type=Path, default=TABLE)
    parser.add_argument("--record", default="", help="the file that keeps this run's times")
    parser.add_argument("--rounds", type=int, default=15)
    flags = parser.parse_args()
    large = jax.default_backend() == "gpu"
    chosen = [case for case in cases(large) if flags.op in (None, case.op)]
    if not chosen:
        sys.exit(f"--op: {flags.op!r} is not one of {', '.join(sorted({case.op for case in cases(large)}))}")
    rows = []
    for case in chosen:
        row, left_out = tune(case, rounds=flags.rounds, calls=5 if large else 1, record=flags.record)
        print(f"{case.op} {case.direction}: {'nothing can be tuned here' if row is None else row.config}")
        if row is not None:
            print(f"  {row.ratio:.2f} times as fast as XLA")
            rows.append(row)
        for config, reason in left_out.items():
            print(f"  left out {config}: {reason}")
    if rows:
        write(flags.table, rows)


if __name__ == "__main__":
    main()
