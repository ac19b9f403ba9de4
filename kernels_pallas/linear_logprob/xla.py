"""Tiles of logits: one at a time is all that exists, forward and backward."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from kernels_pallas._vary import vary_together

from .reference import LinearLogprob


class _Running(NamedTuple):
    """Of the columns so far, `[R]` each: the greatest logit m, sum e^(z - m), sum e^(z - m) (z - m), the target's z."""

    most: jax.Array
    total: jax.Array
    below: jax.Array
    chosen: jax.Array


Forward = Callable[[jax.Array, jax.Array, jax.Array], LinearLogprob]


@partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def tiled(
    hidden: jax.Array, weight: jax.Array, targets: jax.Array, rows: int, columns: int, kernel: Forward | None = None
) -> LinearLogprob:
    """`reference` by tiles of `rows` tokens and `columns` words; the backward pass computes each tile again.

    A kernel may compute the values; the gradient is that of tiles.
    """
    if kernel is None:
        h, t = _in_rows(rows, hidden, targets)
        parts = lax.map(lambda chunk: _forward(chunk[0], chunk[1], weight, columns), (h, t))
        out = LinearLogprob(*(leaf.reshape(-1)[: len(targets)] for leaf in parts))
    else:
        out, _ = vary_together((kernel(hidden, weight, targets), hidden))
    inside = (targets >= 0) & (targets < weight.shape[0])
    return out._replace(logp=jnp.where(inside, out.logp, jnp.nan))


def _tiled_forward(
    hidden: jax.Array, weight: jax.Array, targets: jax.Array, rows: int, columns: int, kernel: Forward | None
) -> tuple[LinearLogprob, tuple[Any, ...]]:
    out = tiled(hidden, weight, targets, rows, columns, kernel)
    return out, (hidden, weight, targets, out.entropy, out.logsumexp)


def _tiled_backward(
    rows: int, columns: int, kernel: Forward | None, kept: tuple[Any, ...], slopes: LinearLogprob
) -> tuple[jax.Array, jax.Array, None]:
    hidden, weight, targets, entropy, logsumexp = kept
    parts = _in_rows(rows, hidden, targets, entropy, logsumexp, *slopes)
    start, width, common = _columns(weight, columns), min(columns, len(weight)), _common(hidden, weight)

    def one(change: tuple[jax.Array, jax.Array], at: tuple[jax.Array, jax.Array]) -> tuple[Any, None]:
        to_hidden, to_weight = change
        w = lax.dynamic_slice_in_dim(weight, at[0], width).astype(common)

        def chunk(total: jax.Array, part: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
            h, t, entropy, logsumexp, to_logp, to_entropy, to_logsumexp = part
            z, mine, hit = _logits(h.astype(common), w, t, at)
            z = z - logsumexp[:, None]
            slope = (to_logsumexp - to_logp)[:, None] - to_entropy[:, None] * (z + entropy[:, None])
            slope = jnp.where(mine, jnp.exp(z) * slope, 0) + jnp.where(hit, to_logp[:, None], 0)
            slope = slope.astype(common)
            return total + _dot(slope, h.astype(common), 0, 0), _dot(slope, w, 1, 0)

        zero, _ = vary_together((jnp.zeros(w.shape, logsumexp.dtype), parts))
        here, added = lax.scan(chunk, zero, parts)
        past = lax.dynamic_slice_in_dim(to_weight, at[0], width)
        here = past + here.astype(past.dtype)  # the last columns may have been in the tile before, and are zero here
        return (to_hidden + added, lax.dynamic_update_slice_in_dim(to_weight, here, at[0], 0)), None

    empty, _ = vary_together(((jnp.zeros(parts[0].shape, logsumexp.dtype), jnp.zeros_like(weight)), parts))
    (to_hidden, to_weight), _ = lax.scan(one, empty, start)
    return (
        to_hidden.reshape(math.prod(to_hidden.shape[:2]), hidden.shape[1])[: len(hidden)].astype(hidden.dtype),
        to_weight,
        None,
    )


tiled.defvjp(_tiled_forward, _tiled_backward)


def _forward(h: jax.Array, t: jax.Array, weight: jax.Array, columns: int) -> LinearLogprob:
    width, common = min(columns, len(weight)), _common(h, weight)
    h = h.astype(common)

    def one(past: _Running, at: tuple[jax.Array, jax.Array]) -> tuple[_Running, None]:
        z, mine, hit = _logits(h, lax.dynamic_slice_in_dim(weight, at[0], width).astype(common), t, at)
        most = jnp.maximum(past.most, jnp.max(jnp.where(mine, z, past.most[:, None]), axis=1))
        z_below, shift = z - most[:, None], past.most - most
        share, kept = jnp.where(mine, jnp.exp(z_below), 0), jnp.exp(shift)
        return _Running(
            most,
            past.total * kept + jnp.sum(share, axis=1),
            (past.below + past.total * shift) * kept + jnp.sum(jnp.where(mine, share * z_below, 0), axis=1),
            past.chosen + jnp.sum(jnp.where(hit, z, 0), axis=1),
        ), None

    dtype = _wide(h, weight)
    zero = jnp.zeros(len(h), dtype)
    start, _ = vary_together((_Running(jnp.full_like(zero, jnp.finfo(dtype).min), zero, zero, zero), h))
    found, _ = lax.scan(one, start, _columns(weight, columns))
    total = found.most + jnp.log(found.total)
    return LinearLogprob(found.chosen - total, jnp.log(found.total) - found.below / found.total, total)


def _logits(
    h: jax.Array, w: jax.Array, t: jax.Array, at: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """A tile `[R, C]`, which columns are its own, and which is the target's."""
    z = _dot(h, w, 1, 1)
    word = at[0] + lax.broadcasted_iota(jnp.int32, z.shape, 1)
    mine = word >= at[1]
    return z, mine, mine & (word == t[:, None])


def _dot(a: jax.Array, b: jax.Array, over_a: int, over_b: int) -> jax.Array:
    dtype = _wide(a, b)
    return lax.dot_general(a, b, (((over_a,), (over_b,)), ((), ())), preferred_element_type=dtype)


def _columns(weight: jax.Array, columns: int) -> tuple[jax.Array, jax.Array]:
    """Where each tile of columns starts, and its first own column: the last one may begin in the tile before."""
    own = np.arange(0, len(weight), columns, dtype=np.int32)
    start = np.minimum(own, max(len(weight) - columns, 0)).astype(np.int32)
    return jnp.asarray(start), jnp.asarray(own)


def _in_rows(rows: int, *arrays: jax.Array) -> tuple[jax.Array, ...]:
    """Arrays `[N, ...]` as `[N / rows, rows, ...]`, zeros at the end."""
    count = len(arrays[0])
    rows = max(1, min(rows, count))
    room = -count % rows
    padded = [jnp.pad(x, [(0, room)] + [(0, 0)] * (x.ndim - 1)) for x in arrays]
    return tuple(x.reshape((count + room) // rows, rows, *x.shape[1:]) for x in padded)


def _common(hidden: jax.Array, weight: jax.Array) -> Any:
    return np.result_type(hidden.dtype, weight.dtype)


def _wide(a: jax.Array, b: jax.Array) -> Any:
    return np.result_type(np.float32, a.dtype, b.dtype)
