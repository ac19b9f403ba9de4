"""The gradient of what was found: it goes to the keys found, and `[Q, N]` is not made for it."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from kernels_pallas._vary import vary_together

from . import xla
from .reference import MatmulTopk, wide

Find = Callable[[jax.Array, jax.Array, jax.Array | None, jax.Array | None], MatmulTopk]


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def topk(
    queries: jax.Array, keys: jax.Array, bias: jax.Array | None, lengths: jax.Array | None, find: Find
) -> MatmulTopk:
    """What `find` finds; the gradient of the scores is that of `queries[q] . keys[n] + bias[n]` at the indices."""
    out, _ = vary_together((find(queries, keys, bias, lengths), queries))
    return out


def _topk_forward(
    queries: jax.Array, keys: jax.Array, bias: jax.Array | None, lengths: jax.Array | None, find: Find
) -> tuple[MatmulTopk, tuple[Any, ...]]:
    out = topk(queries, keys, bias, lengths, find)
    return out, (queries, keys, bias, out.indices)


def _topk_backward(find: Find, kept: tuple[Any, ...], slopes: MatmulTopk) -> tuple[Any, ...]:
    queries, keys, bias, indices = kept
    dtype = wide(queries, keys)
    found, at = indices >= 0, jnp.maximum(indices, 0)
    slope = jnp.where(found, slopes.scores, 0)
    rows = queries.astype(dtype)

    def one(change: tuple[jax.Array, jax.Array], place: tuple[jax.Array, ...]) -> tuple[Any, None]:
        to_queries, to_keys = change
        at, found, slope = place[0], place[1][:, None], place[2][:, None]
        chosen = jnp.where(found, keys[at].astype(dtype), 0)  # no NaN from a key that was not found
        return (to_queries + slope * chosen, to_keys.at[at].add(jnp.where(found, slope * rows, 0))), None

    zero, _ = vary_together(((jnp.zeros(queries.shape, dtype), jnp.zeros(keys.shape, dtype)), (slope, queries, keys)))
    (to_queries, to_keys), _ = lax.scan(one, zero, (at.T, found.T, slope.T))
    to_bias = None
    if bias is not None:
        empty, _ = vary_together((jnp.zeros(bias.shape, bias.dtype), slope))
        to_bias = empty.at[at.reshape(-1)].add(slope.reshape(-1).astype(bias.dtype))
    return to_queries.astype(queries.dtype), to_keys.astype(keys.dtype), to_bias, None


topk.defvjp(_topk_forward, _topk_backward)


@partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def maxima(
    queries: jax.Array,
    keys: jax.Array,
    bias: jax.Array | None,
    lengths: jax.Array | None,
    group: int,
    columns: int,
    kernel: xla.Kernel | None,
) -> jax.Array:
    """`xla.maxima`; the gradient computes each tile again, and shares a slope among the keys that have the maximum."""
    out, _ = vary_together((xla.maxima(queries, keys, bias, lengths, group, columns, kernel), queries))
    return out


def _maxima_forward(
    queries: jax.Array,
    keys: jax.Array,
    bias: jax.Array | None,
    lengths: jax.Array | None,
    group: int,
    columns: int,
    kernel: xla.Kernel | None,
) -> tuple[jax.Array, tuple[Any, ...]]:
    return maxima(queries, keys, bias, lengths, group, columns, kernel), (queries, keys, bias, lengths)


def _maxima_backward(
    group: int, columns: int, kernel: xla.Kernel | None, kept: tuple[Any, ...], slope: jax.Array
) -> tuple[Any, ...]:
    queries, keys, bias, lengths = kept

    def again(queries: jax.Array, keys: jax.Array, bias: jax.Array | None) -> jax.Array:
        return xla.maxima(queries, keys, bias, lengths, group, columns, None, finite=True)

    _, pull = jax.vjp(again, queries, keys, bias)
    return *pull(slope), None


maxima.defvjp(_maxima_forward, _maxima_backward)
