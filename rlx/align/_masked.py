"""Sums over the tokens that count."""

from typing import Literal

import jax
import jax.numpy as jnp

from rlx._numerics import wide

Reduce = Literal["mean", "sum"]


def masked_reduce(values: jax.Array, mask: jax.Array, reduce: Reduce) -> jax.Array:
    """Values `[B, T]` to `[B]`: summed over the mask, or divided by its size (an empty mask gives 0)."""
    mask = mask.astype(values.dtype)
    total = jnp.sum(jnp.where(mask > 0, values, 0.0) * mask, axis=-1)
    return total if reduce == "sum" else total / jnp.maximum(jnp.sum(mask, axis=-1), 1.0)


def masked_difference(a: jax.Array, b: jax.Array, mask: jax.Array) -> jax.Array:
    """`a - b` in float32 or wider where the mask holds, else 0: what lies in the padding never overflows."""
    dtype = wide(a.dtype, b.dtype)
    kept = mask.astype(jnp.bool_)
    return jnp.where(kept, a.astype(dtype), 0.0) - jnp.where(kept, b.astype(dtype), 0.0)
