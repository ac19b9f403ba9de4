"""ListOps: nested MIN, MAX, MED and SM of digits, drawn from a key; dense and hierarchical attention learn it.

    python -m experiments.listops [--steps N] [--attention dense|hierarchical]

[MAX 2 9 [MIN 4 7 ] 0 ] is 9. The models are those of `experiments.recall`, without positions; they are told the value
of every bracket that closes while they learn, and are judged by the last one alone.
"""

import argparse
import time
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from experiments import recall
from experiments.tasks import Example

OPERATORS = ("MIN", "MAX", "MED", "SM")
FIRST, CLOSE = 11, 15  # tokens: 0 nothing, 1 to 10 the digits, then the operators with their brackets, then a bracket
VOCABULARY = 16
LENGTH, DEPTH, ARGUMENTS = 64, 4, 5


def listops(
    key: jax.Array,
    *,
    length: int,
    depth: int = 10,
    arguments: int = 10,
    nested: float = 0.25,
    every: bool = False,
) -> Example:
    """A random expression of at most `length` tokens that ends at the last one, whose value is asked there.

    The root is an operator of 2 to `arguments` arguments. Each argument is an operator with probability `nested`, as
    far as depth and length allow (its number of arguments is cut to what there is room for), and else a digit. MED is
    the whole part of the median, SM the sum modulo 10.

    Args:
      key: of the draw.
      length: T, at least 4.
      depth: how many operators may be in each other, at least 1.
      arguments: the most an operator has, at least 2.
      nested: the probability that an argument is an operator.
      every: whether the value of every bracket is asked where it closes.

    Returns:
      tokens `[T]`: zeros, then the expression; targets `[T]`: the token of a digit, or -1.

    References:
      Nangia & Bowman 2018, "ListOps" (arXiv 1804.06028); Tay et al. 2020, "Long Range Arena" (arXiv 2011.04006):
      a probability of 0.25, depth and arguments of at most 10. Deviations: an operator is opened only if it fits, where
      theirs are drawn freely and kept if their length is right, so here later arguments of a full expression are
      digits; the root is always an operator; brackets without the parentheses of the binary form.
    """
    for name, value, least in (("length", length, 4), ("depth", depth, 1), ("arguments", arguments, 2)):
        if value < least:
            raise ValueError(f"{name}: {value}; at least {least}")
    levels, slots = jnp.arange(depth, dtype=jnp.int32), jnp.arange(arguments, dtype=jnp.int32)

    def step(carry: Any, key: jax.Array) -> tuple[Any, tuple[jax.Array, jax.Array]]:
        at, room, operator, wanted, had, values = carry  # `at`: the level that is open, -1 before the root and after it
        k = jax.random.split(key, 4)
        level = jnp.maximum(at, 0)
        row = values[level]
        start = (at < 0) & (room > 0)
        done = (at < 0) & (room == 0)
        close = (at >= 0) & (had[level] == wanted[level])
        count = jnp.minimum(jax.random.randint(k[0], (), 2, arguments + 1, jnp.int32), room - jnp.where(start, 2, 1))
        opens = (at >= 0) & ~close & (at + 1 < depth) & (count >= 2) & (jax.random.uniform(k[1]) < nested)
        opens = start | opens
        digit = jax.random.randint(k[2], (), 0, 10, jnp.int32)
        chosen = jax.random.randint(k[3], (), 0, len(OPERATORS), jnp.int32)
        value = jnp.where(close, _apply(operator[level], row, wanted[level], slots), digit)
        token = jnp.where(done, 0, jnp.where(opens, FIRST + chosen, jnp.where(close, CLOSE, 1 + digit)))
        # What comes up is an argument of the level that is open then.
        next_at = jnp.where(opens, at + 1, jnp.where(close, at - 1, at))
        given = (close | ((at >= 0) & ~opens)) & (next_at >= 0)
        here = (levels == next_at) & given
        values = jnp.where(here[:, None] & (slots[None] == had[:, None]), value, values)
        new = (levels == next_at) & opens
        had = jnp.where(new, 0, had + here.astype(jnp.int32))
        operator, wanted = jnp.where(new, chosen, operator), jnp.where(new, count, wanted)
        spent = jnp.where(start, count + 2, jnp.where(opens, count + 1, 0))
        # After the root has closed there is no room for another.
        room = jnp.where(close & (next_at < 0), 0, room - spent)
        target = jnp.where(close & ((next_at < 0) | every), 1 + value, -1)
        return (next_at, room, operator, wanted, had, values), (token, target)

    nothing = jnp.zeros(depth, jnp.int32)
    start = (jnp.array(-1), jnp.array(length), nothing, nothing, nothing, jnp.zeros((depth, arguments), jnp.int32))
    start = jax.tree.map(lambda x: x.astype(jnp.int32), start)
    _, (tokens, targets) = jax.lax.scan(step, start, jax.random.split(key, length))
    shift = length - jnp.sum(tokens > 0)
    back = (jnp.arange(length) - shift) % length
    return Example(tokens[back], targets[back])


def _apply(operator: jax.Array, row: jax.Array, count: jax.Array, slots: jax.Array) -> jax.Array:
    """The value of an operator on the first `count` of a row."""
    there = slots < count
    ordered = jnp.sort(jnp.where(there, row, 10))
    median = (ordered[(count - 1) // 2] + ordered[count // 2]) // 2
    total = jnp.sum(jnp.where(there, row, 0)) % 10
    return jnp.stack([ordered[0], ordered[count - 1], median, total])[operator]


CONFIG = replace(
    recall.CONFIGS["recall"], vocabulary=VOCABULARY, layers=4, block=8, beam=2, batch=32, steps=300, rate=3e-3
)


def measure(config: recall.Config, key: jax.Array) -> dict[str, float]:
    """Accuracy of the value of whole expressions, over fresh ones, and what the first operator alone tells."""
    draw = partial(listops, length=LENGTH, depth=DEPTH, arguments=ARGUMENTS)
    params, seconds = recall.train(config, partial(draw, every=True), key)
    score = recall.accuracy(params, config, draw, jax.random.key(99), examples=2048, batch=64)
    return {"accuracy": score, "seconds": seconds, "by_root": by_root(draw)}


def by_root(draw: Any, examples: int = 8192) -> float:
    """The accuracy of the most frequent value for each root operator."""
    drawn = jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(7), examples))
    first = jnp.argmax(drawn.tokens > 0, axis=1)
    root = jnp.take_along_axis(drawn.tokens, first[:, None], axis=1)[:, 0] - FIRST
    table = jnp.zeros((len(OPERATORS), 10), jnp.int32).at[root, drawn.targets[:, -1] - 1].add(1)
    return float(jnp.sum(jnp.max(table, axis=1))) / examples


def main() -> None:
    """Train and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--attention", choices=("dense", "hierarchical"), default="hierarchical")
    parser.add_argument("--steps", type=int, default=CONFIG.steps)
    given = parser.parse_args()
    config = replace(CONFIG, attention=given.attention, steps=given.steps)
    print(config)
    start = time.perf_counter()
    print(measure(config, jax.random.key(0)), f"{time.perf_counter() - start:.0f} s in all")


if __name__ == "__main__":
    main()
