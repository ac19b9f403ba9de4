"""Products through XLA, and the gradient of every implementation: the weight is made again in the backward pass.

The weight is written out by planes: first every row's lowest bits of all its bytes, then the next ones, and x is put
into that order: a loop that writes neighbours from neighbours is faster on a CPU than one that interleaves the codes of
a byte. There one row of x alone writes no weight out: the codes of a few rows at a time are multiplied and summed.
"""

import functools
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from kernels_pallas._vary import vary_together

from .reference import spread, unpack

_TILE = 32  # rows of codes that one row of x meets at a time

Forward = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


@partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def dequantised(
    x: jax.Array, codes: jax.Array, scales: jax.Array, bits: int, block: int | None, kernel: Forward | None = None
) -> jax.Array:
    """`reference` of `[M, K]`; a kernel may compute the values. Kept for the gradient: the three arguments."""
    if kernel is not None:
        return vary_together((kernel(x, codes, scales), x))[0]
    if _few(x, codes, bits, block):
        z = _one_row(x, codes, scales, bits, block)
    else:
        z = _rows(_by_planes(x, bits), _weight(x, codes, scales, bits, block), 1)
    return (z if block is not None else z * scales.astype(z.dtype)[None]).astype(x.dtype)


def _forward(
    x: jax.Array, codes: jax.Array, scales: jax.Array, bits: int, block: int | None, kernel: Forward | None
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    return dequantised(x, codes, scales, bits, block, kernel), (x, codes, scales)


def _backward(
    bits: int, block: int | None, kernel: Forward | None, kept: tuple[jax.Array, ...], g: jax.Array
) -> tuple[jax.Array, None, jax.Array]:
    x, codes, scales = kept
    weight, wide = _weight(x, codes, scales, bits, block), _wide(x)
    if block is None:
        total = g.astype(wide) * scales.astype(wide)[None]
        to_scales = jnp.sum(_rows(_by_planes(x, bits), weight, 1) * g.astype(wide), axis=0)
    else:
        total = g
        each = lax.dot_general(g, x, (((0,), (0,)), ((), ())), preferred_element_type=wide)
        each = each * unpack(codes, bits, x.shape[1]).astype(wide)
        to_scales = jnp.sum(each.reshape(*scales.shape, block), axis=2)
    to_x = _rows(total.astype(weight.dtype), weight, 0).reshape(len(x), 8 // bits, codes.shape[1]).swapaxes(1, 2)
    to_x = to_x.reshape(len(x), weight.shape[1])[:, : x.shape[1]]
    return to_x.astype(x.dtype), None, to_scales.astype(scales.dtype)


dequantised.defvjp(_forward, _backward)


def _by_planes(x: jax.Array, bits: int) -> jax.Array:
    """`[M, K]` with the inputs whose codes are the lowest of their bytes first, then the next; zeros fill the bytes."""
    each = 8 // bits
    x = jnp.pad(x, ((0, 0), (0, -x.shape[1] % each)))
    return x.reshape(len(x), x.shape[1] // each, each).swapaxes(1, 2).reshape(x.shape)


def _planes(codes: jax.Array, bits: int) -> list[jax.Array]:
    """`[N, ceil(K bits / 8)]` each, whole numbers: code i of every byte."""
    if bits == 8:
        return [lax.bitcast_convert_type(codes, jnp.int8)]
    word, down = codes.astype(jnp.int32), np.int32(32 - bits)  # to the top of a word, then down: the sign is repeated
    return [(word << np.int32(down - i * bits)) >> down for i in range(8 // bits)]


def _few(x: jax.Array, codes: jax.Array, bits: int, block: int | None) -> bool:
    """Whether `_one_row` can compute it and is the faster one: tiles one after the other are for a CPU."""
    able = len(x) == 1 and codes.size > 0 and len(codes) % _TILE == 0 and (block is None or block % (8 // bits) == 0)
    return able and bits < 8 and jax.default_backend() == "cpu"


def _one_row(x: jax.Array, codes: jax.Array, scales: jax.Array, bits: int, block: int | None) -> jax.Array:
    """Of `[1, K]`, before the scales of rows: products are summed in float32 or wider and never leave a register."""
    each, wide = 8 // bits, _wide(x)
    rows = _by_planes(x, bits).reshape(each, codes.shape[1]).astype(wide)

    def tile(part: tuple[jax.Array, jax.Array]) -> jax.Array:
        pairs = zip(rows, _planes(part[0], bits), strict=True)
        total = functools.reduce(jnp.add, [plane.astype(wide) * row[None] for row, plane in pairs])
        if block is not None:
            total = jnp.sum(total.reshape(_TILE, -1, block // each), axis=2) * part[1].astype(wide)
        return jnp.sum(total, axis=1)

    parts = tuple(v.reshape(-1, _TILE, *v.shape[1:]) for v in (codes, scales))
    return lax.map(tile, parts).reshape(1, len(codes))


def _weight(x: jax.Array, codes: jax.Array, scales: jax.Array, bits: int, block: int | None) -> jax.Array:
    """The weight by planes, in the dtype of the product: codes alone, which are exact, or times the blocks' scales."""
    dtype = np.float32 if x.dtype == jnp.float16 else x.dtype  # a small scale would vanish in float16
    each, wide = 8 // bits, _wide(x)
    planes = jnp.stack(_planes(codes, bits), axis=1)
    shape = len(codes), each * codes.shape[1]
    if block is None:
        return planes.astype(dtype).reshape(shape)
    if block % each == 0:
        factor = jnp.repeat(scales, block // each, axis=1)[:, None]
    else:
        factor = _by_planes(spread(scales, block), bits).reshape(planes.shape)
    return (planes.astype(wide) * factor.astype(wide)).astype(dtype).reshape(shape)


def _rows(x: jax.Array, weight: jax.Array, over: int) -> jax.Array:
    dims = (((1,), (over,)), ((), ()))
    return lax.dot_general(x.astype(weight.dtype), weight, dims, preferred_element_type=_wide(x))


def _wide(x: jax.Array) -> Any:
    return np.result_type(np.float32, x.dtype)
