"""Quantise the weights of a tree by a rule on their paths, and write quantised trees out."""

from collections.abc import Mapping
from typing import Any

import jax

from rlx import weights
from rlx._tree import named_leaves, replace_leaves

from ._gptq import gptq
from ._quantize import Activations, quantize
from ._rules import Rule, as_leaf, as_matrix, is_low_bit, matrices, plan_bits
from ._scales import Scale


def quantize_tree(
    params: Any,
    rule: Rule,
    *,
    block: int | None = None,
    activations: Activations = "dynamic_int8",
    scale: Scale = "minmax",
    moments: Mapping[str, jax.Array] | None = None,
    sweeps: int = 2,
) -> Any:
    """Quantise the weights of a tree whose paths match a rule.

    Args:
      params: a tree of arrays, some of which may be representations (the base of a LoRA is a weight). Kernels of
        flax (`[in, out]`, by their name) are taken as the `[out, in]` matrices that they stand for; `nn.scan`'s
        stacked ones are not recognised.
      rule: 2, 4 or 8 for every weight, or bits by regular expression; see `plan_bits`.
      block: as in `quantize`.
      activations: as in `quantize`.
      scale: as in `quantize`.
      moments: from `calibrate`: weights that have one are rounded with error feedback, by `gptq`.
      sweeps: as in `gptq`.

    Returns:
      The tree with `weights.QuantizedWeight` in place of the matched arrays.

    Raises:
      TypeError: the rule is neither bits nor a mapping.
      ValueError: a pattern matches no weight; a block that does not divide the inputs of one (names it).

    Example:
      >>> import jax.numpy as jnp
      >>> from rlx import quantize
      >>> small = quantize.quantize_tree({"up_proj": {"weight": jnp.ones((4, 8))}}, {"_proj": 4})
      >>> small["up_proj"]["weight"].codes.shape
      (4, 4)
    """
    leaves = matrices(params)
    found: dict[str, weights.QuantizedWeight] = {}
    for path, bits in plan_bits(params, rule).items():
        matrix = as_matrix(path, leaves[path])
        if block is not None and matrix.shape[-1] % block:
            raise ValueError(f"block: {block} does not divide the {matrix.shape[-1]} inputs of {path}")
        if moments is not None and path in moments:
            options: Any = {"block": block, "activations": activations, "scale": scale, "sweeps": sweeps}
            found[path] = gptq(matrix, moments[path], bits, **options)
        else:
            found[path] = quantize(matrix, bits, block=block, activations=activations, scale=scale)
    return replace_leaves(params, found, is_low_bit)


def merge(small: Any, params: Any) -> Any:
    """Write a tree of representations out as the dense arrays that they stand for.

    Args:
      small: from `quantize_tree`, `rotate_tree`, or `qat(...).attach`; adapters may be on top.
      params: the float tree that it was made from, for the shapes of its leaves.

    Returns:
      A tree of arrays with the structure and shapes of `params`, for a model that multiplies by itself
      (`linen.Module.apply`). Activations are then what that model computes with: float.

    Raises:
      ValueError: the trees have different paths.

    Example:
      >>> import jax.numpy as jnp
      >>> from rlx import quantize
      >>> params = {"Dense_0": {"kernel": jnp.ones((3, 5)), "bias": jnp.zeros(5)}}
      >>> quantize.merge(quantize.quantize_tree(params, 4), params)["Dense_0"]["kernel"].shape
      (3, 5)
    """
    before, after = named_leaves(params, _is_representation), named_leaves(small, _is_representation)
    if before.keys() != after.keys():
        raise ValueError(f"small: has other paths than params: {', '.join(sorted(before.keys() ^ after.keys()))}")
    found = {}
    for path, leaf in after.items():
        if _is_representation(leaf):
            dense = weights.dense
            for _ in leaf.shape[:-2]:
                dense = jax.vmap(dense)
            found[path] = as_leaf(path, dense(leaf), before[path])
    return replace_leaves(params, {path: found.get(path, leaf) for path, leaf in after.items()}, _is_representation)


def _is_representation(leaf: Any) -> bool:
    return isinstance(leaf, weights.Representation)
