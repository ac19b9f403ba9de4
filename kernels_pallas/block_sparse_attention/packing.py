"""Arrays as the forward kernel reads them: rows of a list in multiples of 64, keys in whole blocks."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from .config import ROWS, packed
from .reference import BlockSparseAttention
from .rules import Inputs, Rules


@dataclass(frozen=True)
class Packed:
    """The arrays as the kernel reads them: `block` rows of a list a head, in multiples of 64; keys in whole blocks."""

    q: jax.Array
    k: jax.Array
    v: jax.Array
    segments: jax.Array | None
    key_segments: jax.Array | None
    block: int
    heads: int


def _groups(x: Inputs) -> int:
    """How many groups of query heads share a list."""
    return x.k.shape[2] if x.blocks.shape[1] in (1, x.k.shape[2]) else x.q.shape[2]


def _padded(x: jax.Array, size: int, filler: int = 0) -> jax.Array:
    room = -x.shape[1] % size
    return jnp.pad(x, ((0, 0), (0, room)) + ((0, 0),) * (x.ndim - 2), constant_values=filler) if room else x


def pack(x: Inputs, rules: Rules) -> Packed:
    """Rows of a list under one another, `[heads of the list, queries]`, where a head alone does not fill 64."""
    q, segments, block, heads = _padded(x.q, rules.block_q), x.segments, rules.block_q, x.q.shape[2]
    if segments is not None:
        segments = _padded(segments, rules.block_q, -1)
    if packed(rules):
        heads = _groups(x)
        each = x.q.shape[2] // heads
        q = q.reshape(q.shape[0], -1, rules.block_q, heads, each, q.shape[3]).transpose(0, 1, 4, 2, 3, 5)
        q = q.reshape(*q.shape[:2], each * rules.block_q, heads, q.shape[5])
        room = -q.shape[2] % ROWS
        block = q.shape[2] + room
        q = jnp.pad(q, ((0, 0), (0, 0), (0, room), (0, 0), (0, 0))).reshape(q.shape[0], -1, heads, q.shape[4])
        if segments is not None:
            segments = jnp.tile(segments.reshape(len(segments), -1, rules.block_q), (1, 1, each))
            segments = jnp.pad(segments, ((0, 0), (0, 0), (0, room)), constant_values=-1).reshape(len(segments), -1)
    key_segments = None if x.key_segments is None else _padded(x.key_segments, rules.block_k, -2)
    return Packed(q, _padded(x.k, rules.block_k), _padded(x.v, rules.block_k), segments, key_segments, block, heads)


def unpack(out: tuple[jax.Array, jax.Array], x: Inputs, rules: Rules) -> BlockSparseAttention:
    """The output and the log-sum-exp of the queries that there are."""
    y, logsumexp = out[0], out[1].swapaxes(1, 2)  # [B, rows, heads, E], [B, rows, heads]
    batch, length, heads, _ = x.q.shape
    if packed(rules):
        groups = _groups(x)
        each, count = heads // groups, -(-length // rules.block_q)

        def whole(a: jax.Array) -> jax.Array:
            a = a.reshape(batch, count, -1, groups, a.shape[-1])[:, :, : each * rules.block_q]
            a = a.reshape(batch, count, each, rules.block_q, groups, a.shape[-1]).transpose(0, 1, 3, 4, 2, 5)
            return a.reshape(batch, -1, heads, a.shape[-1])

        y, logsumexp = whole(y), whole(logsumexp[..., None])[..., 0]
    return BlockSparseAttention(y[:, :length], logsumexp[:, :length])
