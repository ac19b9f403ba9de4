"""Products through XLA, and the gradient of every implementation."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from kernels_pallas._vary import vary_together

Trains = Literal["adapter", "all"]
Joined = Callable[[jax.Array, jax.Array, jax.Array, jax.Array], jax.Array]
"""`x [M, K], weight [N, K], hidden [M, R], b [N, R]` to `x @ weight.T + hidden @ b.T`, `[M, N]`."""


def separate(x: jax.Array, weight: jax.Array, hidden: jax.Array, b: jax.Array) -> jax.Array:
    """Two products and their sum."""
    return (_dot(x, weight, 1, 1) + _dot(hidden, b, 1, 1)).astype(x.dtype)


def folded(x: jax.Array, weight: jax.Array, hidden: jax.Array, b: jax.Array) -> jax.Array:
    """One product of both sides put together, which copies them."""
    together = jnp.concatenate((x, hidden.astype(x.dtype)), axis=1)
    return _dot(together, jnp.concatenate((weight, b.astype(weight.dtype)), axis=1), 1, 1).astype(x.dtype)


@partial(jax.custom_vjp, nondiff_argnums=(6, 7))
def low_rank(
    x: jax.Array,
    weight: jax.Array,
    a: jax.Array,
    b: jax.Array,
    scale: jax.Array,
    ids: jax.Array | None,
    trains: Trains,
    joined: Joined = separate,
) -> jax.Array:
    """`reference` of `[M, K]`; where ids `[M]` are given, of banks a `[E, r, K]`, b `[E, N, r]` and scale `[E]`.

    Every row meets every adapter of a bank, and those that are not its own are set to zero between the factors: E thin
    products are one, and no factor is gathered. Kept for the gradient: the arguments, and x @ a.T in float32.
    """
    return _forward(x, weight, a, b, scale, ids, trains, joined)[0]


def _forward(
    x: jax.Array,
    weight: jax.Array,
    a: jax.Array,
    b: jax.Array,
    scale: jax.Array,
    ids: jax.Array | None,
    trains: Trains,
    joined: Joined,
) -> tuple[jax.Array, tuple[Any, ...]]:
    hidden = _dot(x, _flat_a(a), 1, 1)
    scaled = _scaled(hidden, a, scale, ids).astype(_common(x, b))
    out = joined(x, weight, scaled, _flat_b(b))
    return vary_together((out, x))[0], (x, weight, a, b, scale, ids, hidden)


def _backward(trains: Trains, joined: Joined, kept: tuple[Any, ...], g: jax.Array) -> tuple[jax.Array | None, ...]:
    x, weight, a, b, scale, ids, hidden = kept
    back = _dot(g, _flat_b(b), 1, 0)
    to_hidden = _scaled(back, a, scale, ids).astype(x.dtype)
    to_x = _dot(g, weight, 1, 0) + _dot(to_hidden, _flat_a(a), 1, 0)
    to_a = _dot(to_hidden, x, 0, 0).reshape(a.shape)
    # [R, N], turned after: XLA's CPU compiler writes the tall and thin [N, R] as a loop.
    to_b = (
        _dot(_scaled(hidden, a, scale, ids).astype(x.dtype), g, 0, 0)
        .reshape(*a.shape[:-1], len(weight))
        .swapaxes(-1, -2)
    )
    to_scale = back * hidden
    if ids is not None:
        to_scale = jnp.sum(jnp.where(_own(ids, len(a))[..., None], to_scale.reshape(len(x), *a.shape[:2]), 0), (0, 2))
    to_scale = jnp.sum(to_scale) if scale.ndim == 0 else to_scale
    to_weight = _dot(g, x, 0, 0).astype(weight.dtype) if trains == "all" else None
    others = (to_a.astype(a.dtype), to_b.astype(b.dtype), to_scale.astype(scale.dtype))
    return (to_x.astype(x.dtype), to_weight, *others, None)


low_rank.defvjp(_forward, _backward)


def _scaled(hidden: jax.Array, a: jax.Array, scale: jax.Array, ids: jax.Array | None) -> jax.Array:
    """`[M, R]` numbers between the factors times the scale, or zero where they are of an adapter not the row's."""
    if ids is None:
        return hidden * scale.astype(hidden.dtype)
    count, rank = a.shape[:2]
    scale = jnp.broadcast_to(scale, (count,)).astype(hidden.dtype)
    each = hidden.reshape(len(hidden), count, rank) * scale[None, :, None]
    return jnp.where(_own(ids, count)[..., None], each, 0).reshape(hidden.shape)


def _own(ids: jax.Array, count: int) -> jax.Array:
    return ids[:, None] == jnp.arange(count, dtype=jnp.int32)[None]


def _flat_a(a: jax.Array) -> jax.Array:
    """`[E, r, K]` as `[E r, K]`."""
    return a.reshape(math.prod(a.shape[:-1]), a.shape[-1])


def _flat_b(b: jax.Array) -> jax.Array:
    """`[E, N, r]` as `[N, E r]`."""
    return b if b.ndim == 2 else b.swapaxes(0, 1).reshape(b.shape[1], b.shape[0] * b.shape[2])


def _dot(left: jax.Array, right: jax.Array, over_left: int, over_right: int) -> jax.Array:
    common = _common(left, right)
    dims = (((over_left,), (over_right,)), ((), ()))
    wide = np.result_type(np.float32, common)
    return lax.dot_general(left.astype(common), right.astype(common), dims, preferred_element_type=wide)


def _common(left: jax.Array, right: jax.Array) -> Any:
    return np.result_type(left.dtype, right.dtype)
