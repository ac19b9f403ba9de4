"""Quantise the weights of a tree by a rule on their paths."""

import re
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from rlx import weights
from rlx._checks import is_array
from rlx._tree import named_leaves, replace_leaves

from ._quantize import Activations, Bits, quantize
from ._scales import Scale


def quantize_tree(
    params: Any,
    rule: Mapping[str, Bits],
    *,
    block: int | None = None,
    activations: Activations = "dynamic_int8",
    scale: Scale = "minmax",
) -> Any:
    """Quantise the weights of a tree whose paths match a rule.

    Args:
      params: a tree of arrays.
      rule: bits by regular expression, searched in each dotted path; the first that matches counts.
        Only floating leaves `[..., out, in]` are weights; biases and norms (by name, since stacked
        layers give them two axes) and what is quantised already stay as they are.
      block: as in `quantize`.
      activations: as in `quantize`.
      scale: as in `quantize`.

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
    leaves = {path: leaf for path, leaf in named_leaves(params, _is_quantized).items() if _is_weight(path, leaf)}
    found: dict[str, weights.QuantizedWeight] = {}
    for pattern, bits in rule.items():
        matched = [path for path in leaves if re.search(pattern, path)]
        if not matched:
            raise ValueError(f"rule: {pattern!r} matches no weight; the paths are {', '.join(leaves)}")
        for path in matched:
            if path not in found:
                leaf = jnp.asarray(leaves[path])
                found[path] = quantize(leaf, bits, block=block, activations=activations, scale=scale)
    return replace_leaves(params, found, _is_quantized)


def _is_quantized(leaf: Any) -> bool:
    return isinstance(leaf, weights.QuantizedWeight)


def _is_weight(path: str, leaf: Any) -> bool:
    *modules, name = path.split(".")
    if name == "bias" or any("norm" in part for part in (*modules[-1:], name)):
        return False
    return is_array(leaf) and leaf.ndim >= 2 and jnp.issubdtype(leaf.dtype, jnp.floating)
