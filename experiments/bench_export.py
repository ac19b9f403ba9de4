"""A decoder with a key-value cache as two signatures of one file, beside JAX: error, greedy tokens, bytes, time.

    python -m experiments.bench_export [--json FILE] [--quick]

The decoder of `bench_quantize` (2 layers, width 64) learns the bytes of Python's help topics; 8 and 4 bits are error
feedback from it, 2 bits are trained towards it; the tied table has 8 bits. `prefill` takes a prompt of up to 32 bytes,
padded on the left, and makes the cache; `decode` takes one token and the cache, which has 48 slots. Each signature is
run through LiteRT on 1,000 random inputs (half of them held-out text, half uniform bytes, of random lengths; for
`decode` the cache of such a prompt and a random token) and compared with the same function under `jax.jit`. The error
of an input is the norm of the difference of the logits by the norm of JAX's.

JAX and LiteRT sum floats in other orders. Where a product rounds its activations to 8 bits, such a difference moves now
and then one activation to the next of its 255 codes, and the error of that input is then of the order of one code. That
this is the whole reason is shown by the same weights with float activations, which stay within 1e-6 everywhere.
"""

import argparse
import json
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

from experiments import bench_quantize
from experiments.bench_contracts import Row, environment, table
from experiments.bench_quantize import LAYERS, MODEL, TABLE
from rlx import export, quantize
from rlx.models import decoder


@dataclass(frozen=True)
class Config:
    """What is measured.

    Attributes:
      inputs: random inputs of each signature.
      answers: prompts that are continued greedily, by LiteRT alone and by JAX alone.
      prompt: tokens of a prompt, with padding.
      new: tokens of an answer.
      repeats: calls of which times are the median.
      quick: a model that has hardly learned.
      seed: of the inputs.
    """

    inputs: int = 1000
    answers: int = 200
    prompt: int = 32
    new: int = 16
    repeats: int = 200
    quick: bool = False
    seed: int = 0


def signatures(params: Any, model: decoder.Config, *, prompt: int, slots: int) -> dict[str, Any]:
    """`prefill(tokens [1, P], mask [1, P]) -> (logits [1, V], cache)`, `decode(token [1, 1], cache) -> the same`.

    Args:
      params: of the decoder; quantised weights stand in the file once for both.
      model: its sizes.
      prompt: P; shorter prompts are padded on the left, with a mask.
      slots: tokens that the cache has room for.
    """
    concrete = jax.tree.map(np.asarray, params)

    def prefill(tokens: jax.Array, mask: jax.Array) -> tuple[jax.Array, decoder.Cache]:
        logits, cache = decoder.prefill(concrete, model, tokens, slots=slots, attention_mask=mask, unroll=True)
        return logits[:, -1], cache

    def decode(token: jax.Array, cache: decoder.Cache) -> tuple[jax.Array, decoder.Cache]:
        logits, cache = decoder.extend(concrete, model, token, cache, unroll=True)
        return logits[:, -1], cache

    tokens, mask = jax.ShapeDtypeStruct((1, prompt), jnp.int32), jax.ShapeDtypeStruct((1, prompt), jnp.bool_)
    _, cache = jax.eval_shape(prefill, tokens, mask)
    return {"prefill": (prefill, [tokens, mask]), "decode": (decode, [jax.ShapeDtypeStruct((1, 1), jnp.int32), cache])}


def relative(actual: Any, expected: Any) -> float:
    """The norm of the difference by the norm of what is expected."""
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


def answer(call: Callable[..., Any], tokens: Any, mask: Any, new: int) -> list[int]:
    """Greedy tokens: one `prefill`, then `decode` with the cache that the last call returned."""
    logits, *cache = call("prefill", tokens, mask)
    found = [int(np.argmax(logits))]
    while len(found) < new:
        logits, *cache = call("decode", np.array([[found[-1]]], np.int32), *cache)
        found.append(int(np.argmax(logits)))
    return found


@dataclass(frozen=True)
class Compared:
    """One file beside JAX.

    Attributes:
      bytes: of the file.
      errors: relative errors of the logits, by signature.
      greedy: whether the most likely token is the same, by signature.
      answers: share of answers whose every token is the same.
      ms: median milliseconds a call, by signature, one thread.
    """

    bytes: int
    errors: dict[str, np.ndarray]
    greedy: dict[str, np.ndarray]
    answers: float
    ms: dict[str, float]


def compare(params: Any, model: decoder.Config, prompts: Any, config: Config, folder: Path) -> Compared:
    """Write the two signatures, and run them beside JAX.

    Args:
      params: of the decoder.
      model: its sizes.
      prompts: tokens `[N, P]` and masks `[N, P]`.
      config: how often.
      folder: for the file.
    """
    slots = config.prompt + config.new
    both = signatures(params, model, prompt=config.prompt, slots=slots)
    written = export.to_tflite(both, folder / "model.tflite")
    lite = export.load_tflite(written.path)
    jitted = {name: jax.jit(fn) for name, (fn, _) in both.items()}
    structure = jax.tree.structure(decoder.empty_cache(model, batch=1, slots=slots))

    def in_jax(name: str, *arrays: Any) -> list[np.ndarray]:
        arrays = arrays if name == "prefill" else (arrays[0], jax.tree.unflatten(structure, arrays[1:]))
        return [np.asarray(leaf) for leaf in jax.tree.leaves(jitted[name](*arrays))]

    errors: dict[str, list[float]] = {name: [] for name in both}
    greedy: dict[str, list[bool]] = {name: [] for name in both}
    following = np.random.default_rng(config.seed + 1).integers(0, model.vocab_size, len(prompts[0]))
    given: dict[str, Any] = {}
    for tokens, mask, token in zip(*prompts, following, strict=True):
        given["prefill"] = tokens[None], mask[None]
        _, *cache = in_jax("prefill", *given["prefill"])
        given["decode"] = np.array([[token]], np.int32), *cache
        for name, arrays in given.items():
            expected, actual = in_jax(name, *arrays)[0], lite(name, *arrays)[0]
            errors[name].append(relative(actual, expected))
            greedy[name].append(bool(np.argmax(actual) == np.argmax(expected)))
    pairs = [(tokens[None], mask[None]) for tokens, mask in zip(*prompts, strict=True)][
        :: -(-config.inputs // config.answers)
    ]
    same = [answer(lite, *pair, config.new) == answer(in_jax, *pair, config.new) for pair in pairs]
    ms = {name: 1000 * _median(lambda n=name, a=arrays: lite(n, *a), config.repeats) for name, arrays in given.items()}
    return Compared(
        bytes=written.bytes,
        errors={name: np.array(values) for name, values in errors.items()},
        greedy={name: np.array(values) for name, values in greedy.items()},
        answers=float(np.mean(same)),
        ms=ms,
    )


def _median(run: Callable[[], Any], repeats: int) -> float:
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds))


def padded(text: np.ndarray, config: Config) -> tuple[np.ndarray, np.ndarray]:
    """Prompts `[N, P]` int32 and masks `[N, P]`: windows of a text and uniform bytes in turn, of 1 to P tokens."""
    rng = np.random.default_rng(config.seed)
    tokens = np.zeros((config.inputs, config.prompt), np.int32)
    mask = np.zeros(tokens.shape, bool)
    for i in range(config.inputs):
        length = int(rng.integers(1, config.prompt + 1))
        start = int(rng.integers(0, len(text) - length))
        tokens[i, -length:] = text[start : start + length] if i % 2 else rng.integers(0, 256, length)
        mask[i, -length:] = True
    return tokens, mask


def models(config: Config) -> dict[str, Any]:
    """The decoder in float, at 8, 4 and 2 bits, and at 4 bits with float activations."""
    training = bench_quantize.Config(steps=20, tune=5, batch=4, length=32, calibration=6, judged=4)
    training = training if config.quick else bench_quantize.Config()
    text, _ = bench_quantize.texts()
    params = bench_quantize.learn(text, training)
    batches = bench_quantize.windows(text, training.calibration, training.length, training.seed + 3)
    moments = quantize.calibrate(
        bench_quantize.logits, params, batches.reshape(3, -1, training.length + 1), where=LAYERS
    )

    def low(bits: Any, **options: Any) -> Any:
        return quantize.quantize_tree(params, {LAYERS: bits, TABLE: 8}, scale="mse", moments=moments, **options)

    return {
        "float32": params,
        "8 bits": low(8),
        "4 bits": low(4),
        "2 bits": bench_quantize.tuned(params, {LAYERS: 2, TABLE: 8}, text, training),
        "8 bits, float activations": low(8, activations="float"),
        "4 bits, float activations": low(4, activations="float"),
    }


def rows_of(name: str, found: Compared) -> list[Row]:
    """What was promised of one model."""
    rows = []
    for signature, errors in found.errors.items():
        median, within = np.median(errors), np.mean(errors <= 1e-4)
        told = f"median {median:.0e}, largest {errors.max():.0e}"
        what = f"{name}, {signature}"
        rows.append(Row(f"{what}: error <= 1e-4", f"{within:.1%} of inputs", told, "100.0%", bool(within == 1)))
        same, ms = np.mean(found.greedy[signature]), found.ms[signature]
        rows.append(Row(f"{what}: greedy token", f"{same:.1%} same", f"{ms:.2f} ms", ">= 99.5%", bool(same >= 0.995)))
    told = f"{found.bytes} bytes, both signatures"
    rows.append(Row(f"{name}: whole answers", f"{found.answers:.1%} same", told, "-", True))
    return rows


def measure(config: Config) -> list[Row]:
    """Every row."""
    _, held = bench_quantize.texts()
    prompts, rows = padded(held, config), []
    for name, params in models(config).items():
        with tempfile.TemporaryDirectory() as folder:
            rows += rows_of(name, compare(params, MODEL, prompts, config, Path(folder)))
        print(f"compared: {name}", flush=True)
    return rows


def main() -> int:
    """Print the table; exit 1 if a target is missed."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.bench_export", description="The exported file by number."
    )
    parser.add_argument("--json", type=Path, help="write the rows and the environment here")
    parser.add_argument("--quick", action="store_true", help="few inputs, a model that has hardly learned")
    given = parser.parse_args()
    config = Config(inputs=20, answers=4, repeats=5, quick=True) if given.quick else Config()
    start = time.perf_counter()
    rows = measure(config)
    print(table(rows))
    print(f"{time.perf_counter() - start:.0f} s")
    if given.json:
        packages = {name: version(name) for name in ("tensorflow-cpu", "ai-edge-litert")}
        record = {"environment": environment() | packages, "config": vars(config), "rows": [vars(row) for row in rows]}
        given.json.write_text(json.dumps(record, indent=1) + "\n")
    return 0 if all(row.kept for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
