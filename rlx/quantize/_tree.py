"""Quantise the weights of a tree by a rule on their paths, and write quantised trees out."""

from collections.abc import Mapping
from typing import Any

import jax

from rlx import weights
from rlx._checks import check_whole
from rlx._names import some
from rlx._tree import named_leaves, replace_leaves
from rlx.weights._operations import Over

from ._gptq import gptq
from ._kernels import as_kernel, is_raw
from ._layers import quantized
from ._quantize import Activations, Bits, quantize
from ._rules import Rule, as_matrix, is_one, matrices, plan_bits
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
        flax (`[in, out]`, by their name) are taken as the `[out, in]` matrices that they stand for; those of more
        axes that their bias does not explain are to be told by `kernels`.
      rule: 2, 4 or 8 for every weight, or bits by regular expression, of single layers too; see `plan_bits`.
      block: as in `quantize`.
      activations: as in `quantize`.
      scale: as in `quantize`.
      moments: from `calibrate`: weights that have one are rounded with error feedback, by `gptq`. Those of weights
        that the rule leaves in float are not used.
      sweeps: as in `gptq`.

    Returns:
      The tree with `weights.QuantizedWeight` in place of the matched arrays. A stack whose layers have different
      bits is kept at the most of them; each layer's codes are those that it has alone.

    Raises:
      TypeError: the rule is neither bits nor a mapping, or the moments are no mapping.
      ValueError: no pattern, or one that matches no weight; moments by a path that is no weight of `params`; a
        block that does not divide the inputs of one (names it); a kernel of flax that can be read in more than
        one way.

    Example:
      >>> import jax.numpy as jnp
      >>> from rlx import quantize
      >>> small = quantize.quantize_tree({"up_proj": {"weight": jnp.ones((4, 8))}}, {"_proj": 4})
      >>> small["up_proj"]["weight"].codes.shape
      (4, 4)
    """
    if block is not None:
        check_whole("block", block, 1)
    leaves = matrices(params)
    _check_moments(moments, leaves)
    found: dict[str, weights.QuantizedWeight] = {}
    for path, bits in plan_bits(params, rule).items():
        matrix = as_matrix(path, leaves[path])
        if block is not None and matrix.shape[-1] % block:
            raise ValueError(f"block: {block} does not divide the {matrix.shape[-1]} inputs of {path}")

        def low(bits: Bits, w: jax.Array, *moment: jax.Array) -> weights.QuantizedWeight:
            if not moment:
                return quantize(w, bits, block=block, activations=activations, scale=scale)
            return gptq(w, moment[0], bits, block=block, activations=activations, scale=scale, sweeps=sweeps)

        moment = () if moments is None or path not in moments else (moments[path],)
        found[path] = quantized(low, bits, matrix, *moment)
    return replace_leaves(params, found, is_one)


def merge(small: Any, params: Any) -> Any:
    """Write a tree of representations out as the dense arrays that they stand for.

    Args:
      small: from `quantize_tree`, `rotate_tree`, or `qat(...).attach`; adapters may be on top.
      params: the float tree that it was made from, for the shapes of its leaves.

    Returns:
      A tree of arrays with the structure of `params` and its shapes (a `weights.Kernel` there is an array again), for
      a model that multiplies by itself (`linen.Module.apply`). Activations are then what that model computes with:
      float.

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
            found[path] = _as_before(path, dense(leaf), before[path])
    return replace_leaves(params, {path: found.get(path, leaf) for path, leaf in after.items()}, _is_representation)


def _as_before(path: str, matrix: jax.Array, before: Any) -> jax.Array:
    """A matrix `[..., out, in]` as the array that stands at a path: transposed where that is a kernel of flax."""
    while isinstance(before, Over):
        before = before.base
    if isinstance(before, weights.Kernel):
        return as_kernel(matrix, before.kernel.shape)
    return as_kernel(matrix, before.shape) if is_raw(path, before) else matrix


def _check_moments(moments: Any, leaves: Mapping[str, Any]) -> None:
    if moments is None:
        return
    if not isinstance(moments, Mapping):
        raise TypeError(f"moments: expected those of calibrate, by path, got {type(moments).__name__}")
    unknown = [str(path) for path in moments if path not in leaves]
    if unknown:
        raise ValueError(f"moments: {some(unknown)} is no weight of params; the paths are {some(leaves, 40) or 'none'}")


def _is_representation(leaf: Any) -> bool:
    return isinstance(leaf, weights.Representation)
