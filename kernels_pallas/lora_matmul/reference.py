"""The definition: each row's own low-rank weight, written out."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from kernels_pallas._arguments import check_bits, check_dtypes


def check(x: jax.Array, weight: jax.Array, a: jax.Array, b: jax.Array, scale: jax.Array, ids: jax.Array | None) -> None:
    """Check shapes and dtypes; the errors name the argument."""
    for name, value in (("x", x), ("weight", weight), ("a", a), ("b", b), ("scale", scale)):
        if not jnp.issubdtype(value.dtype, jnp.floating):
            raise TypeError(f"{name}: expected a floating dtype, got {value.dtype}")
    check_dtypes(x=x, weight=weight, a=a, b=b)
    check_bits(x=x, weight=weight, a=a, b=b)
    if x.ndim < 1:
        raise ValueError(f"x: expected dims [..., K], got shape {x.shape}")
    if weight.ndim != 2 or weight.shape[1] != x.shape[-1]:
        raise ValueError(f"weight: expected dims [N, K={x.shape[-1]}] for K of x, got shape {weight.shape}")
    n, k = weight.shape
    bank = () if ids is None else a.shape[:1]
    if a.ndim != 2 + len(bank) or a.shape[-1] != k:
        dims = f"[r, K={k}]" if ids is None else f"[E, r, K={k}]"
        raise ValueError(f"a: expected dims {dims} for K of x, got shape {a.shape}")
    if b.shape != (*bank, n, a.shape[-2]):
        raise ValueError(f"b: expected shape {(*bank, n, a.shape[-2])} for weight and a, got {b.shape}")
    if scale.shape not in ((), bank):
        raise ValueError(f"scale: expected shape () or {bank}, got {scale.shape}")
    if ids is None:
        return
    if not jnp.issubdtype(ids.dtype, jnp.integer):
        raise TypeError(f"ids: expected an integer dtype, got {ids.dtype}")
    if ids.shape != x.shape[:-1]:
        raise ValueError(f"ids: expected shape {x.shape[:-1]}, one a row of x, got {ids.shape}")


def reference(
    x: jax.Array, weight: jax.Array, a: jax.Array, b: jax.Array, scale: jax.Array, ids: jax.Array | None
) -> jax.Array:
    """`x @ weight.T + scale * (x @ a.T) @ b.T` in float32, or wider."""
    dtype = np.result_type(np.float32, *(v.dtype for v in (x, weight, a, b)))
    wide, weight, a, b, scale = (v.astype(dtype) for v in (x, weight, a, b, scale))
    base = lax.dot_general(wide, weight, (((x.ndim - 1,), (1,)), ((), ())))
    if ids is None:
        return (base + scale * jnp.matmul(jnp.matmul(wide, a.T), b.T)).astype(x.dtype)
    if not len(a):
        return base.astype(x.dtype)
    inside = (ids >= 0) & (ids < len(a))
    at = jnp.where(inside, ids, 0)
    hidden = jnp.einsum("...k,...rk->...r", wide, a[at])
    term = jnp.einsum("...r,...nr->...n", hidden, b[at])
    factor = jnp.where(inside, jnp.broadcast_to(scale, a.shape[:1])[at], 0)
    return (base + factor[..., None] * jnp.where(inside[..., None], term, 0)).astype(x.dtype)
