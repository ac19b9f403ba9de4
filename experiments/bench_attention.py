"""Attention by number: exactness, causality, work, memory, a million tokens, recall.

    python -m experiments.bench_attention [--quick] [--only GROUP ...] [--json FILE]

Work is counted in the jaxpr of a gradient: the multiplications and additions of every dot product, times the trips of
the loops that it is in. Memory is what the compiler says that the program needs besides its arguments, except for the
million tokens forward, which are run in a process of their own. `--quick` leaves out that run and the training;
`--only recall bytes` runs those groups of rows.
"""

import argparse
import json
import math
import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import jaxprs_in_params

from experiments import byte_lm, long_context, recall
from experiments.bench_contracts import Row, table
from rlx import attention

BLOCK, BEAM = 64, 8
LENGTHS = tuple(2**power for power in range(12, 21, 2))


def arrays(length: int, seed: int = 0) -> tuple[jax.Array, ...]:
    """Queries of 4 heads, keys and values of 2, slots of 4 summaries."""
    k = jax.random.split(jax.random.key(seed), 4)
    shapes = ((length, 4, 32), (length, 2, 32), (length, 2, 32), (4, 2, 32))
    return tuple(jax.random.normal(one, shape) for one, shape in zip(k, shapes, strict=True))


def beside_dense() -> tuple[float, float]:
    """The largest difference from dense attention when everything is opened: of results, of gradients."""
    q, k, v, slots = arrays(1000)

    def ours(q: Any, k: Any, v: Any) -> jax.Array:
        return attention.hierarchical_attention(q, k, v, slots, block=16, beam=64)

    def dense(q: Any, k: Any, v: Any) -> jax.Array:
        return jax.nn.dot_product_attention(q, k, v, is_causal=True)

    apart = []
    for fn in (ours, dense):
        value = jax.jit(fn)(q, k, v)
        gradient = jax.jit(jax.grad(lambda *x, fn=fn: jnp.sum(jnp.sin(fn(*x))), argnums=(0, 1, 2)))(q, k, v)
        apart.append((value, gradient))
    differences = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), *apart)
    return differences[0], max(differences[1])


def changed_bits(tries: int) -> int:
    """How many outputs before a changed token differ in any bit, over changed tokens everywhere."""
    q, k, v, slots = arrays(300)
    run = jax.jit(partial(attention.hierarchical_attention, block=16, beam=2))
    base, count = run(q, k, v, slots), 0
    for t in np.linspace(1, 299, tries).astype(int):
        other = run(q.at[t].add(9.0), k.at[t].multiply(-9.0), v.at[t].add(9.0), slots)
        count += int(jnp.sum(other[:t] != base[:t]))
    return count


def cached() -> float:
    """The largest difference of token by token from a cache from the whole."""
    q, k, v, slots = arrays(400)
    whole = jax.jit(partial(attention.hierarchical_attention, block=16, beam=2))(q, k, v, slots)
    cache = attention.hierarchical_cache(k[:50], v[:50], slots, capacity=512, block=16)
    out, _ = jax.jit(partial(attention.hierarchical_step, beam=2))(q[50:], k[50:], v[50:], cache, slots)
    return float(jnp.abs(out - whole[50:]).max())


def work(jaxpr: Any) -> int:
    """Floating-point operations of all dot products, those in loops as often as they run."""
    total = 0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            (contract, _), _ = eqn.params["dimension_numbers"]
            depth = math.prod(eqn.invars[0].aval.shape[axis] for axis in contract)
            total += 2 * depth * math.prod(eqn.outvars[0].aval.shape)
        times = eqn.params["length"] if eqn.primitive.name == "scan" else 1
        total += times * sum(work(getattr(sub, "jaxpr", sub)) for sub in jaxprs_in_params(eqn.params))
    return total


def gradient_work(fn: Callable[..., jax.Array], length: int) -> int:
    """`work` of the gradient of a sum."""
    shapes = [jax.ShapeDtypeStruct((length, 1, 64), jnp.float32)] * 3
    return work(jax.jit(jax.grad(lambda *x: jnp.sum(fn(*x)), argnums=(0, 1, 2))).trace(*shapes).jaxpr)


def slope(sizes: Any, amounts: Any) -> float:
    """Of the line through the logarithms, least squares."""
    return float(np.polyfit(np.log(sizes), np.log(amounts), 1)[0])


def temporary(fn: Callable[..., jax.Array], length: int) -> int:
    """Temporary bytes of a compiled gradient, one head of 64."""
    shapes = [jax.ShapeDtypeStruct((length, 1, 64), jnp.float32)] * 3
    step = jax.jit(jax.grad(lambda *x: jnp.sum(fn(*x) ** 2), argnums=(0, 1, 2)))
    memory: Any = step.lower(*shapes).compile().memory_analysis()
    return memory.temp_size_in_bytes


def forward_alone(length: int) -> tuple[float, float]:
    """Seconds and GiB of the small model forward, in a process of its own."""
    command = [sys.executable, "-m", "experiments.long_context", "--run", "--length", str(length)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = re.search(r"forward: (\d+) s, at most ([\d.]+) GiB", done.stdout)
    if found is None:
        raise RuntimeError(f"no result in {done.stdout!r}")
    return float(found[1]), float(found[2])


def exact_rows(quick: bool) -> list[Row]:
    """What is equal to what."""
    value, gradient = beside_dense()
    bits, apart = changed_bits(10 if quick else 100), cached()
    return [
        Row("everything opened, float32: from jax.nn's dense", f"{value:.1e}", "-", "<= 1e-5", value <= 1e-5),
        Row("its gradients", f"{gradient:.1e}", "-", "<= 1e-4", gradient <= 1e-4),
        Row("outputs before a changed token that change by a bit", str(bits), "-", "0", bits == 0),
        Row("cached, token by token: from the whole", f"{apart:.1e}", "-", "<= 1e-5", apart <= 1e-5),
    ]


def work_rows(quick: bool) -> list[Row]:
    """How work and memory grow."""
    lengths = LENGTHS

    def ours(q: Any, k: Any, v: Any) -> jax.Array:
        return attention.hierarchical_attention(q, k, v, block=BLOCK, beam=BEAM)

    def exact(q: Any, k: Any, v: Any) -> jax.Array:
        return attention.attention(q, k, v, causal=True)

    def plain(q: Any, k: Any, v: Any) -> jax.Array:
        return jax.nn.dot_product_attention(q, k, v, is_causal=True)

    hierarchical, dense = ([gradient_work(fn, length) for length in lengths] for fn in (ours, exact))
    grows, peer = slope(lengths, hierarchical), slope(lengths, dense)
    what = f"log FLOPs by log T, {lengths[0]:,} to {lengths[-1]:,}: slope"
    sizes = (2048, 4096, 8192)
    ours_bytes, exact_bytes, plain_bytes = ([temporary(fn, size) for size in sizes] for fn in (ours, exact, plain))
    chunked, beside = slope(sizes[1:], exact_bytes[1:]), slope(sizes[1:], plain_bytes[1:])
    tree = slope(sizes[1:], ours_bytes[1:])
    ratio = dense[-1] / hierarchical[-1]
    return [
        Row(what, f"{grows:.3f}", f"dense {peer:.3f}", "<= 1.15", grows <= 1.15),
        Row(f"FLOPs at {lengths[-1]:,}: dense over hierarchical", f"{ratio:.0f}x", "-", "> 1x", ratio > 1),
        Row("attention: temporary bytes by T, slope", f"{chunked:.2f}", f"jax.nn {beside:.2f}", "<= 1", chunked <= 1),
        Row("hierarchical: temporary bytes by T, slope", f"{tree:.2f}", f"jax.nn {beside:.2f}", "<= 1", tree <= 1),
    ]


def million_rows(quick: bool) -> list[Row]:
    """A million tokens: a training step compiled, a forward pass run."""
    found = long_context.step_bytes(long_context.LARGE, 2**20)
    total = sum(found.values()) / 1e9
    large = long_context.LARGE
    what = f"1M-token step, d={large.width}, {large.layers} layers: arguments + temporary"
    rows = [Row(what, f"{total:.1f} GB", f"arguments {found['arguments'] / 1e9:.1f} GB", "<= 40 GB", total <= 40)]
    if not quick:
        seconds, most = forward_alone(2**20)
        rows.append(
            Row("1M tokens forward, small model", f"{most:.1f} GiB", f"{seconds:.0f} s", "<= 20 GiB", most <= 20)
        )
    return rows


def recall_rows(quick: bool) -> list[Row]:
    """Small models trained here."""
    if quick:
        return []
    found = {}
    names: tuple[Literal["dense", "hierarchical"], ...] = ("dense", "hierarchical")
    for name in names:
        for task, measure in (("recall", recall.study), ("needle", recall.needle)):
            found[name, task] = measure(replace(recall.CONFIGS[task], attention=name), jax.random.key(0))
    ours, peer = (found[name, "recall"]["accuracy"] for name in ("hierarchical", "dense"))
    far, beside = (found[name, "needle"]["accuracy_8x"] for name in ("hierarchical", "dense"))
    return [
        Row(
            f"associative recall, {recall.PAIRS} pairs",
            f"{ours:.1%}",
            f"dense {peer:.1%}",
            ">= 99%",
            ours >= 0.99,
        ),
        Row("needle at 8x the training length", f"{far:.1%}", f"dense {beside:.1%}", ">= 99%", far >= 0.99),
    ]


def byte_rows(quick: bool) -> list[Row]:
    """A model of bytes, trained here with both kinds."""
    if quick:
        return []
    found = byte_lm.compare(byte_lm.CONFIG, 0)
    return [
        Row(
            "byte model: bits a byte above dense, held out",
            f"{found['above']:.4f} +- {found['within']:.4f}",
            f"dense {found['dense']:.3f}",
            "<= 0.02",
            found["above"] <= 0.02,
        )
    ]


GROUPS = {
    "exact": exact_rows,
    "work": work_rows,
    "million": million_rows,
    "recall": recall_rows,
    "bytes": byte_rows,
}


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
    parser = argparse.ArgumentParser(prog="python -m experiments.bench_attention", description="Attention by number.")
    parser.add_argument("--json", type=Path, help="write the rows and the environment here")
    parser.add_argument("--quick", action="store_true", help="no training, no run of a million tokens")
    parser.add_argument("--only", nargs="+", choices=tuple(GROUPS), default=tuple(GROUPS), help="groups of rows")
    given = parser.parse_args()
    rows = []
    for name, measure in GROUPS.items():
        if name in given.only:
            rows += measure(given.quick)
    print(table(rows))
    if given.json:
        record = {"environment": environment(), "rows": [vars(row) for row in rows]}
        given.json.write_text(json.dumps(record, indent=1) + "\n")
    return 0 if all(row.kept for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
