"""Attention in float64 NumPy, one query after another; and arguments for its tests."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def truth(
    q: Any,
    k: Any,
    v: Any,
    blocks: Any = None,
    *,
    block_q: int = 1,
    block_k: int = 1,
    causal: bool = False,
    window: int | None = None,
    offset: int = 0,
    segments: Any = None,
    key_segments: Any = None,
    lengths: Any = None,
    key_lengths: Any = None,
    sinks: Any = None,
    softcap: float | None = None,
    scale: float | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """`[T, H, E]` and `[T, H]` of one example."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    (length, heads, d), (keys, shared) = q.shape, k.shape[:2]
    key_segments = segments if key_segments is None else key_segments
    key_lengths = lengths if key_lengths is None else key_lengths
    y, logsumexp = np.zeros((length, heads, v.shape[-1])), np.full((length, heads), -np.inf)
    for t in range(length):
        for h in range(heads):
            if (lengths is not None and t >= lengths) or (segments is not None and segments[t] < 0):
                continue
            seen = np.zeros(keys, bool)
            if blocks is None:
                seen[:] = True
            else:
                lists = np.asarray(blocks)
                row = lists[{1: 0, shared: h // (heads // shared)}.get(len(lists), h), t // block_q]
                for number in row:
                    if 0 <= number < -(-keys // block_k):
                        seen[number * block_k : (number + 1) * block_k] = True
            at = np.arange(keys)
            if causal:
                seen &= at <= t + offset
            if window is not None:
                seen &= np.abs(at - t - offset) < window
            if key_lengths is not None:
                seen &= at < key_lengths
            if segments is not None:
                seen &= np.asarray(key_segments) == segments[t]
            z = k[seen, h // (heads // shared)] @ q[t, h] * (d**-0.5 if scale is None else scale)
            if softcap is not None:
                z = softcap * np.tanh(z / softcap)
            everything = z if sinks is None else np.append(z, sinks[h])
            if not everything.size:
                continue
            top = everything.max()
            logsumexp[t, h] = top + np.log(np.exp(everything - top).sum())
            y[t, h] = np.exp(z - logsumexp[t, h]) @ v[seen, h // (heads // shared)]
    return y, logsumexp


def arguments(
    length: int = 37,
    keys: int | None = None,
    heads: int = 4,
    shared: int = 2,
    d: int = 8,
    e: int | None = None,
    batch: tuple[int, ...] = (),
    dtype: Any = jnp.float32,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Random queries, keys and values."""
    keys = length if keys is None else keys
    at = jax.random.split(jax.random.key(0), 3)
    shapes = (length, heads, d), (keys, shared, d), (keys, shared, d if e is None else e)
    q, k, v = (jax.random.normal(key, (*batch, *shape)).astype(dtype) for key, shape in zip(at, shapes, strict=True))
    return q, k, v


def some_blocks(heads: int, rows: int, size: int, count: int, seed: int = 0) -> np.ndarray:
    """Random lists, with numbers that come twice, and with -1."""
    return np.random.default_rng(seed).integers(-1, count, (heads, rows, size)).astype(np.int32)


def distance(actual: Any, expected: Any) -> float:
    """Relative, by the Frobenius norm, over what is finite; infinite where they are not so together."""
    a, b = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    if not np.array_equal(np.isfinite(a), np.isfinite(b)) or not np.array_equal(a[~np.isfinite(a)], b[~np.isfinite(b)]):
        return np.inf
    inside = np.isfinite(b)
    return float(np.linalg.norm(a[inside] - b[inside]) / max(np.linalg.norm(b[inside]), 1e-30))
