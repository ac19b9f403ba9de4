"""Time every operation beside its peers, and write the record.

    python -m kernels_pallas.bench [--out FILE]

Values are checked first. On a GPU the sizes are those of language models, the peers XLA, cuDNN and jax's own; on a CPU
smaller ones, and XLA alone. A ratio that is inside what a thing differs from itself in this run is no ratio.
"""

import argparse
import json
import platform
import shutil
import subprocess
import textwrap
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kernels_pallas import _timing
from kernels_pallas._case import Case
from kernels_pallas.add_norm import bench as add_norm
from kernels_pallas.attention import bench as attention
from kernels_pallas.block_sparse_attention import bench as block_sparse_attention
from kernels_pallas.linear_logprob import bench as linear_logprob
from kernels_pallas.lora_matmul import bench as lora_matmul
from kernels_pallas.lowbit_matmul import bench as lowbit_matmul
from kernels_pallas.matmul_topk import bench as matmul_topk
from kernels_pallas.ssim_window import bench as ssim_window

SCHEMA = 1
OPERATIONS = (
    linear_logprob,
    block_sparse_attention,
    attention,
    matmul_topk,
    lowbit_matmul,
    lora_matmul,
    add_norm,
    ssim_window,
)


def cases(large: bool) -> Iterator[Case]:
    """Of every operation."""
    for operation in OPERATIONS:
        yield from operation.cases(large)


def environment() -> dict[str, Any]:
    """What the numbers depend on."""
    device = jax.devices()[0]
    return {
        "schema": SCHEMA,
        "commit": _said("git", "rev-parse", "HEAD"),
        "dirty": bool(_said("git", "status", "--porcelain")),
        "device_kind": device.device_kind,
        "backend": jax.default_backend(),
        "driver": _said("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "jaxlib": metadata.version("jaxlib"),
        "cudnn": next((m.version for m in metadata.distributions() if "cudnn" in (m.name or "").lower()), None),
    }


def ceilings(large: bool) -> dict[str, float]:
    """What the device does at best, measured now: a product of square matrices, and a copy."""
    side, dtype = (8192, jnp.bfloat16) if large else (1024, jnp.float32)
    a = jnp.ones((side, side), dtype)
    long = jnp.ones((2**29 if large else 2**24,), jnp.float32)
    functions = {"product": jax.jit(jnp.matmul), "copy": jax.jit(lambda x: x + 1)}
    times = _timing.interleaved(
        {"product": lambda: functions["product"](a, a), "copy": lambda: functions["copy"](long)},
        rounds=10,
        calls=5,
    )
    return {
        "matmul_tflops": 2 * side**3 / min(times["product"]) / 1e9,
        "copy_gbs": 2 * long.nbytes / min(times["copy"]) / 1e6,
    }


def measure(case: Case, top: dict[str, float], *, rounds: int, calls: int) -> list[dict[str, Any]]:
    """A record of each implementation of a case, those that cannot run with the reason."""
    arguments = case.arguments()
    compiled = {name: jax.jit(way).lower(*arguments).compile() for name, way in case.implementations.items()}
    outputs = {name: jax.tree.map(np.asarray, way(*arguments)) for name, way in compiled.items()}
    truth = case.truth(*(_exact(x) for x in arguments)) if case.truth else outputs["xla"]
    errors = {name: difference(out, truth) for name, out in outputs.items()}
    del outputs
    running = {name: lambda way=way: way(*arguments) for name, way in compiled.items()}
    times = _timing.interleaved(running | {"xla again": running["xla"]}, rounds=rounds, calls=calls)
    spread = _timing.spread(times["xla"], times.pop("xla again"))
    floor = max(case.flops / top["matmul_tflops"] / 1e9, case.bytes / top["copy_gbs"] / 1e6)
    common = {"op": case.op, "shape": dict(case.shape), "dtype": case.dtype, "direction": case.direction}
    records = []
    for name, found in times.items():
        ms = _timing.summary(found)
        peers = {other: _timing.ratio(found, times[other], spread) for other in times if other != name}
        records.append(
            common
            | {
                "implementation": name,
                "ms": ms,
                "tflops": case.flops / ms["median"] / 1e9,
                "gbs": case.bytes / ms["median"] / 1e6,
                "floor_ms": floor,
                "frac_of_floor": floor / ms["median"],
                "peak_bytes": _peak(compiled[name]),
                "spread": spread,
                "ratio": peers,
                "error": errors[name],
                "error_against": "float64" if case.truth else "xla",
            }
        )
    return records + [common | {"implementation": n, "unsupported": why} for n, why in case.unsupported.items()]


def table(records: list[dict[str, Any]]) -> str:
    """A line for each case and under it one for each implementation, at most 80 columns wide."""
    lines = [f"{'':26}{'ms':>10}{'of floor':>10}{'MB':>8}{'error':>9}{'x XLA':>8}"]
    case = None
    for r in records:
        if (now := (r["op"], r["direction"], r["dtype"], r["shape"])) != case:
            case = now
            sizes = " ".join(f"{name}={size}" for name, size in r["shape"].items())
            lines += ["", *textwrap.wrap(f"{r['op']}, {r['direction']}, {r['dtype']}: {sizes}", 80)]
        name = f"  {r['implementation']:24}"
        if "unsupported" in r:
            lines.append(f"{name}left out: {r['unsupported']}"[:80])
            continue
        times = r["ratio"].get("xla")
        faster = "" if r["implementation"] == "xla" else "-" if times is None else f"{times:.2f}"
        lines.append(
            f"{name}{r['ms']['median']:10.2f}{r['frac_of_floor']:10.0%}{r['peak_bytes'] / 1e6:8.0f}"
            f"{r['error']:9.0e}{faster:>8}"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure, print, and write the record."""
    parser = argparse.ArgumentParser(prog="python -m kernels_pallas.bench", description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rounds", type=int, default=15)
    flags = parser.parse_args()
    large = jax.default_backend() == "gpu"
    where = environment()
    print(f"{where['device_kind']}, jax {where['jax']}" + ("" if large else ": no GPU here, XLA on the CPU is timed"))
    top = ceilings(large)
    print(f"ceilings now: product {top['matmul_tflops']:.2f} TFLOP/s, copy {top['copy_gbs']:.0f} GB/s")
    records = [
        record for case in cases(large) for record in measure(case, top, rounds=flags.rounds, calls=5 if large else 1)
    ]
    print(table(records))
    if flags.out:
        flags.out.parent.mkdir(parents=True, exist_ok=True)
        flags.out.write_text(json.dumps(where | {"ceilings": top, "records": records}, indent=1) + "\n")


def _exact(x: jax.Array) -> np.ndarray:
    return np.asarray(x, np.float64) if jnp.issubdtype(x.dtype, jnp.floating) else np.asarray(x)


def difference(actual: Any, expected: Any) -> float:
    """The largest of the relative errors of the outputs, by the Frobenius norm."""
    pairs = zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True)
    found = [np.linalg.norm(np.asarray(a, np.float64) - e) / max(np.linalg.norm(e), 1e-30) for a, e in pairs]
    return float(max(found))


def _peak(compiled: Any) -> int:
    """Bytes beside arguments and results."""
    return int(compiled.memory_analysis().temp_size_in_bytes)


def _said(*command: str) -> str | None:
    if shutil.which(command[0]) is None:
        return None
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None


if __name__ == "__main__":
    main()
