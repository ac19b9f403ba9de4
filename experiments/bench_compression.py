"""Compression by number: what a context is worth and how much of it is kept, by bytes; a table, a record, a picture.

    python -m experiments.bench_compression [--only facts|topics] [--seeds N] [--json FILE] [--picture FILE]

What is kept is (L_none - L) / (L_none - L_full), all on fresh examples: L_full with the whole prefix; L_none without,
which for facts is the entropy of an answer and for text the loss of the same model that sees the near bytes alone.
Every method has the same bytes; what only evicts needs no masses and keeps an entry in 65 more.
"""

import argparse
import json
import math
import os
import platform
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments import compression
from experiments.bench_contracts import Row, table

RATIOS = (2, 4, 8, 16, 32, 64)
TASKS = ("facts", "topics")
BASELINES = ("pooling", "random", "window", "truncation")


def measure(task: str, seeds: int, examples: int) -> dict[str, Any]:
    """For each kind of stream the losses without and with the prefix, and by method `[seeds, sizes]` both numbers."""
    config = compression.FACTS if task == "facts" else compression.TOPICS
    kinds = {"facts": {"spread": 0, "bursts": 2}, "topics": {"topics": None}}[task]
    sizes = tuple(config.length // ratio for ratio in RATIOS)
    found: dict[str, Any] = {name: {"none": [], "full": [], "methods": {}} for name in kinds}
    for seed in range(seeds):
        params = compression.trained(task, config, jax.random.key(seed))
        for name, bursts in kinds.items():
            draw = compression.topics(True) if bursts is None else compression.facts(bursts)
            for method in compression.METHODS:
                ends = (config.length, 0) if method == "random" else ()
                key = jax.random.key(1000 + seed)
                values = compression.curve(params, config, draw, method, (*sizes, *ends), examples=examples, key=key)
                if ends:
                    found[name]["full"].append(values[-2][0])
                    found[name]["none"].append(values[-1][0] if bursts is None else math.log(compression.VALUES))
                found[name]["methods"].setdefault(method, []).append(values[: len(sizes)])
    entry = compression.entry_bytes(config, mass=True)
    return {"bytes": [size * entry for size in sizes], "whole": config.length * entry, "streams": found}


def kept(stream: dict[str, Any], method: str) -> np.ndarray:
    """The fractions `[seeds, ratios]` of one kind of stream."""
    none, full = (np.array(stream[name])[:, None] for name in ("none", "full"))
    return (none - np.array(stream["methods"][method])[..., 0]) / (none - full)


def rows(found: dict[str, Any]) -> list[Row]:
    """The promises; of several seeds the least."""
    made = []
    for name, stream in found["streams"].items():
        for ratio, target in ((8, 0.95), (32, 0.85)):
            at = RATIOS.index(ratio)
            ours = kept(stream, "evicting" if name == "topics" else "adaptive")[:, at].min()
            best = max(BASELINES, key=lambda method: kept(stream, method)[:, at].mean())
            peer = f"{best} {kept(stream, best)[:, at].mean():.3f}"
            what = f"{name}, {ratio}x: (L_none - L) / (L_none - L_full)"
            made.append(Row(what, f"{ours:.3f}", peer, f">= {target}", bool(ours >= target)))
        if name == "bursts":
            for ratio in (16, 32):
                adaptive, uniform = (
                    100 * np.array(stream["methods"][method])[:, RATIOS.index(ratio), 1]
                    for method in ("adaptive", "uniform")
                )
                more = (adaptive - uniform).min()
                what = f"bursts, {ratio}x: recall, adaptive less uniform"
                told = f"{adaptive.min():.1f}% and {uniform[np.argmin(adaptive - uniform)]:.1f}%"
                made.append(Row(what, f"{more:.1f} points", told, ">= 10 points", bool(more >= 10)))
    return made


def draw_picture(found: dict[str, Any], path: Path) -> None:
    """Bytes against what is kept, a panel for each kind of stream."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    titles = {"spread": "Facts, spread", "bursts": "Facts, in bursts", "topics": "English text, bytes"}
    panels = [(name, part) for part in found.values() for name in part["streams"]]
    figure, axes = pyplot.subplots(1, len(panels), figsize=(4.2 * len(panels), 4.4), sharey=True, squeeze=False)
    styles = {
        "adaptive": ("#0b3d91", "-", "o", "learned score, adaptive"),
        "uniform": ("#4c9be8", "-", "s", "learned score, uniform"),
        "evicting": ("#111111", "--", "*", "learned score, rest dropped"),
        "surprise": ("#2a9d5c", "--", "^", "surprise alone, adaptive"),
        "pooling": ("#e07b39", "-", "D", "mean pooling"),
        "random": ("#8c8c8c", ":", "v", "random eviction"),
        "window": ("#b5446e", "-", "P", "sliding window"),
        "truncation": ("#6b4c9a", "--", "X", "truncation"),
    }
    for axis, (name, part) in zip(axes[0], panels, strict=True):
        for method, (colour, line, mark, label) in styles.items():
            values = kept(part["streams"][name], method).mean(axis=0)
            axis.plot(part["bytes"], np.maximum(values, -0.1), line, color=colour, marker=mark, ms=5, label=label)
        axis.axhline(1, color="black", lw=0.8)
        axis.axhline(0, color="black", lw=0.8)
        axis.set_xscale("log", base=2)
        axis.set_xticks(part["bytes"])
        axis.set_xticklabels(
            [f"{size / 1024:.0f}\n{ratio}x" for size, ratio in zip(part["bytes"], RATIOS, strict=True)]
        )
        axis.minorticks_off()
        axis.set_title(titles[name])
        axis.set_xlabel("KiB kept of a prefix of 512 tokens; ratio")
        axis.grid(alpha=0.25)
    axes[0][0].set_ylim(-0.13, 1.07)
    axes[0][0].set_ylabel("kept of what the context is worth")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=4, frameon=False)
    figure.tight_layout(rect=(0, 0.12, 1, 1))
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def environment() -> dict[str, Any]:
    """Where the numbers come from."""
    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        **{name: version(name) for name in ("jax", "numpy", "optax")},
    }


def main() -> int:
    """Print the table; exit 1 if a target is missed."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.bench_compression", description="Compression by number."
    )
    parser.add_argument("--json", type=Path, help="write the rows, the curves and the environment here")
    parser.add_argument("--picture", type=Path, help="draw the curves here")
    parser.add_argument("--only", choices=TASKS, help="one task; the record keeps the other")
    parser.add_argument("--seeds", type=int, default=1, help="models that are trained for each task")
    parser.add_argument("--examples", type=int, default=192, help="fresh sequences a number")
    given = parser.parse_args()
    found = {task: measure(task, given.seeds, given.examples) for task in TASKS if given.only in (None, task)}
    made = [row for part in found.values() for row in rows(part)]
    print(table(made))
    if given.json and given.only and given.json.exists():
        had = json.loads(given.json.read_text())["curves"]
        found = {task: (had | found)[task] for task in TASKS if task in had | found}
    if given.json:
        every = [vars(row) for part in found.values() for row in rows(part)]
        record = {"environment": environment(), "rows": every, "curves": found}
        given.json.write_text(json.dumps(record, indent=1) + "\n")
    if given.picture:
        draw_picture(found, given.picture)
    return 0 if all(row.kept for row in made) else 1


if __name__ == "__main__":
    sys.exit(main())
