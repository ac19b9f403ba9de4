"""The definition, all scores at once; and the check of arguments."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kernels_pallas._arguments import flag, number, whole, within

from .rules import Inputs, Rules, wide

FAR = 2**29
"""Positions and sizes of blocks are below, so that no sum of a few wraps around in int32."""


class BlockSparseAttention(NamedTuple):
    """What `block_sparse_attention` returns.

    Attributes:
      y: `[..., T, H, E]`, in the dtype of the queries.
      logsumexp: `[..., T, H]`, log of the softmax's denominator in nats, float32 (float64 for float64 inputs).
    """

    y: jax.Array
    logsumexp: jax.Array


def reference(x: Inputs, rules: Rules) -> BlockSparseAttention:
    """Softmax of all `[B, H, T, S]` scores, of which those in no list or against a rule are -inf."""
    (count, length, heads, d), (keys, shared) = x.q.shape, x.k.shape[1:3]
    group, dtype = heads // shared, wide(x.q.dtype)
    q = x.q.reshape(count, length, shared, group, d)
    z = jnp.einsum("btkgd,bskd->bkgts", q, x.k, preferred_element_type=dtype) * rules.scale
    if rules.softcap is not None:
        z = jnp.tanh(z / rules.softcap) * rules.softcap
    number = jnp.arange(-(-keys // rules.block_k), dtype=x.blocks.dtype)
    listed = jnp.any(x.blocks[..., None] == number[None, None, None, None, :], axis=-2)  # [B, L, N, M]
    listed = jnp.repeat(jnp.repeat(listed, rules.block_q, axis=2), rules.block_k, axis=3)[:, :, :length, :keys]
    listed = listed.reshape(len(listed), *_heads(listed.shape[1], shared, group), length, keys)
    rows, columns = jnp.arange(length, dtype=jnp.int32), jnp.arange(keys, dtype=jnp.int32)
    seen = listed & rules.sees(rows[:, None], columns[None, :], keys)[None, None, None]
    if x.segments is not None and x.key_segments is not None:
        seen = seen & (x.segments[:, None, None, :, None] == x.key_segments[:, None, None, None, :])
    z = jnp.where(seen, z, -jnp.inf)
    top = jnp.max(z, axis=-1, keepdims=True, initial=-jnp.inf)
    sinks = None if x.sinks is None else x.sinks.astype(dtype).reshape(1, shared, group, 1, 1)
    if sinks is not None:
        top = jnp.maximum(top, sinks)
    top = jax.lax.stop_gradient(jnp.where(top == -jnp.inf, 0, top))
    weights = jnp.exp(z - top)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    if sinks is not None:
        total = total + jnp.exp(sinks - top)
    nothing = total == 0
    total = jnp.where(nothing, 1, total)
    y = jnp.einsum("bkgts,bske->btkge", (weights / total).astype(x.v.dtype), x.v, preferred_element_type=dtype)
    logsumexp = jnp.where(nothing, -jnp.inf, top + jnp.log(total))[..., 0].transpose(0, 3, 1, 2)
    shape = count, length, heads
    return without_padding(y.astype(x.q.dtype).reshape(*shape, x.v.shape[-1]), logsumexp.reshape(shape), x)


def without_padding(y: jax.Array, logsumexp: jax.Array, x: Inputs) -> BlockSparseAttention:
    """Zeros and -inf in rows of padding, whatever the sinks; a slope that comes in there stops."""
    if x.segments is None:
        return BlockSparseAttention(y, logsumexp)
    real = (x.segments >= 0)[..., None]
    return BlockSparseAttention(jnp.where(real[..., None], y, 0), jnp.where(real, logsumexp, -jnp.inf))


def _heads(lists: int, shared: int, group: int) -> tuple[int, int]:
    return {1: (1, 1), shared: (shared, 1)}.get(lists, (shared, group))


def rules_of(
    width: int,
    causal: bool,
    window: int | None,
    softcap: float | None,
    scale: float | None,
    offset: int,
    block_q: int,
    block_k: int,
) -> Rules:
    """Check what is fixed; the errors name the argument."""
    block_q, block_k, offset = whole("block_q", block_q), whole("block_k", block_k), whole("offset", offset, None)
    for name, value in (("block_q", block_q), ("block_k", block_k), ("offset", offset)):
        if abs(value) >= FAR:
            raise ValueError(f"{name}: expected less than {FAR} either way, positions are int32, got {value}")
    if window is not None:
        window = min(whole("window", window), 2 * FAR)  # positions are never further apart
    if softcap is not None and (softcap := number("softcap", softcap)) <= 0:
        raise ValueError(f"softcap: expected a positive number, got {softcap}")
    return Rules(
        scale=width**-0.5 if scale is None else number("scale", scale),
        causal=flag("causal", causal),
        window=window,
        softcap=softcap,
        offset=offset,
        block_q=block_q,
        block_k=block_k,
    )


def check(q: jax.Array, k: jax.Array, v: jax.Array) -> None:
    """Check the shapes and dtypes of queries, keys and values; the errors name the argument."""
    for name, value, dims in (("q", q, "[..., T, H, D]"), ("k", k, "[..., S, K, D]"), ("v", v, "[..., S, K, E]")):
        if value.ndim < 3:
            raise ValueError(f"{name}: expected dims {dims}, got shape {value.shape}")
        if not jnp.issubdtype(value.dtype, jnp.floating):
            raise TypeError(f"{name}: expected a floating dtype, got {value.dtype}")
        if value.dtype != q.dtype:
            raise TypeError(f"{name}: dtype {value.dtype} disagrees with {q.dtype} of q; cast one of them")
        if value.shape[:-3] != q.shape[:-3]:
            raise ValueError(f"{name}: leading dims {value.shape[:-3]} disagree with {q.shape[:-3]} of q")
    if q.shape[-1] == 0:
        raise ValueError("q: D is 0; scores need at least one feature")
    if k.shape[-1] != q.shape[-1]:
        raise ValueError(f"k: dim D={k.shape[-1]} disagrees with D={q.shape[-1]} of q")
    if v.shape[-3:-1] != k.shape[-3:-1]:
        raise ValueError(f"v: dims S, K = {v.shape[-3:-1]} disagree with {k.shape[-3:-1]} of k")
    if k.shape[-2] == 0 or q.shape[-2] % k.shape[-2]:
        raise ValueError(f"k: {k.shape[-2]} heads do not divide the {q.shape[-2]} heads of q")


def check_blocks(blocks: Any, q: jax.Array, k: jax.Array, rules: Rules) -> jax.Array:
    """The lists as `[B or 1, L, N, n]` int32; the errors name the argument."""
    blocks = blocks if isinstance(blocks, jax.Array | np.ndarray) else jnp.asarray(blocks)
    if not jnp.issubdtype(blocks.dtype, jnp.integer):
        raise TypeError(f"blocks: expected an integer dtype, got {blocks.dtype}")
    batch, (length, heads), shared = q.shape[:-3], q.shape[-3:-1], k.shape[-2]
    rows = -(-length // rules.block_q)
    if blocks.ndim < 3 or blocks.shape[-3] not in (1, shared, heads) or blocks.shape[-2] != rows:
        one = " or ".join(str(size) for size in sorted({1, shared, heads}))
        raise ValueError(f"blocks: expected dims [..., {one} heads, {rows} blocks of queries, n], got {blocks.shape}")
    if blocks.shape[:-3] not in ((), batch):
        raise ValueError(f"blocks: leading dims {blocks.shape[:-3]} are neither () nor {batch}, those of q")
    count = math.prod(batch) if blocks.ndim > 3 else 1
    blocks = within(blocks, -1, -(-k.shape[-3] // rules.block_k)).reshape(count, *blocks.shape[-3:])
    return blocks if blocks.shape[-1] else jnp.full((*blocks.shape[:-1], 1), -1, jnp.int32)


def flat(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    blocks: jax.Array,
    segments: jax.Array | None,
    key_segments: jax.Array | None,
    lengths: jax.Array | None,
    key_lengths: jax.Array | None,
    sinks: jax.Array | None,
) -> Inputs:
    """Check the masks, and bring all to one batch dim and one mask: segments, negative where there is padding."""
    batch, count = q.shape[:-3], math.prod(q.shape[:-3])
    length, keys = q.shape[-3], k.shape[-3]
    pairs = ("segments", segments, "key_segments", key_segments), ("lengths", lengths, "key_lengths", key_lengths)
    for name, value, other, key_value in pairs:
        if value is None and key_value is not None and name == "segments":
            raise ValueError("key_segments: needs segments, those of the queries")
        if value is not None and key_value is None and length != keys:
            raise ValueError(f"{other}: needed with {name}, since T={length} and S={keys} differ")
    key_segments = segments if key_segments is None else key_segments
    key_lengths = lengths if key_lengths is None else key_lengths
    for name, value, shape in (
        ("segments", segments, (*batch, length)),
        ("key_segments", key_segments, (*batch, keys)),
        ("lengths", lengths, batch),
        ("key_lengths", key_lengths, batch),
    ):
        if value is not None and not jnp.issubdtype(value.dtype, jnp.integer):
            raise TypeError(f"{name}: expected an integer dtype, got {value.dtype}")
        if value is not None and value.shape != shape:
            raise ValueError(f"{name}: expected shape {shape}, got {value.shape}")
    if sinks is not None:
        if sinks.shape != (q.shape[-2],):
            raise ValueError(f"sinks: expected shape {(q.shape[-2],)}, one a head of q, got {sinks.shape}")
        if not jnp.issubdtype(sinks.dtype, jnp.floating):
            raise TypeError(f"sinks: expected a floating dtype, got {sinks.dtype}")
    q, k, v = (x.reshape(count, *x.shape[-3:]) for x in (q, k, v))
    if all(x is None for x in (segments, lengths, key_lengths)):
        return Inputs(q, k, v, blocks, None, None, sinks)
    segments, key_segments = _narrow(segments=segments, key_segments=key_segments)
    rows, columns = _marks(segments, lengths, (count, length), -1), _marks(key_segments, key_lengths, (count, keys), -2)
    q = jnp.where((rows >= 0)[..., None, None], q, 0)  # a weight of zero would still carry a NaN
    k, v = (jnp.where((columns >= 0)[..., None, None], x, 0) for x in (k, v))
    return Inputs(q, k, v, blocks, rows, columns, sinks)


def _narrow(**given: Any) -> list[jax.Array | None]:
    """Segments in one dtype, int32 (int64 where jax has it and they need it): one that does not fit is refused."""
    found = {name: value for name, value in given.items() if value is not None}
    dtype = np.dtype(np.int32)
    for name, value in found.items():
        if np.can_cast(value.dtype, np.int32):
            continue
        if isinstance(value, np.ndarray):
            if value.size and not (value.min() >= -(2**31) and value.max() < 2**31):
                raise ValueError(f"{name}: expected integers that fit int32, got {value.min()} to {value.max()}")
        elif jax.config.read("jax_enable_x64") and np.can_cast(value.dtype, np.int64):
            dtype = np.dtype(np.int64)
        else:
            raise TypeError(f"{name}: expected integers that fit int32, got {value.dtype}; cast them")
    return [None if value is None else jnp.asarray(value.astype(dtype)) for value in given.values()]


def _marks(segments: jax.Array | None, lengths: jax.Array | None, shape: tuple[int, int], padding: int) -> jax.Array:
    marks = jnp.zeros(shape, jnp.int32) if segments is None else segments.reshape(shape)
    if lengths is not None:
        inside = jnp.arange(shape[1], dtype=jnp.int32)[None, :] < within(lengths, 0, shape[1]).reshape(-1, 1)
        marks = jnp.where(inside, marks, padding)
    return jnp.where(marks < 0, padding, marks)
