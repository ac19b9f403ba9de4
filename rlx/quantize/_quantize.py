"""Arrays to quantised weights and back."""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from rlx import weights
from rlx._checks import check_choice, check_dtype, check_whole
from rlx.weights._lowbit import pack, spread

from ._scales import Scale, round_to_codes

Bits = Literal[2, 4, 8]
Activations = Literal["dynamic_int8", "float"]


def quantize(
    w: jax.Array,
    bits: Bits,
    axis: int = 0,
    *,
    block: int | None = None,
    activations: Activations = "dynamic_int8",
    scale: Scale = "minmax",
) -> weights.QuantizedWeight:
    """Round a weight to integer codes, symmetric about zero, with one scale for each output.

    code = clip(round(w / scale), low, high),  (low, high) = (-127, 127), (-7, 7), (-2, 1) at 8, 4, 2 bits

    Args:
      w: `[..., out, in]`, floating and finite; leading axes are stacked layers.
      bits: 2, 4 or 8.
      axis: the axis of the matrix `[out, in]` that keeps its own scales: 0, the outputs, as in the file formats.
      block: a scale for each `block` neighbouring inputs of an output; must divide `in`.
      activations: what a product does with its activations, see `weights.QuantizedWeight`.
      scale: "minmax", the least at which nothing is clipped,
        max(max_i w[o, i] / high, min_i w[o, i] / low); or "mse", of the least squared error
        (exactly at 2 and 4 bits, by search at 8), which is the better one at 2 and 4 bits.

    Returns:
      A `weights.QuantizedWeight`. Zeros have scale 1.

    Raises:
      TypeError: `w` is not floating.
      ValueError: `bits`, `axis`, `activations` or `scale` is not one of the choices, `w` is no
        matrix, or `block` does not divide its inputs.

    Example:
      >>> import jax.numpy as jnp
      >>> from rlx import quantize
      >>> q = quantize.quantize(jnp.array([[1.0, -0.5, 0.25]]), 2)
      >>> q.integers().tolist(), q.scale.tolist()
      ([[1, 0, 0]], [1.0])
    """
    check_choice("axis", axis, (0,))
    check_choice("activations", activations, ("dynamic_int8", "float"))
    check_dtype("floating", w=w)
    w = jnp.asarray(w)
    codes, scales = _codes(w, bits, block, scale)
    return packed(w, codes, scales, bits=bits, block=block, activations=activations)


def packed(
    w: jax.Array | weights.FakeQuantized,
    codes: jax.Array,
    scale: jax.Array,
    *,
    bits: int,
    block: int | None,
    activations: Activations,
    layer_bits: jax.Array | None = None,
) -> weights.QuantizedWeight:
    """The quantised weight of these codes `[..., out, in]` and scales, of the shape and dtype of `w`."""
    return weights.QuantizedWeight(
        codes=pack(codes.astype(jnp.int8), bits),
        scale=scale,
        bits=bits,
        inputs=w.shape[-1],
        block=block,
        activations=activations,
        dtype=np.dtype(w.dtype),
        layer_bits=layer_bits,
    )


def dequantize(q: weights.QuantizedWeight) -> jax.Array:
    """The array that a quantised weight stands for, `[..., out, in]`; the same as `weights.dense`.

    Example:
      >>> import jax.numpy as jnp
      >>> from rlx import quantize
      >>> quantize.dequantize(quantize.quantize(jnp.array([[127.0, -1.2]]), 8)).tolist()
      [[127.0, -1.0]]
    """
    if not isinstance(q, weights.QuantizedWeight):
        raise TypeError(f"q: expected a QuantizedWeight, as quantize gives, got {type(q).__name__}")
    return q.dense()


def fake_quant(
    w: jax.Array, bits: Bits, axis: int = 0, *, block: int | None = None, scale: Scale = "minmax"
) -> jax.Array:
    """Round as `quantize` does, stay in float, and let the gradient pass straight through.

    Args:
      w: `[..., out, in]`, floating.
      bits: 2, 4 or 8.
      axis: 0, as in `quantize`.
      block: as in `quantize`.
      scale: as in `quantize`.

    Returns:
      `[..., out, in]` in the dtype of `w`; equal to `dequantize(quantize(w, bits, ...))`. Its
      gradient is the identity, also where a code is clipped.

    Raises:
      TypeError: `w` is not floating.
      ValueError: as `quantize`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from rlx import quantize
      >>> w = jnp.array([[7.0, 2.2]])
      >>> quantize.fake_quant(w, 4).tolist(), jax.grad(lambda w: quantize.fake_quant(w, 4).sum())(w).tolist()
      ([[7.0, 2.0]], [[1.0, 1.0]])

    References:
      Bengio et al. 2013, "Estimating or Propagating Gradients Through Stochastic Neurons" (straight-through).
    """
    check_choice("axis", axis, (0,))
    check_dtype("floating", w=w)
    w = jnp.asarray(w)
    fixed = jax.lax.stop_gradient(w)
    codes, scales = _codes(fixed, bits, block, scale)
    return (codes * spread(scales, block, w.ndim)).astype(w.dtype) + (w - fixed)


def _codes(w: jax.Array, bits: int, block: int | None, scale: Scale) -> tuple[jax.Array, jax.Array]:
    """Codes `[..., out, in]` and scales `[..., out]` or `[..., out, in / block]`."""
    check_choice("bits", bits, (2, 4, 8))
    check_whole("bits", bits)
    check_choice("scale", scale, ("minmax", "mse"))
    checked_block(w, block)
    groups = w.astype(jnp.float32)
    if block is not None:
        groups = groups.reshape(*w.shape[:-1], -1, block)
    codes, scales = round_to_codes(groups, bits, scale)
    return codes.reshape(w.shape), scales


def checked_block(w: jax.Array, block: int | None) -> None:
    """Check that a weight is a matrix with something in it, and that blocks fill its rows."""
    if w.ndim < 2:
        raise ValueError(f"w: expected dims [..., out, in], got shape {w.shape}")
    if 0 in w.shape:
        raise ValueError(f"w: there is nothing in an array of shape {w.shape}")
    if block is None:
        return
    check_whole("block", block, 1)
    if w.shape[-1] % block:
        raise ValueError(f"block: {block} does not divide the {w.shape[-1]} inputs of w")
