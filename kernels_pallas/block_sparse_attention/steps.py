"""Arrays cut in blocks: what a scan over lists takes, one list against its queries a step, and back."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from .lists import Lists
from .rules import Inputs, Rules

COLUMNS = 256
"""Keys that a step takes at a time, where the list is that long."""


class Keys(NamedTuple):
    """`k [B, K, M, R, D]`, `v [B, K, M, R, E]` and `segments [B, M, R]` in blocks of R keys."""

    k: jax.Array
    v: jax.Array
    segments: jax.Array | None


class Step(NamedTuple):
    """One list against its queries; with one axis more in front, all of them.

    Attributes:
      q: `[B, K, G, C, D]`; where every query head has a list of its own, G is 1 and a head is a step.
      index: `[B or 1, K or 1, n]`.
      seen: how many of the longest list are there.
      row: the first query.
      segments: `[B, C]`.
      sinks: `[K, G]`.
    """

    q: jax.Array
    index: jax.Array
    seen: jax.Array
    row: jax.Array
    segments: jax.Array | None
    sinks: jax.Array | None


def at_once(rules: Rules, size: int) -> int:
    """How many blocks of a list of `size` are taken at a time."""
    return max(1, min(size, COLUMNS // rules.block_k))


def in_blocks(x: Inputs, rules: Rules) -> Keys:
    """Keys and values in whole blocks, zeros at the end."""

    def cut(a: jax.Array, filler: int = 0) -> jax.Array:
        room = -a.shape[1] % rules.block_k
        a = jnp.pad(a, ((0, 0), (0, room)) + ((0, 0),) * (a.ndim - 2), constant_values=filler)
        return a.reshape(a.shape[0], -1, rules.block_k, *a.shape[2:])

    segments = None if x.key_segments is None else cut(x.key_segments, -2)
    return Keys(cut(x.k).transpose(0, 3, 1, 2, 4), cut(x.v).transpose(0, 3, 1, 2, 4), segments)


def steps_of(x: Inputs, lists: Lists, rules: Rules) -> Step:
    """All lists, one after another: a list a block of queries, or one a block of queries and a head."""
    shared, group = x.k.shape[2], x.q.shape[2] // x.k.shape[2]
    heads = lists.index.shape[1]
    index = lists.index.transpose(2, 0, 1, 3)
    count = len(index)
    seen = lists.seen.transpose(2, 0, 1)
    each = group if heads not in (1, shared) else 1
    if each > 1:  # [N, B, K G, n] -> [N G, B, K, n]
        index = index.reshape(count, -1, shared, each, index.shape[-1]).transpose(0, 3, 1, 2, 4)
        index = index.reshape(count * each, *index.shape[2:])
        seen = seen.reshape(count, -1, shared, each).transpose(0, 3, 1, 2).reshape(count * each, -1, shared)
    number = jnp.repeat(jnp.arange(count, dtype=jnp.int32), each)
    sinks = None
    if x.sinks is not None:
        sinks = x.sinks.reshape(shared, group)
        sinks = sinks.T[:, :, None] if each > 1 else sinks[None]
        sinks = jnp.tile(sinks, (count, 1, 1))
    segments = None
    if x.segments is not None:
        room = -x.segments.shape[1] % rules.block_q
        segments = jnp.pad(x.segments, ((0, 0), (0, room)), constant_values=-1)
        segments = segments.reshape(len(segments), -1, rules.block_q).swapaxes(0, 1)[number]
    missing = -index.shape[-1] % at_once(rules, index.shape[-1])
    none = -(-x.k.shape[1] // rules.block_k)
    return Step(
        in_steps(x.q, heads, shared, rules),
        jnp.pad(index, ((0, 0),) * 3 + ((0, missing),), constant_values=none),
        jnp.max(seen, axis=(1, 2)),
        number * rules.block_q,
        segments,
        sinks,
    )


def in_steps(a: jax.Array, heads: int, shared: int, rules: Rules) -> jax.Array:
    """`[B, T, H, D]` as the steps have it, `[steps, B, K, G, C, D]`."""
    room = -a.shape[1] % rules.block_q
    a = jnp.pad(a, ((0, 0), (0, room), (0, 0), (0, 0)))
    a = a.reshape(a.shape[0], -1, rules.block_q, shared, a.shape[2] // shared, a.shape[3])
    if heads in (1, shared):
        return a.transpose(1, 0, 3, 4, 2, 5)
    a = a.transpose(1, 4, 0, 3, 2, 5)
    return a.reshape(-1, *a.shape[2:4], 1, *a.shape[4:])


def joined(a: jax.Array, x: Inputs, rules: Rules) -> jax.Array:
    """`[steps, B, K, G, C, D]` as `[B, T, H, D]`."""
    count, length, heads, _ = x.q.shape
    if x.blocks.shape[1] in (1, x.k.shape[2]):
        a = a.transpose(1, 0, 4, 2, 3, 5)
    else:
        a = a.reshape(-(-length // rules.block_q), -1, *a.shape[1:3], *a.shape[4:]).transpose(2, 0, 4, 3, 1, 5)
    return a.reshape(count, -1, heads, a.shape[-1])[:, :length]
