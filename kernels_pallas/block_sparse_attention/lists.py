"""Lists of key blocks: those of dense, causal and windowed attention, and a list brought in order."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kernels_pallas._arguments import whole

from .rules import Rules


def all_blocks(length: int, keys: int, *, block_q: int, block_k: int) -> np.ndarray:
    """Every key block for every block of `length` queries: `[1, N, M]` int32.

    Example:
      >>> all_blocks(4, 6, block_q=2, block_k=2)[0]
      array([[0, 1, 2],
             [0, 1, 2]], dtype=int32)
    """
    return _ranges(length, keys, block_q, block_k, None, None, 0)


def causal_blocks(length: int, keys: int, *, block_q: int, block_k: int, offset: int = 0) -> np.ndarray:
    """The key blocks that a block of queries sees when none sees a later position: `[1, N, n]` int32, -1 is none.

    Args:
      length, keys: how many queries and keys.
      block_q, block_k: of a block.
      offset: position of the first query, counted from the first key.

    Example:
      >>> causal_blocks(6, 6, block_q=2, block_k=2)[0]
      array([[ 0, -1, -1],
             [ 0,  1, -1],
             [ 0,  1,  2]], dtype=int32)
    """
    return _ranges(length, keys, block_q, block_k, None, 0, offset)


def window_blocks(
    length: int, keys: int, *, block_q: int, block_k: int, window: int, causal: bool = True, offset: int = 0
) -> np.ndarray:
    """The key blocks within a window: `[1, N, n]` int32, -1 is none; `n` grows with the window, not with the length.

    Args:
      length, keys: how many queries and keys.
      block_q, block_k: of a block.
      window: a query sees keys less than so many positions away.
      causal: whether it sees no later position.
      offset: position of the first query, counted from the first key.

    Example:
      >>> window_blocks(8, 8, block_q=2, block_k=2, window=2)[0]
      array([[ 0, -1],
             [ 0,  1],
             [ 1,  2],
             [ 2,  3]], dtype=int32)
    """
    window = whole("window", window)
    return _ranges(length, keys, block_q, block_k, window, 0 if causal else window - 1, offset)


def join_blocks(*lists: Any) -> jax.Array:
    """Lists after one another, `[..., L, N, n]` each, dims before the last broadcast; what is in two counts once.

    Example:
      >>> window = window_blocks(6, 6, block_q=2, block_k=2, window=1)
      >>> join_blocks(window, np.zeros((1, 3, 1), np.int32))[0]            # and the first block for all
      Array([[0, 0],
             [1, 0],
             [2, 0]], dtype=int32)
    """
    shape = np.broadcast_shapes(*(np.shape(x)[:-1] for x in lists))
    return jnp.concatenate([jnp.broadcast_to(jnp.asarray(x), (*shape, np.shape(x)[-1])) for x in lists], axis=-1)


def _ranges(
    length: int, keys: int, block_q: int, block_k: int, back: int | None, ahead: int | None, offset: int
) -> np.ndarray:
    """Blocks from `back` (excluded) positions before the first query to `ahead` after the last; None is all."""
    length, keys, offset = whole("length", length, 0), whole("keys", keys, 0), whole("offset", offset, None)
    block_q, block_k = whole("block_q", block_q), whole("block_k", block_k)
    count = -(-keys // block_k)
    start = np.arange(0, length, block_q)
    end = np.minimum(start + block_q, length) - 1 + offset
    first = np.zeros_like(start) if back is None else np.maximum(start + offset - back + 1, 0) // block_k
    last = np.full_like(start, count - 1) if ahead is None else np.minimum((end + ahead) // block_k, count - 1)
    size = max(int(np.max(last - first + 1, initial=0)), 0)
    blocks = first[:, None] + np.arange(size)[None, :]
    return np.where(blocks <= last[:, None], blocks, -1).astype(np.int32)[None]


class Lists(NamedTuple):
    """Lists in order: what needs no mask, then what needs one, then what is not there.

    Attributes:
      index: `[B or 1, L, N, n]`; what is not there, is in the list before, or is hidden as a whole is `M`, one past
        the last block.
      full: `[B or 1, L, N]`, how many need no mask.
      seen: `[B or 1, L, N]`, how many are there.
    """

    index: jax.Array
    full: jax.Array
    seen: jax.Array


def ordered(
    blocks: jax.Array,
    rules: Rules,
    length: int,
    keys: int,
    segments: jax.Array | None,
    key_segments: jax.Array | None,
) -> Lists:
    """Bring lists `[B or 1, L, N, n]` in order for `length` queries and `keys` keys."""
    count = -(-keys // rules.block_k)
    index = jnp.sort(jnp.where((blocks < 0) | (blocks >= count), count, blocks).astype(jnp.int32), axis=-1)
    same = index[..., 1:] == index[..., :-1]
    index = jnp.where(jnp.pad(same, ((0, 0),) * 3 + ((1, 0),)), count, index)
    row = jnp.arange(blocks.shape[2], dtype=jnp.int32)[None, None, :, None] * rules.block_q
    row_end = jnp.minimum(row + rules.block_q, length) - 1 + rules.offset
    row, column = row + rules.offset, index * rules.block_k
    column_end = jnp.minimum(column + rules.block_k, keys) - 1
    hidden, partial = index == count, column + rules.block_k > keys
    if rules.causal:
        hidden, partial = hidden | (column > row_end), partial | (column_end > row)
    if rules.window is not None:
        hidden = hidden | (column_end <= row - rules.window) | (column >= row_end + rules.window)
        partial = partial | (column <= row_end - rules.window) | (column_end >= row + rules.window)
    if segments is not None and key_segments is not None:
        least, most = (x[:, None, :, None] for x in _range(segments, rules.block_q, -1))
        batch = jnp.broadcast_to(index, (segments.shape[0], *index.shape[1:]))
        at = jnp.minimum(batch, count - 1).reshape(batch.shape[0], -1)
        found = _range(key_segments, rules.block_k, -2)
        key_least, key_most = (jnp.take_along_axis(x, at, axis=1).reshape(batch.shape) for x in found)
        hidden = hidden | (key_least > most) | (key_most < least)
        partial = partial | (least != most) | (key_least != key_most) | (least != key_least)
        index = batch
    kind = jnp.where(hidden, 2, partial.astype(jnp.int32))
    order = jnp.argsort(kind, axis=-1, stable=True)
    index = jnp.take_along_axis(jnp.where(hidden, count, index), order, axis=-1)
    return Lists(index, jnp.sum(kind == 0, -1, dtype=jnp.int32), jnp.sum(kind < 2, -1, dtype=jnp.int32))


def finer(lists: Lists, parts: int) -> jax.Array:
    """The same lists of blocks that are `parts` times smaller, `[B or 1, L, N, parts n]`."""
    part = jnp.arange(parts, dtype=jnp.int32)[None, None, None, None, :]
    return (lists.index[..., None] * parts + part).reshape(*lists.index.shape[:-1], -1)


class Turned(NamedTuple):
    """For each block of keys, who lists it.

    Attributes:
      order: `[B or 1, K or 1, items]`: the number of a block of queries, plus `N` times the head of the group where
        every head has a list; by block of keys, those that need no mask first.
      start: `[B or 1, K or 1, M + 1]`, where the items of a block of keys start.
      full: `[B or 1, K or 1, M]`, where those that need a mask do.
    """

    order: jax.Array
    start: jax.Array
    full: jax.Array


def turned(lists: Lists, shared: int, count: int) -> Turned:
    """Lists `[B, L, N, n]` in order, turned round, for `shared` key heads and `count` blocks of keys."""
    batch, heads, _, size = lists.index.shape
    place = jnp.arange(size, dtype=jnp.int32)[None, None, None, :]
    key = lists.index * 2 + (place >= lists.full[..., None]).astype(jnp.int32)
    key = jnp.where(place < lists.seen[..., None], key, 2 * count)
    key = key.reshape(batch, min(heads, shared), -1)
    order = jnp.argsort(key, axis=-1, stable=True)
    sorted_key = jnp.take_along_axis(key, order, axis=-1)
    edge = jnp.arange(2 * count + 1, dtype=jnp.int32)
    at = jax.vmap(jax.vmap(lambda x: jnp.searchsorted(x, edge).astype(jnp.int32)))(sorted_key)
    return Turned((order // size).astype(jnp.int32), at[..., ::2], at[..., 1::2])


def _range(segments: jax.Array, size: int, padding: int) -> tuple[jax.Array, jax.Array]:
    """The least and the greatest segment of each block, `[B, N]`."""
    room = -segments.shape[1] % size
    cut = jnp.pad(segments, ((0, 0), (0, room)), constant_values=padding).reshape(len(segments), -1, size)
    return cut.min(axis=2), cut.max(axis=2)
