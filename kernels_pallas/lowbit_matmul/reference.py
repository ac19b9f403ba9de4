"""The definition: every number of the weight is written out, then one product."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from kernels_pallas._arguments import check_bits


def check(x: jax.Array, codes: jax.Array, scales: jax.Array, bits: int, block: int | None) -> None:
    """Check shapes and dtypes; the errors name the argument."""
    if bits not in (2, 4, 8):
        raise ValueError(f"bits: expected 2, 4 or 8, got {bits}")
    for name, value in (("x", x), ("scales", scales)):
        if not jnp.issubdtype(value.dtype, jnp.floating):
            raise TypeError(f"{name}: expected a floating dtype, got {value.dtype}")
    if codes.dtype != jnp.uint8:
        raise TypeError(f"codes: expected uint8, got {codes.dtype}")
    check_bits(x=x)
    if x.ndim < 1:
        raise ValueError(f"x: expected dims [..., K], got shape {x.shape}")
    if codes.ndim != 2 or codes.shape[1] != -(-x.shape[-1] * bits // 8):
        raise ValueError(
            f"codes: expected dims [N, {-(-x.shape[-1] * bits // 8)}], {bits} bits for each of K={x.shape[-1]} of x, "
            f"got shape {codes.shape}"
        )
    if block is None:
        if scales.shape != codes.shape[:1]:
            raise ValueError(f"scales: expected shape {codes.shape[:1]}, one a row of codes, got {scales.shape}")
        return
    if block < 1 or x.shape[-1] % block:
        raise ValueError(f"block: expected a divisor of K={x.shape[-1]}, got {block}")
    if scales.shape != (len(codes), x.shape[-1] // block):
        raise ValueError(
            f"scales: expected shape {(len(codes), x.shape[-1] // block)}, one a block of each row, got {scales.shape}"
        )


def unpack(codes: jax.Array, bits: int, inputs: int) -> jax.Array:
    """`[N, ceil(K bits / 8)]` bytes to `[N, K]` int8: two's complement, the lowest bits first."""
    if bits == 8:
        return lax.bitcast_convert_type(codes, jnp.int8)
    each = 8 // bits
    shift = np.arange(each, dtype=np.uint8) * np.uint8(bits)
    fields = (codes[..., None] >> shift.reshape((1,) * codes.ndim + (each,))) & np.uint8(2**bits - 1)
    half = np.int8(2 ** (bits - 1))
    signed = (fields.astype(jnp.int8) ^ half) - half
    return signed.reshape(*codes.shape[:-1], codes.shape[-1] * each)[..., :inputs]


def spread(scales: jax.Array, block: int | None) -> jax.Array:
    """A scale for each input, or one that broadcasts over them: `[N, K]` or `[N, 1]`."""
    return scales[:, None] if block is None else jnp.repeat(scales, block, axis=1)


def reference(x: jax.Array, codes: jax.Array, scales: jax.Array, bits: int, block: int | None) -> jax.Array:
    """`x @ (scale * code).T` in float32, or wider."""
    dtype = np.result_type(np.result_type(np.float32, x.dtype), scales.dtype)
    weight = unpack(codes, bits, x.shape[-1]).astype(dtype) * spread(scales.astype(dtype), block)
    dims = (((x.ndim - 1,), (1,)), ((), ()))
    return lax.dot_general(x.astype(dtype), weight, dims, preferred_element_type=dtype).astype(x.dtype)
