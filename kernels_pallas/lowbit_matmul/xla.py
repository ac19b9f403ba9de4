"""Products through XLA, and the gradient of every implementation: the weight is made again in the backward pass."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from kernels_pallas._vary import vary_together

from .reference import spread, unpack

Forward = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


@partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def dequantised(
    x: jax.Array, codes: jax.Array, scales: jax.Array, bits: int, block: int | None, kernel: Forward | None = None
) -> jax.Array:
    """`reference` of `[M, K]`; a kernel may compute the values. Kept for the gradient: the three arguments."""
    if kernel is not None:
        return vary_together((kernel(x, codes, scales), x))[0]
    z = _rows(x, _weight(x, codes, scales, bits, block), 1)
    return (z if block is not None else z * scales.astype(z.dtype)[None]).astype(x.dtype)


def _forward(
    x: jax.Array, codes: jax.Array, scales: jax.Array, bits: int, block: int | None, kernel: Forward | None
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    return dequantised(x, codes, scales, bits, block, kernel), (x, codes, scales)


def _backward(
    bits: int, block: int | None, kernel: Forward | None, kept: tuple[jax.Array, ...], g: jax.Array
) -> tuple[jax.Array, None, jax.Array]:
    x, codes, scales = kept
    weight = _weight(x, codes, scales, bits, block)
    if block is None:
        total = g.astype(_wide(x)) * scales.astype(_wide(x))[None]
        to_scales = jnp.sum(_rows(x, weight, 1) * g.astype(_wide(x)), axis=0)
    else:
        total = g
        dims = (((0,), (0,)), ((), ()))
        each = lax.dot_general(g, x, dims, preferred_element_type=_wide(x))
        each = each * unpack(codes, bits, x.shape[1]).astype(each.dtype)
        to_scales = jnp.sum(each.reshape(len(codes), -1, block), axis=2)
    return _rows(total.astype(weight.dtype), weight, 0).astype(x.dtype), None, to_scales.astype(scales.dtype)


dequantised.defvjp(_forward, _backward)


def _weight(x: jax.Array, codes: jax.Array, scales: jax.Array, bits: int, block: int | None) -> jax.Array:
    """`[N, K]` in the dtype of the product: codes alone, which are exact, or times the scales of their blocks."""
    dtype = np.float32 if x.dtype == jnp.float16 else x.dtype  # a small scale would vanish in float16
    whole = unpack(codes, bits, x.shape[-1])
    if block is None:
        return whole.astype(dtype)
    wide = _wide(x)
    return (whole.astype(wide) * spread(scales.astype(wide), block)).astype(dtype)


def _rows(x: jax.Array, weight: jax.Array, over: int) -> jax.Array:
    dims = (((1,), (over,)), ((), ()))
    return lax.dot_general(x.astype(weight.dtype), weight, dims, preferred_element_type=_wide(x))


def _wide(x: jax.Array) -> Any:
    return np.result_type(np.float32, x.dtype)
