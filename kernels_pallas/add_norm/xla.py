"""The forward pass with its statistics kept, and the backward pass by hand."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from kernels_pallas._vary import vary_together

from .reference import AddNorm, Kind, added, along, wide


@dataclass(frozen=True)
class Options:
    """What is fixed when it is traced.

    Attributes:
      kind, eps, weight_offset, subtract, dtype: arguments of `add_norm`.
      forward, backward: kernels that compute the same as `forward` and `backward` here, or None.
    """

    kind: Kind
    eps: float
    weight_offset: float
    subtract: bool
    dtype: Any
    forward: Callable[..., Any] | None = None
    backward: Callable[..., Any] | None = None


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def add_norm(options: Options, x: jax.Array, residual: jax.Array, weight: jax.Array, bias: jax.Array | None) -> AddNorm:
    """Rows `[N, D]`; the gradient keeps the sum, which is an output, and one or two numbers a row."""
    return _add_norm_forward(options, x, residual, weight, bias)[0]


def _add_norm_forward(
    options: Options, x: jax.Array, residual: jax.Array, weight: jax.Array, bias: jax.Array | None
) -> tuple[AddNorm, tuple[Any, ...]]:
    normed, total, mean, rstd = (options.forward or forward)(x, residual, weight, bias, options)
    # Of x, residual and bias only the dtype is needed.
    kept = [None if a is None else jnp.zeros(0, a.dtype) for a in (x, residual, bias)]
    normed, total, mean, rstd, weight, _ = vary_together((normed, total, mean, rstd, weight, x))
    return AddNorm(normed, total), (total, mean, rstd, weight, kept)


def _add_norm_backward(options: Options, kept: tuple[Any, ...], slopes: AddNorm) -> tuple[Any, ...]:
    total, mean, rstd, weight, (x, residual, bias) = kept
    made = (options.backward or backward)(slopes, total, mean, rstd, weight, options)
    slope, to_weight, to_bias, _ = vary_together((*made, total))
    return (
        slope.astype(x.dtype),
        (-slope if options.subtract else slope).astype(residual.dtype),
        to_weight.astype(weight.dtype),
        None if bias is None else to_bias.astype(bias.dtype),
    )


add_norm.defvjp(_add_norm_forward, _add_norm_backward)


def forward(
    x: jax.Array, residual: jax.Array, weight: jax.Array, bias: jax.Array | None, options: Options
) -> tuple[jax.Array, jax.Array, jax.Array | None, jax.Array]:
    """Normed and sum `[N, D]`; mean (None for "rms") and one over the deviation `[N]`, in float32 or wider."""
    total = added(x, residual, options.subtract)
    s, mean = total.astype(wide(total)), None
    if options.kind == "layer":
        mean = jnp.mean(s, axis=1)
        s = s - mean[:, None]
    rstd = jax.lax.rsqrt(jnp.mean(jnp.square(s), axis=1) + options.eps)
    out = s * rstd[:, None] * along(weight.astype(s.dtype) + options.weight_offset, s)
    if bias is not None:
        out = out + along(bias.astype(s.dtype), s)
    return out.astype(options.dtype), total, mean, rstd


def backward(
    slopes: AddNorm, total: jax.Array, mean: jax.Array | None, rstd: jax.Array, weight: jax.Array, options: Options
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The slope of the sum `[N, D]`, and those of weight and bias `[D]`, in float32 or wider.

    With n the normalised row and g = slope * weight: rstd * (g - n * mean(g n) - mean(g)), the last only of "layer".
    """
    dtype = rstd.dtype
    n = total.astype(dtype)
    if mean is not None:
        n = n - mean[:, None]
    n = n * rstd[:, None]
    slope = slopes.normed.astype(dtype)
    g = slope * along(weight.astype(dtype) + options.weight_offset, n)
    inside = g - n * jnp.mean(g * n, axis=1, keepdims=True)
    if mean is not None:
        inside = inside - jnp.mean(g, axis=1, keepdims=True)
    to_sum = rstd[:, None] * inside + slopes.sum.astype(dtype)
    return to_sum, jnp.sum(slope * n, axis=0), jnp.sum(slope, axis=0)
