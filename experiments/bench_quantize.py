"""A small language model at 8, 4 and 2 bits, by every method here, beside the float one: bits a byte, error, bytes.

    python -m experiments.bench_quantize [--layers] [--json FILE] [--quick]

A decoder of 2 layers and width 64 learns the bytes of Python's help topics. Its projections are then rounded to 8,
4 and 2 bits (its tied table to 8) with activations rounded to int8 as the phone's CPU does, by each method, and judged
on topics that neither training nor calibration has seen. The error is the divergence of the next byte's distribution
from the float model's, in nats. Quantisation-aware training sees the float model's outputs alone. The last rows give
each weight bits of its own at the bytes of a uniform rule. With `--layers` a model of 6 layers instead, whose first and
last are kept at 8 bits and the others at 2: about the bytes of 4 bits for all.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import topics
from experiments.bench_contracts import Row, environment, table
from rlx import quantize
from rlx.models import decoder

MODEL = decoder.Config(
    vocab_size=256,
    hidden_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=192,
    residual="plain",
)
TABLE, LAYERS = "embed_tokens", r"_proj\."


@dataclass(frozen=True)
class Config:
    """What is measured.

    Attributes:
      steps: of training the float model.
      tune: of quantisation-aware training from it, at 4 and at 2 bits.
      batch, length: windows a step, and bytes to predict in each.
      calibration: windows for error feedback and for sensitivities.
      judged: held-out windows.
      layers: of the model.
      seed: of everything random.
    """

    steps: int = 800
    tune: int = 250
    batch: int = 8
    length: int = 96
    calibration: int = 48
    judged: int = 48
    layers: int = MODEL.num_hidden_layers
    seed: int = 0


def texts() -> tuple[np.ndarray, np.ndarray]:
    """The bytes of the topics to learn from, and of the held-out ones."""
    parts: dict[bool, list[bytes]] = {False: [], True: []}
    for topic, text in topics.source().items():
        parts[topics.is_heldout(topic)].append(text.encode())
    return tuple(np.frombuffer(b"\n".join(parts[held]), np.uint8) for held in (False, True))  # type: ignore[return-value]


def windows(text: np.ndarray, count: int, length: int, seed: int) -> jax.Array:
    """Random windows `[count, length + 1]` of a text."""
    starts = np.random.default_rng(seed).integers(0, len(text) - length - 1, count)
    return jnp.asarray(np.stack([text[s : s + length + 1] for s in starts]), jnp.int32)


def logits(params: Any, tokens: jax.Array) -> jax.Array:
    """Of the next byte, `[B, T, 256]`."""
    depth = params["model"]["layers"]["input_layernorm"]["weight"].shape[0]
    return decoder.apply(params, replace(MODEL, num_hidden_layers=depth), tokens[:, :-1])


def descend(
    loss: Callable[[Any, jax.Array], jax.Array], start: Any, text: np.ndarray, config: Config, steps: int, rates: Any
) -> Any:
    """Adam over random windows, with the rate of `rates` (a tree prefix of `start`) falling to zero."""
    optimizer = optax.adam(1.0)

    @jax.jit
    def step(carry: Any, tokens: jax.Array, left: jax.Array) -> Any:
        values, state = carry
        grads = jax.grad(loss)(values, tokens)
        result: Any = optimizer.update(grads, state)
        updates, state = result
        moved = tuple(
            jax.tree.map(lambda v, u, rate=rate: v + rate * left * u, value, update)
            for value, update, rate in zip(values, updates, rates, strict=True)
        )
        return moved, state

    carry = start, optimizer.init(start)
    batches = windows(text, steps * config.batch, config.length, config.seed + 1).reshape(steps, config.batch, -1)
    for i in range(steps):
        carry = step(carry, batches[i], jnp.float32(1 - i / steps))
    return jax.block_until_ready(carry[0])


def learn(text: np.ndarray, config: Config) -> Any:
    """The float model."""

    def loss(values: Any, tokens: jax.Array) -> jax.Array:
        return -jnp.mean(decoder.log_probs(logits(values[0], tokens), tokens[:, 1:]))

    params = decoder.init(jax.random.key(config.seed), replace(MODEL, num_hidden_layers=config.layers))
    return descend(loss, (params,), text, config, config.steps, (3e-3,))[0]


def tuned(params: Any, rule: Any, text: np.ndarray, config: Config) -> Any:
    """Weights and scales trained towards the float model's outputs, then frozen."""
    training = quantize.qat(rule)

    def loss(values: Any, tokens: jax.Array) -> jax.Array:
        student = logits(training.attach(*values), tokens)
        return jnp.mean(quantize.distill_logits(student, logits(params, tokens)))

    start = params, training.init(params)
    return training.freeze(*descend(loss, start, text, config, config.tune, (1e-3, 1e-4)))


def total_bytes(params: Any, rule: Any) -> int:
    """Bytes of the quantised weights in a file."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    shapes = {jax.tree_util.keystr(path, simple=True, separator="."): leaf.shape for path, leaf in leaves}
    return sum(quantize.weight_bytes(shapes[path], bits) for path, bits in quantize.plan_bits(params, rule).items())


@jax.jit
def score(params: Any, tokens: jax.Array, target: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Bits a byte, and the divergence from the float model's logits."""
    out = logits(params, tokens)
    chosen = decoder.log_probs(out, tokens[:, 1:])
    return -jnp.mean(chosen) / math.log(2), jnp.mean(quantize.distill_logits(out, target))


class Bench:
    """The float model, the data, and what a quantised one is judged by."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.train, held = texts()
        self.params = learn(self.train, config)
        self.judged = windows(held, config.judged, config.length, config.seed + 2)
        self.batches = windows(self.train, config.calibration, config.length, config.seed + 3).reshape(
            3, -1, config.length + 1
        )
        self._target = jax.jit(logits)(self.params, self.judged)
        self.bits, _ = self.judge(self.params)

    def judge(self, params: Any) -> tuple[float, float]:
        """Held-out bits a byte, and the divergence from the float model in nats."""

        bits, apart = score(params, self.judged, self._target)
        return float(bits), float(apart)

    def calibrate(self, params: Any) -> dict[str, jax.Array]:
        """Moments of what the projections multiply."""
        return quantize.calibrate(logits, params, self.batches, where=LAYERS)

    def methods(self, bits: Any) -> dict[str, Any]:
        """The model at some bits, by method."""
        rule: dict[str, Any] = {LAYERS: bits, TABLE: 8}
        turned = quantize.rotate_tree(self.params, where=LAYERS)
        moments, turned_moments = self.calibrate(self.params), self.calibrate(turned)

        def low(params: Any, **options: Any) -> Any:
            return quantize.quantize_tree(params, rule, **options)

        found = {
            "min-max": low(self.params),
            "least squares": low(self.params, scale="mse"),
            "GPTQ": low(self.params, scale="mse", moments=moments, sweeps=0),
            "GPTQ, 2 sweeps": low(self.params, scale="mse", moments=moments),
            "rotation, GPTQ, 2 sweeps": low(turned, scale="mse", moments=turned_moments),
        }
        if bits < 8:
            found["training"] = tuned(self.params, rule, self.train, self.config)
        return found

    def compared(self, bits: Any) -> list[Row]:
        """A row a method; feedback is to be no worse than rounding with the same scales, training the best of all."""
        size = total_bytes(self.params, {LAYERS: bits, TABLE: 8})
        scores = {name: self.judge(small) for name, small in self.methods(bits).items()}
        rounding = scores["least squares"][1]
        best = min(apart for name, (_, apart) in scores.items() if name != "training")
        rows = []
        for name, (held, apart) in scores.items():
            limit, said = {
                "min-max": (math.inf, "-"),
                "least squares": (math.inf, "-"),
                "training": (best, "<= all"),
            }.get(name, (rounding, "<= least squares"))
            peer = f"{held:.3f} bits a byte, {size} bytes"
            rows.append(Row(f"{bits} bits, {name}", f"error {apart:.5f}", peer, said, apart <= limit))
        return rows

    def allocated(self, rule: Any, name: str) -> Row:
        """Bits by measured sensitivity beside a uniform rule, at no more bytes, both with error feedback."""

        target = jax.jit(logits)(self.params, self.batches[0])
        errors = quantize.sensitivity(lambda params: score(params, self.batches[0], target)[1], self.params)
        budget = total_bytes(self.params, rule)
        chosen = quantize.allocate(errors, quantize.sizes(self.params), budget)
        moments = self.calibrate(self.params)
        small = [quantize.quantize_tree(self.params, r, scale="mse", moments=moments) for r in (rule, chosen.rule)]
        uniform, own = (self.judge(one)[1] for one in small)
        return Row(
            f"bits by sensitivity at the bytes of {name}",
            f"error {own:.5f}",
            f"uniform {uniform:.5f}, {chosen.bytes} of {budget}",
            "<= uniform",
            own <= uniform,
        )

    def stacked(self) -> list[Row]:
        """Bits of each layer: the outer ones at 8 beside uniform rules, and by measured sensitivity."""
        moments = self.calibrate(self.params)
        rule = {TABLE: 8, rf"layers\.(0|{self.config.layers - 1})\.": 8, LAYERS: 2}
        budget = total_bytes(self.params, rule)
        target = jax.jit(logits)(self.params, self.batches[0])
        errors = quantize.sensitivity(
            lambda params: score(params, self.batches[0], target)[1], self.params, by_layer=True
        )
        own = quantize.allocate(errors, quantize.sizes(self.params, by_layer=True), budget)
        rules: dict[str, Any] = {
            "2 bits": {TABLE: 8, LAYERS: 2},
            "the outer layers 8, the others 2 bits": rule,
            "4 bits": {TABLE: 8, LAYERS: 4},
            "by sensitivity of each layer": own.rule,
        }
        rows, worst = [], math.inf
        for name, one in rules.items():
            held, apart = self.judge(quantize.quantize_tree(self.params, one, scale="mse", moments=moments))
            limit, said = (worst, "<= the outer layers 8") if one is own.rule else (math.inf, "-")
            worst = apart if one is rule else worst
            size = total_bytes(self.params, one)
            what, peer = f"{self.config.layers} layers, {name}", f"{held:.3f} bits a byte, {size} bytes"
            rows.append(Row(what, f"error {apart:.5f}", peer, said, apart <= limit))
        return rows


def measure_layers(config: Config) -> list[Row]:
    """The rows of a deeper model whose layers have different bits."""
    bench = Bench(config)
    name = f"float, {config.layers} layers, {config.steps} steps"
    return [Row(name, f"{bench.bits:.3f} bits a byte", "-", "-", True), *bench.stacked()]


def measure(config: Config) -> list[Row]:
    """Every row."""
    bench = Bench(config)
    rows = [Row("float", f"{bench.bits:.3f} bits a byte", "-", "-", True)]
    print(f"trained: {bench.bits:.3f} bits a byte held out", flush=True)
    for bits in (8, 4, 2):
        print(f"at {bits} bits", flush=True)
        rows += bench.compared(bits)
    rows.append(bench.allocated(4, "4 bits for all"))
    rows.append(bench.allocated({LAYERS: 2, TABLE: 8}, "2 bits, the table 8"))
    return rows


def main() -> int:
    """Print the table; exit 1 if a target is missed."""
    parser = argparse.ArgumentParser(prog="python -m experiments.bench_quantize", description="Low bits by number.")
    parser.add_argument("--json", type=Path, help="write the rows and the environment here")
    parser.add_argument(
        "--quick", action="store_true", help="a model that has hardly learned, for a test of the command"
    )
    parser.add_argument("--layers", action="store_true", help="bits of each layer, of a model of 6")
    given = parser.parse_args()
    config = Config(steps=20, tune=5, batch=4, length=32, calibration=6, judged=4) if given.quick else Config()
    start = time.perf_counter()
    if given.layers:
        config = replace(config, layers=6, steps=min(config.steps, 400))
    rows = measure_layers(config) if given.layers else measure(config)
    print(table(rows))
    print(f"{time.perf_counter() - start:.0f} s")
    if given.json:
        record = {"environment": environment(), "config": vars(config), "rows": [vars(row) for row in rows]}
        given.json.write_text(json.dumps(record, indent=1) + "\n")
    return 0 if all(row.kept for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
