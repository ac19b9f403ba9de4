"""Contexts compressed before anything is asked: what is lost, by bytes that are kept, by several ways to choose.

    python -m experiments.compression [--task facts|topics]

A small model (two layers of attention and MLP, queries, keys and values mixed with the token before) is trained on
whole contexts and then left as it is. A linear score of each token, from what the model thought there and how surprised
it was, is trained with the loss of what comes later under random ratios: `compress` with a gate. Then a prefix is read,
compressed, and only then come the questions, or the text that goes on.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import tasks
from experiments.recall import norm
from rlx import attention, compress

Params = dict[str, Any]
Draw = Callable[[jax.Array], tasks.Example]
Method = Literal["adaptive", "uniform", "evicting", "surprise", "pooling", "random", "window", "truncation"]
METHODS = get_args(Method)


@dataclass(frozen=True)
class Config:
    """The model, its training, and the prefix that is compressed.

    Attributes:
      length: tokens of the prefix.
      block: of `rlx.compress.compress`.
      levels: of the means that the score is trained with; 0 drops what is not kept.
      stages: lengths of the prefix, examples and steps of the model's training, one after another.
      steps, batch: of the score's training.
      smallest: entries of the smallest memory that it is trained with; the largest has a quarter of the tokens.
    """

    vocabulary: int = 112
    width: int = 64
    layers: int = 2
    heads: int = 2
    length: int = 512
    block: int = 64
    levels: int = 2
    rate: float = 3e-3
    stages: tuple[tuple[int, int, int], ...] = ((128, 32, 430), (512, 16, 40))
    steps: int = 200
    batch: int = 8
    smallest: int = 6


FACTS = Config()
TOPICS = Config(vocabulary=256, levels=0, stages=((160, 16, 450), (512, 8, 100)))
COUNT, VALUES, NEAR, SCORED = 12, 32, 96, 64
MERGING, LEVELS = ("adaptive", "uniform", "surprise"), 2


class Prefix(NamedTuple):
    """A prefix that was read.

    Attributes:
      k: `[L, B, T, H, D]`, of all layers.
      v: `[L, B, T, H, D]`.
      last: `[L, B, 1, W]`, what the first token after it is mixed with.
      hidden: `[B, T, W]`, before the head.
      logp: `[B, T - 1]`, of its tokens from the second on.
    """

    k: jax.Array
    v: jax.Array
    last: jax.Array
    hidden: jax.Array
    logp: jax.Array


def facts(bursts: int, length: int = FACTS.length) -> Draw:
    """The stream of facts, spread or in bursts."""
    return partial(tasks.facts, length=length, facts=COUNT, values=VALUES, bursts=bursts)


def topics(heldout: bool, length: int = TOPICS.length) -> Draw:
    """Windows of the topics of Python's help: a prefix, then text of which the last bytes are scored."""
    from experiments.topics import is_heldout, source

    joined = "\n".join(text for topic, text in source().items() if is_heldout(topic) == heldout)
    text = jnp.asarray(bytearray(joined.encode()), jnp.int32)

    def draw(key: jax.Array) -> tasks.Example:
        start = jax.random.randint(key, (), 0, len(text) - length - NEAR)
        window = jax.lax.dynamic_slice_in_dim(text, start, length + NEAR + 1)
        asked = jnp.arange(length + NEAR) >= length + NEAR - SCORED
        return tasks.Example(window[:-1], jnp.where(asked, window[1:], -1))

    return draw


def init(key: jax.Array, config: Config) -> Params:
    """Parameters, layers on axis 0; the score starts at zero."""
    L, D, H = config.layers, config.width, config.heads
    k = jax.random.split(key, 6)

    def draw(key: jax.Array, *shape: int, fan: int) -> jax.Array:
        return jax.random.normal(key, shape, jnp.float32) * fan**-0.5

    return {
        "embed": draw(k[0], config.vocabulary, D, fan=1) * 0.3,
        "layers": {
            "qkv": draw(k[1], L, 3, D, D, fan=D),
            "before": jnp.full((L, 3, D), 0.5),
            "out": draw(k[2], L, D, D, fan=D) * 0.5,
            "up": draw(k[3], L, D, 2 * D, fan=D),
            "down": draw(k[4], L, 2 * D, D, fan=2 * D) * 0.5,
        },
        "head": draw(k[5], config.vocabulary, D, fan=D),
        "score": {"hidden": jnp.zeros((D, L * H)), "surprise": jnp.zeros((2, L * H))},
    }


def _mixed(p: Params, config: Config, y: jax.Array, before: jax.Array) -> list[jax.Array]:
    """Queries, keys and values of `y [B, T, W]` after `before [B, 1, W]`."""
    last = jnp.concatenate([before, y[:, :-1]], axis=1)
    mixed = y[:, :, None] + last[:, :, None] * p["before"][None, None]
    return [(mixed[:, :, i] @ p["qkv"][i]).reshape(*y.shape[:2], config.heads, -1) for i in range(3)]


def _rest(p: Params, x: jax.Array, y: jax.Array) -> jax.Array:
    x = x + y.reshape(x.shape) @ p["out"]
    return x + jax.nn.gelu(norm(x) @ p["up"]) @ p["down"]


def read(
    params: Params, config: Config, tokens: jax.Array, *, window: jax.Array | None = None, newest: Any = None
) -> Prefix:
    """Read `[B, T]`; with a window, each layer looks back only so far, and of `newest` tokens, at nothing before."""
    where = jnp.arange(tokens.shape[1], dtype=jnp.int32)
    there = where >= 0 if newest is None else where >= tokens.shape[1] - newest
    bias = None
    if window is not None:
        bias = jnp.where(where[:, None] - where[None, :] < window, 0.0, -jnp.inf)

    def layer(x: jax.Array, p: Params) -> tuple[jax.Array, Any]:
        y = jnp.where(there[None, :, None], norm(x), 0)
        q, k, v = _mixed(p, config, y, jnp.zeros_like(y[:, :1]))
        mask = jnp.broadcast_to(there, tokens.shape)
        out = attention.attention(q, k, v, causal=True, bias=bias, mask=None if newest is None else mask)
        return _rest(p, x, out), (k, v, y[:, -1:])

    x, (k, v, last) = jax.lax.scan(layer, params["embed"][tokens], params["layers"])
    hidden = norm(x)
    logp = jax.nn.log_softmax(hidden[:, :-1] @ params["head"].T)
    return Prefix(k, v, last, hidden, jnp.take_along_axis(logp, tokens[:, 1:, None], axis=-1)[..., 0])


def answer(params: Params, config: Config, tokens: jax.Array, last: jax.Array, memory: compress.Memory) -> jax.Array:
    """Logits `[B, N, vocabulary]` of tokens after a prefix of which only the memory `[L, B, M, ...]` is there."""

    def layer(x: jax.Array, inputs: Any) -> tuple[jax.Array, None]:
        p, kept, before = inputs
        q, k, v = _mixed(p, config, norm(x), before)
        return _rest(p, x, compress.attend(q, kept, k, v)), None

    x = jax.lax.scan(layer, params["embed"][tokens], (params["layers"], memory, last))[0]
    return norm(x) @ params["head"].T


def surprise(prefix: Prefix) -> jax.Array:
    """-log p of each token `[B, T]`, 0 for the first."""
    return jax.lax.stop_gradient(jnp.pad(-prefix.logp, ((0, 0), (1, 0))))


def importance(params: Params, config: Config, prefix: Prefix) -> jax.Array:
    """The learned score `[L, B, T, H]`, linear in what the model thought, its surprise, and the one before."""
    now = surprise(prefix)
    before = jnp.pad(now, ((0, 0), (1, 0)))[:, :-1]
    score = jax.lax.stop_gradient(prefix.hidden) @ params["score"]["hidden"]
    score = score + jnp.stack([now, before], axis=-1) @ params["score"]["surprise"]
    return jnp.moveaxis(score.reshape(*now.shape, config.layers, config.heads), 2, 0)


def pooled(prefix: Prefix, size: jax.Array) -> compress.Memory:
    """Means of `size` runs of equal length, in room for as many as there are tokens."""
    length = prefix.k.shape[2]
    where = jnp.arange(length, dtype=jnp.int32)
    member = (where * size // length == where[:, None]).astype(jnp.float32)  # [M, T]
    mass = jnp.sum(member, axis=1)
    share = member / jnp.maximum(mass, 1)[:, None]
    keys, values = (jnp.einsum("mt,lbthd->lbmhd", share, x) for x in (prefix.k, prefix.v))
    log_mass = jnp.where(mass > 0, jnp.log(jnp.maximum(mass, 1)), -jnp.inf)
    return compress.Memory(
        keys=keys, values=values, log_mass=jnp.broadcast_to(log_mass[None, None, :, None], keys.shape[:-1])
    )


def remember(
    params: Params, config: Config, prefix: Prefix, method: Method, size: jax.Array, key: jax.Array
) -> compress.Memory:
    """The memory of `size` entries, which may be traced, for all layers."""
    if method == "pooling":
        return pooled(prefix, size)
    shape = prefix.k.shape[:-1]
    recent = jnp.arange(shape[2], dtype=jnp.float32)[None, None, :, None]
    scores = {
        "adaptive": lambda: importance(params, config, prefix),
        "uniform": lambda: importance(params, config, prefix),
        "evicting": lambda: importance(params, config, prefix),
        "surprise": lambda: surprise(prefix)[None, ..., None],
        "random": lambda: jax.random.uniform(key, (1, *shape[1:3], 1)),
        "window": lambda: recent,
        "truncation": lambda: recent,
    }
    return compress.compress(
        prefix.k,
        prefix.v,
        jnp.broadcast_to(scores[method](), shape),
        size=shape[2],
        block=config.block,
        adaptive=method != "uniform",
        levels=LEVELS if method in MERGING else 0,
        shown=size,
    )


def entry_bytes(config: Config, *, mass: bool) -> int:
    """Bytes of one entry in all layers and heads, float32; what is only evicted needs no mass."""
    return config.layers * config.heads * (2 * config.width // config.heads + mass) * 4


def picked(logits: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The mean -log p of what is asked, and the share that is said right."""
    asked = targets >= 0
    logp = jnp.take_along_axis(jax.nn.log_softmax(logits), jnp.where(asked, targets, 0)[..., None], axis=-1)[..., 0]
    right = asked & (jnp.argmax(logits, axis=-1) == targets)
    return -jnp.sum(jnp.where(asked, logp, 0)) / jnp.sum(asked), jnp.sum(right) / jnp.sum(asked)


def drawn(draws: list[Draw], key: jax.Array, count: int) -> tasks.Example:
    """A batch, of each kind as many."""
    parts = [jax.vmap(draw)(jax.random.split(jax.random.fold_in(key, i), count // len(draws))) for i, draw in
             enumerate(draws)]  # fmt: skip
    return jax.tree.map(lambda *x: jnp.concatenate(x), *parts)


def _descend(
    loss: Callable[[Any, jax.Array], jax.Array], params: Any, steps: int, rate: Any, key: jax.Array, name: str
):
    """Adam; prints the mean loss now and then."""
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate))

    @jax.jit
    def step(params: Any, state: Any, key: jax.Array) -> Any:
        value, gradient = jax.value_and_grad(loss)(params, key)
        with jax.numpy_dtype_promotion("standard"):
            updates, state = optimizer.update(gradient, state, params)
            return optax.apply_updates(params, updates), state, value

    state, total, start = optimizer.init(params), 0.0, time.perf_counter()
    for i in range(steps):
        params, state, value = step(params, state, jax.random.fold_in(key, i))
        total += float(value)
        if i % 50 == 49:
            print(f"  {name}, step {i + 1}: {total / 50:.4f}, {time.perf_counter() - start:.0f} s", flush=True)
            total = 0.0
    return params


def pretrain(config: Config, draws: Callable[[int], list[Draw]], key: jax.Array) -> Params:
    """The model, trained on whole contexts: its loss on the prefix and on what is asked."""
    params = init(jax.random.fold_in(key, 0), config)
    for stage, (length, batch, steps) in enumerate(config.stages):

        def loss(params: Params, key: jax.Array, length: int = length, batch: int = batch) -> jax.Array:
            example = drawn(draws(length), key, batch)
            whole = read(params, config, example.tokens)
            asked = picked(whole.hidden @ params["head"].T, example.targets)[0]
            return asked - jnp.mean(whole.logp[:, : length - 1])

        peak = config.rate if stage == 0 else config.rate / 3
        rate = optax.warmup_cosine_decay_schedule(0.0, peak, 30, steps, peak / 3 if stage == 0 else 0.0)
        params = _descend(loss, params, steps, rate, jax.random.fold_in(key, stage + 1), f"model at {length}")
    return params


def train_score(params: Params, config: Config, draws: list[Draw], key: jax.Array) -> Params:
    """The score of the tokens, trained with the loss of what comes later under random ratios; the model stays."""
    T, low, high = config.length, jnp.log(config.smallest), jnp.log(config.length / 4)

    def loss(score: Any, key: jax.Array) -> jax.Array:
        given = params | {"score": score}
        example = drawn(draws, jax.random.fold_in(key, 0), config.batch)
        prefix = read(params, config, example.tokens[:, :T])
        sizes = jnp.exp(jax.random.uniform(key, (config.batch,), minval=low, maxval=high)).astype(jnp.int32)
        memory = compress.compress(
            prefix.k,
            prefix.v,
            importance(given, config, prefix),
            size=T,
            block=config.block,
            levels=config.levels,
            shown=jnp.broadcast_to(sizes, prefix.k.shape[:2]),
            gate=1.0,
        )
        return picked(answer(given, config, example.tokens[:, T:], prefix.last, memory), example.targets[:, T:])[0]

    rate = optax.cosine_decay_schedule(0.02, config.steps)
    return params | {"score": _descend(loss, params["score"], config.steps, rate, key, "score")}


def curve(
    params: Params, config: Config, draw: Draw, method: Method, sizes: tuple[int, ...], *, examples: int, key: jax.Array
) -> list[tuple[float, float]]:
    """For each number of entries of our memory, the loss and the share right of a method at the same bytes."""
    ours = method in (*MERGING, "pooling")
    T, batch = config.length, 16
    scale = entry_bytes(config, mass=True) / entry_bytes(config, mass=ours)
    counts = jnp.array([min(int(size * scale), T) for size in sizes], jnp.int32)

    @jax.jit
    def run(params: Params, key: jax.Array) -> Any:
        example = jax.vmap(draw)(jax.random.split(key, batch))

        def one(size: jax.Array) -> Any:
            window, newest = (size if method == name else None for name in ("window", "truncation"))
            prefix = read(params, config, example.tokens[:, :T], window=window, newest=newest)
            memory = remember(params, config, prefix, method, size, key)
            return picked(answer(params, config, example.tokens[:, T:], prefix.last, memory), example.targets[:, T:])

        return jax.lax.map(one, counts)

    found = [run(params, jax.random.fold_in(key, i)) for i in range(max(examples // batch, 1))]
    both = np.mean(np.array(jax.tree.map(np.asarray, found)), axis=0)  # [2, sizes]
    return [(float(value), float(right)) for value, right in both.T]


def fraction(none: float, compressed: float, full: float) -> float:
    """What is kept of what the context is worth."""
    return (none - compressed) / (none - full)


def trained(task: str, config: Config, key: jax.Array) -> Params:
    """The model and its score."""
    if task == "facts":
        params = pretrain(config, lambda length: [facts(0, length), facts(2, length)], key)
        return train_score(params, config, [facts(0), facts(2)], jax.random.fold_in(key, 9))
    params = pretrain(config, lambda length: [topics(False, length)], key)
    return train_score(params, config, [topics(False)], jax.random.fold_in(key, 9))


def main() -> None:
    """Train and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=("facts", "topics"), default="facts")
    parser.add_argument("--examples", type=int, default=96)
    given = parser.parse_args()
    config = replace(FACTS if given.task == "facts" else TOPICS)
    params = trained(given.task, config, jax.random.key(0))
    draws = {"spread": facts(0), "bursts": facts(2)} if given.task == "facts" else {"held out": topics(True)}
    sizes = (*(config.length // ratio for ratio in (1, 2, 4, 8, 16, 32, 64)), 0)
    print(f"entries {sizes}")
    for name, draw in draws.items():
        for method in METHODS:
            found = curve(params, config, draw, method, sizes, examples=given.examples, key=jax.random.key(99))
            print(name, method, *(f"{loss:.3f}/{right:.3f}" for loss, right in found), flush=True)


if __name__ == "__main__":
    main()
