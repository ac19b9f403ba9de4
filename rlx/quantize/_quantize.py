"""Symmetric quantisation, one scale for each output."""

import re
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp

from rlx import weights
from rlx._checks import check_choice, check_dtype
from rlx._tree import named_leaves, replace_leaves
from rlx.weights._quantized import pack

Bits = Literal[2, 4, 8]

# TensorFlow Lite's symmetric ranges: 8 and 4 bits leave out the most negative code, 2 bits cannot afford to.
_RANGE = {8: (-127.0, 127.0), 4: (-7.0, 7.0), 2: (-2.0, 1.0)}


def quantize(
    w: jax.Array,
    bits: Bits,
    axis: int = 0,
    *,
    activations: Literal["dynamic_int8", "float"] = "dynamic_int8",
) -> weights.QuantizedWeight:
    """Round a weight to integer codes with one scale for each output.

    code = clip(round(w / scale), low, high),  scale[o] = max(max_i w[o, i] / high, min_i w[o, i] / low)

    with (low, high) = (-127, 127), (-7, 7), (-2, 1) for 8, 4, 2 bits. No code is clipped: the
    scale is the least that holds the row.

    Args:
      w: `[..., out, in]`, floating and finite; leading axes are stacked layers.
      bits: 2, 4 or 8.
      axis: the axis of a matrix that has a scale for each entry; outputs, 0, is what the formats have.
      activations: what a product does with its activations, see `weights.QuantizedWeight`.

    Returns:
      A `weights.QuantizedWeight`. A row of zeros has scale 1.

    Raises:
      TypeError: `w` is not floating.
      ValueError: `bits`, `axis` or `activations` is not one of the choices, or `w` is no matrix.

    Example:
      >>> import jax.numpy as jnp
      >>> from rlx import quantize
      >>> q = quantize.quantize(jnp.array([[1.0, -0.5, 0.25]]), 2)
      >>> q.integers().tolist(), q.scale.tolist()
      ([[1, 0, 0]], [1.0])
    """
    check_dtype("floating", w=w)
    check_choice("bits", bits, (2, 4, 8))
    check_choice("axis", axis, (0,))
    check_choice("activations", activations, ("dynamic_int8", "float"))
    if w.ndim < 2:
        raise ValueError(f"w: expected dims [..., out, in], got shape {w.shape}")
    codes, scale = _round(w.astype(jnp.float32), bits)
    packed = pack(codes.astype(jnp.int8), bits)
    return weights.QuantizedWeight(codes=packed, scale=scale, bits=bits, inputs=w.shape[-1], activations=activations)


def dequantize(q: weights.QuantizedWeight) -> jax.Array:
    """The array that a quantised weight stands for, `[..., out, in]` float32; the same as `weights.dense`.

    Example:
      >>> import jax.numpy as jnp
      >>> from rlx import quantize
      >>> quantize.dequantize(quantize.quantize(jnp.array([[127.0, -1.2]]), 8)).tolist()
      [[127.0, -1.0]]
    """
    return q.dense()


def fake_quant(w: jax.Array, bits: Bits) -> jax.Array:
    """Round as `quantize` does, stay in float, and let the gradient pass straight through.

    Args:
      w: `[..., out, in]`, floating.
      bits: 2, 4 or 8.

    Returns:
      `[..., out, in]` in the dtype of `w`; equal to `dequantize(quantize(w, bits))`. Its gradient
      is the identity.

    Raises:
      TypeError: `w` is not floating.
      ValueError: `bits` is not 2, 4 or 8.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from rlx import quantize
      >>> w = jnp.array([[7.0, 2.2]])
      >>> quantize.fake_quant(w, 4).tolist(), jax.grad(lambda w: quantize.fake_quant(w, 4).sum())(w).tolist()
      ([[7.0, 2.0]], [[1.0, 1.0]])

    References:
      Bengio et al. 2013, "Estimating or Propagating Gradients Through Stochastic Neurons" (straight-through).
    """
    check_dtype("floating", w=w)
    check_choice("bits", bits, (2, 4, 8))
    codes, scale = _round(w.astype(jnp.float32), bits)
    rounded = (codes * scale[..., None]).astype(w.dtype)
    return w + jax.lax.stop_gradient(rounded - w)


def quantize_tree(params: Any, rule: Mapping[str, Bits]) -> Any:
    """Quantise the weights of a tree whose paths match a rule.

    Args:
      params: a tree of arrays.
      rule: bits by regular expression, searched in each dotted path; the first that matches counts.
        Only floating leaves `[..., out, in]` that are not biases or norms are weights.

    Returns:
      The tree with `weights.QuantizedWeight` in place of the matched arrays.

    Raises:
      ValueError: a pattern matches no weight.

    Example:
      >>> import jax.numpy as jnp
      >>> from rlx import quantize
      >>> small = quantize.quantize_tree({"up_proj": {"weight": jnp.ones((4, 8))}}, {"_proj": 4})
      >>> small["up_proj"]["weight"].codes.shape
      (4, 4)
    """
    leaves = {
        path: leaf
        for path, leaf in named_leaves(params).items()
        if jnp.ndim(leaf) >= 2
        and jnp.issubdtype(jnp.asarray(leaf).dtype, jnp.floating)
        and not path.endswith("bias")
        and "norm" not in path
    }
    found: dict[str, weights.QuantizedWeight] = {}
    for pattern, bits in rule.items():
        matched = [path for path in leaves if re.search(pattern, path)]
        if not matched:
            raise ValueError(f"rule: {pattern!r} matches no weight; the paths are {', '.join(leaves)}")
        found = {**{path: quantize(jnp.asarray(leaves[path]), bits) for path in matched if path not in found}, **found}
    return replace_leaves(params, found)


def _round(w: jax.Array, bits: int) -> tuple[jax.Array, jax.Array]:
    low, high = _RANGE[bits]
    scale = jnp.maximum(jnp.max(w, axis=-1) / high, jnp.min(w, axis=-1) / low)
    scale = jnp.where(scale > 0, scale, 1.0)
    return jnp.clip(jnp.round(w / scale[..., None]), low, high), scale
