"""The definition."""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kernels_pallas._arguments import check_bits, check_dtypes

Kind = Literal["rms", "layer"]


class AddNorm(NamedTuple):
    """What `add_norm` returns.

    Attributes:
      normed: `[..., D]`, the sum normalised, scaled and shifted.
      sum: `[..., D]`, `x + residual`, or `x - residual`, in the wider dtype of the two.
    """

    normed: jax.Array
    sum: jax.Array


def check(x: jax.Array, residual: jax.Array, weight: jax.Array, bias: jax.Array | None, kind: str, eps: float) -> None:
    """Check shapes, dtypes and options; the errors name the argument."""
    if kind not in ("rms", "layer"):
        raise ValueError(f"kind: expected 'rms' or 'layer', got {kind!r}")
    if not eps > 0:
        raise ValueError(f"eps: expected a positive number, got {eps}")
    if x.ndim < 1 or x.shape[-1] < 1:
        raise ValueError(f"x: expected dims [..., D] with a channel or more, got shape {x.shape}")
    if residual.shape != x.shape:
        raise ValueError(f"residual: expected shape {x.shape}, that of x, got {residual.shape}")
    for name, value in (("weight", weight), ("bias", bias)):
        if value is not None and value.shape != x.shape[-1:]:
            raise ValueError(f"{name}: expected shape {x.shape[-1:]}, one a channel of x, got {value.shape}")
    for name, value in (("x", x), ("residual", residual), ("weight", weight), ("bias", bias)):
        if value is not None and not jnp.issubdtype(value.dtype, jnp.floating):
            raise TypeError(f"{name}: expected a floating dtype, got {value.dtype}")
    check_dtypes(x=x, residual=residual)
    check_bits(x=x, residual=residual, weight=weight, bias=bias)


def reference(
    x: jax.Array,
    residual: jax.Array,
    weight: jax.Array,
    bias: jax.Array | None,
    *,
    kind: Kind,
    eps: float,
    weight_offset: float,
    subtract: bool,
    dtype: Any,
) -> AddNorm:
    """Each quantity from its formula, in float32 of the sum as it is returned."""
    total = added(x, residual, subtract)
    s = total.astype(wide(total))
    if kind == "layer":
        s = s - jnp.mean(s, axis=-1, keepdims=True)
    s = s / jnp.sqrt(jnp.mean(jnp.square(s), axis=-1, keepdims=True) + eps)
    out = s * along(weight.astype(s.dtype) + weight_offset, s)
    if bias is not None:
        out = out + along(bias.astype(s.dtype), s)
    return AddNorm(out.astype(dtype), total)


def added(x: jax.Array, residual: jax.Array, subtract: bool) -> jax.Array:
    """`x + residual` or `x - residual`: in float32 or wider, rounded once to the wider dtype of the two."""
    dtype = np.result_type(x.dtype, residual.dtype)
    x, residual = (a.astype(wide(x, residual)) for a in (x, residual))
    return (x - residual if subtract else x + residual).astype(dtype)


def along(channels: jax.Array, like: jax.Array) -> jax.Array:
    """`[D]` as `[..., D]`."""
    return jax.lax.broadcast_in_dim(channels, like.shape, (like.ndim - 1,))


def wide(*arrays: jax.Array) -> Any:
    """What is computed in."""
    return np.result_type(np.float32, *(a.dtype for a in arrays))
