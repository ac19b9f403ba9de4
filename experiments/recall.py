"""Recall and needles by small models that are trained here, dense and hierarchical attention side by side.

    python -m experiments.recall [--task recall|needle|tracking|copy] [--steps N] [--attention dense|hierarchical]
        [--times 1 8 ...] [--seed N] [--block N] [--beam N] [--wider N]

Two layers of attention and MLP without positions; queries, keys and values are mixed with the token before by a learned
gate, as short convolutions do. The needle is learned at one length and looked for at `--times` that length.

What it takes is a narrow way in training: with one node opened on each level the loss reaches what the needle needs
only if its slot keeps it apart from the hay, and that lets the descent see it under nodes of hundreds of tokens later.
Trained with a beam of half the leaves, slots mix both, and a quarter of the needles is lost at eight times the length.
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from experiments import tasks
from rlx import attention

Params = dict[str, Any]


@dataclass(frozen=True)
class Config:
    """The model and its training.

    Attributes:
      block, beam, slots: of hierarchical attention: leaves of `block` tokens, `beam` of them opened.
      wider: the beam when judged.
      sharpen: scores grow with the log of the position, as fast as each layer learns to.
      steps, batch, rate: of Adam, with a warm-up and a cosine to zero.
    """

    attention: Literal["dense", "hierarchical"] = "hierarchical"
    vocabulary: int = 129
    width: int = 64
    layers: int = 2
    heads: int = 2
    block: int = 8
    beam: int = 2
    wider: int = 2
    slots: int = 4
    sharpen: bool = False
    steps: int = 600
    batch: int = 32
    rate: float = 3e-3


PAIRS, LENGTH = 16, 128
CONFIGS = {
    "recall": Config(block=4, steps=420),
    "needle": Config(vocabulary=112, block=8, beam=1, wider=4, sharpen=True, steps=500, batch=16),
    "tracking": Config(vocabulary=104, block=8, beam=1, wider=4, layers=3, steps=1000),
    "copy": Config(vocabulary=33, block=8, beam=1, wider=4, steps=500),
}
DRAWN = {
    "recall": partial(tasks.associative_recall, pairs=PAIRS),
    "tracking": partial(tasks.variable_tracking, length=LENGTH, chains=4, hops=2),
    "copy": partial(tasks.copy, length=LENGTH // 2),
}


def init(key: jax.Array, config: Config) -> Params:
    """Parameters, layers on axis 0."""
    L, D, H = config.layers, config.width, config.heads
    k = jax.random.split(key, 7)

    def draw(key: jax.Array, *shape: int, fan: int) -> jax.Array:
        return jax.random.normal(key, shape, jnp.float32) * fan**-0.5

    return {
        "embed": draw(k[0], config.vocabulary, D, fan=1) * 0.3,
        "layers": {
            "qkv": draw(k[1], L, 3, D, D, fan=D),
            "before": jnp.full((L, 3, D), 0.5),
            "sharp": jnp.ones(L),
            "out": draw(k[2], L, D, D, fan=D) * 0.5,
            "slots": draw(k[3], L, config.slots, H, D // H, fan=1),
            "up": draw(k[4], L, D, 2 * D, fan=D),
            "down": draw(k[5], L, 2 * D, D, fan=2 * D) * 0.5,
        },
        "head": draw(k[6], config.vocabulary, D, fan=D),
    }


def norm(x: jax.Array) -> jax.Array:
    """`x / rms(x)`."""
    return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-6)


def apply(params: Params, config: Config, tokens: jax.Array, *, beam: int | None = None) -> jax.Array:
    """`[B, T] -> [B, T, vocabulary]`, with another beam than the config's if wanted."""

    def layer(x: jax.Array, p: Params) -> tuple[jax.Array, None]:
        y = norm(x)
        last = jnp.pad(y, ((0, 0), (1, 0), (0, 0)))[:, :-1]
        mixed = y[:, :, None] + last[:, :, None] * p["before"][None, None]
        q, k, v = ((mixed[:, :, i] @ p["qkv"][i]).reshape(*y.shape[:2], config.heads, -1) for i in range(3))
        if config.sharpen:
            q = q * (p["sharp"] * lengths)[None, :, None, None]
        if config.attention == "dense":
            y = attention.attention(q, k, v, causal=True)
        else:
            y = attention.hierarchical_attention(
                q, k, v, p["slots"], block=config.block, beam=config.beam if beam is None else beam
            )
        x = x + y.reshape(x.shape) @ p["out"]
        return x + jax.nn.gelu(norm(x) @ p["up"]) @ p["down"], None

    # A softmax over more tokens is flatter, so one that is to find as much in a longer text has to be sharper.
    lengths = jnp.log(jnp.arange(2, tokens.shape[1] + 2, dtype=jnp.float32)) / jnp.log(LENGTH)
    x = jax.lax.scan(layer, params["embed"][tokens], params["layers"])[0]
    return norm(x) @ params["head"].T


def loss(params: Params, config: Config, batch: tasks.Example) -> jax.Array:
    """Mean over what is asked of the answer's negative log-probability."""
    logp = jax.nn.log_softmax(apply(params, config, batch.tokens))
    asked = batch.targets >= 0
    chosen = jnp.take_along_axis(logp, jnp.where(asked, batch.targets, 0)[..., None], axis=-1)[..., 0]
    return -jnp.sum(jnp.where(asked, chosen, 0)) / jnp.sum(asked).astype(chosen.dtype)


def train(config: Config, draw: Any, key: jax.Array) -> tuple[Params, float]:
    """Trained parameters and the seconds it took."""
    schedule = optax.warmup_cosine_decay_schedule(0.0, config.rate, config.steps // 10, config.steps)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))

    @jax.jit
    def step(params: Params, state: Any, key: jax.Array) -> Any:
        batch = jax.vmap(draw)(jax.random.split(key, config.batch))
        value, gradient = jax.value_and_grad(loss)(params, config, batch)
        with jax.numpy_dtype_promotion("standard"):
            updates, state = optimizer.update(gradient, state, params)
            return optax.apply_updates(params, updates), state, value

    params = init(jax.random.fold_in(key, 0), config)
    state = optimizer.init(params)
    start = time.perf_counter()
    for i in range(config.steps):
        params, state, value = step(params, state, jax.random.fold_in(key, i + 1))
        if i % 100 == 99:
            print(f"  step {i + 1}: loss {float(value):.4f}, {time.perf_counter() - start:.0f} s", flush=True)
    return params, time.perf_counter() - start


def accuracy(params: Params, config: Config, draw: Any, key: jax.Array, *, examples: int, batch: int) -> float:
    """The share of questions that are answered right, over fresh examples."""

    @jax.jit
    def right(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        drawn = jax.vmap(draw)(jax.random.split(key, batch))
        asked = drawn.targets >= 0
        said = jnp.argmax(apply(params, config, drawn.tokens, beam=config.wider), axis=-1)
        return jnp.sum(asked & (said == drawn.targets)), jnp.sum(asked)

    found = [right(jax.random.fold_in(key, i)) for i in range(examples // batch)]
    return float(sum(hit for hit, _ in found)) / float(sum(count for _, count in found))


def study(config: Config, key: jax.Array, task: str = "recall") -> dict[str, float]:
    """A task of one length: accuracy over fresh sequences."""
    params, seconds = train(config, DRAWN[task], key)
    score = accuracy(params, config, DRAWN[task], jax.random.key(99), examples=256, batch=32)
    return {"accuracy": score, "seconds": seconds}


def needle(config: Config, key: jax.Array, times: Sequence[int] = (1, 8)) -> dict[str, float]:
    """The needle, learned with 8 a sequence: accuracy of one, and of 8, at so many times the length of training."""
    draw = partial(tasks.needle, length=LENGTH, needles=8)
    params, seconds = train(config, draw, key)
    found = {"seconds": seconds}
    for many in times:
        batch = max(1, min(32, 256 // many))
        for needles, name in ((1, "accuracy"), (8, "several")):
            drawn = partial(tasks.needle, length=many * LENGTH, needles=needles)
            found[f"{name}_{many}x"] = accuracy(
                params, config, drawn, jax.random.key(99), examples=16 * batch, batch=batch
            )
        print(
            f"  {many * LENGTH} tokens: one needle {found[f'accuracy_{many}x']:.4f}, 8 {found[f'several_{many}x']:.4f}",
            flush=True,
        )
    return found


def main() -> None:
    """Train and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=tuple(CONFIGS), default="recall")
    parser.add_argument("--attention", choices=("dense", "hierarchical"), default="hierarchical")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--times", type=int, nargs="+", default=[1, 8], help="lengths of the needle's text")
    for name in ("block", "beam", "wider"):
        parser.add_argument(f"--{name}", type=int, help="of hierarchical attention")
    given = parser.parse_args()
    wanted = {name: getattr(given, name) for name in ("steps", "block", "beam", "wider")}
    config = replace(CONFIGS[given.task], attention=given.attention, **{k: v for k, v in wanted.items() if v})
    print(config)
    key = jax.random.key(given.seed)
    print(needle(config, key, given.times) if given.task == "needle" else study(config, key, given.task))


if __name__ == "__main__":
    main()
