"""Which leaves of a tree are weights, and how many bits each gets."""

import re
from collections.abc import Mapping
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from rlx import weights
from rlx._checks import check_choice, is_array
from rlx._names import some
from rlx._tree import named_leaves

from ._quantize import Bits

Rule: TypeAlias = Bits | Mapping[str, Bits]

# Of a representation: what is a weight itself. An adapter's factors and scales are not.
_INSIDE = ("base", "table", "head")
_EMBEDDING = re.compile(r"embed|(^|\.)(wte|wpe|shared|token_type|position)(\.|$)", re.IGNORECASE)
_ENDS = re.compile(r"(^|\.)(lm_head|head|classifier|score|output_projection|patch_embed\w*|patch_embedding)(\.|$)")


def plan_bits(params: Any, rule: Rule) -> dict[str, Bits]:
    """The bits of each weight under a rule.

    Args:
      params: a tree of arrays or of representations.
      rule: 2, 4 or 8 for every weight; or bits by regular expression, searched in each dotted path; the first
        that matches counts.

    Returns:
      Bits by the path of each weight that the rule finds. Weights are floating leaves `[..., out, in]`, and
      each `kernel` of flax; not biases and norms (by name, since stacked layers give them two axes), not an
      adapter's own arrays, not what is quantised already.

    Raises:
      TypeError: the rule is neither bits nor a mapping; a pattern is no text.
      ValueError: a pattern matches no weight, or is no regular expression; bits that are not 2, 4 or 8.

    Example:
      >>> import jax.numpy as jnp
      >>> from rlx import quantize
      >>> params = {"embed": {"weight": jnp.ones((8, 4))}, "up": {"weight": jnp.ones((4, 4)), "bias": jnp.ones(4)}}
      >>> quantize.plan_bits(params, {"embed": 8, "": 2})
      {'embed.weight': 8, 'up.weight': 2}
    """
    if isinstance(rule, (int, np.integer)) and not isinstance(rule, bool):
        check_choice("rule", rule, (2, 4, 8))
        rule = {"": rule}
    if not isinstance(rule, Mapping):
        raise TypeError(f"rule: expected bits by regular expression, as in {{'_proj': 4}}, or 2, 4 or 8, got {rule!r}")
    found = matrices(params)
    chosen: dict[str, Bits] = {}
    for pattern, bits in rule.items():
        check_choice(f"rule[{pattern!r}]", bits, (2, 4, 8))
        for path in matching(found, "rule", pattern):
            chosen.setdefault(path, bits)
    return {path: chosen[path] for path in found if path in chosen}


def standard_rule(params: Any, *, bits: Bits = 2, embeddings: Bits = 8, ends: Bits = 8) -> dict[str, Bits]:
    """The usual rule: few bits everywhere but at the two ends of a network and in its tables.

    Args:
      params: a tree of arrays.
      bits: of every other weight.
      embeddings: of what looks rows up, by name: tokens, positions. A table that is the head too is one of them.
      ends: of heads and of patch embeddings, by name, through which everything goes.

    Returns:
      Bits by regular expression, one for each weight, for `quantize_tree` and `qat`.

    Raises:
      ValueError: bits that are not 2, 4 or 8, or a tree without a weight.

    Example:
      >>> import jax.numpy as jnp
      >>> from rlx import quantize
      >>> one = {"weight": jnp.ones((4, 4))}
      >>> params = {"embed_tokens": one, "layers": {"up_proj": one}, "lm_head": one}
      >>> quantize.plan_bits(params, quantize.standard_rule(params))
      {'embed_tokens.weight': 8, 'layers.up_proj.weight': 2, 'lm_head.weight': 8}

    References:
      Esser et al. 2019, "Learned Step Size Quantization", section 3: first and last layers at 8 bits.
    """
    for name, value in (("bits", bits), ("embeddings", embeddings), ("ends", ends)):
        check_choice(name, value, (2, 4, 8))
    found = matrices(params)
    if not found:
        raise ValueError("params: the tree has no weight [..., out, in]")
    return {
        exactly(path): ends if _ENDS.search(path) else embeddings if _EMBEDDING.search(path) else bits for path in found
    }


def matrices(params: Any) -> dict[str, Any]:
    """The weights of a tree by path: floating arrays that stand for matrices."""
    named_leaves(params, is_low_bit)  # two leaves of one path are refused
    leaves = jax.tree_util.tree_leaves_with_path(params, is_leaf=is_low_bit)
    return {name: leaf for path, leaf in leaves if _is_weight(path, leaf) for name in [_name(path)]}


def matching(found: Mapping[str, Any], name: str, pattern: Any) -> dict[str, Any]:
    """Those of the weights whose path a regular expression is found in; none is an error that names the argument."""
    searched = compiled(name, pattern)
    matched = {path: leaf for path, leaf in found.items() if searched.search(path)}
    if not matched:
        raise ValueError(f"{name}: {pattern!r} matches no weight; the paths are {some(found, 40) or 'none'}")
    return matched


def as_weight(path: str, leaf: jax.Array) -> weights.Weight:
    """A weight `[..., out, in]`: the array itself, or for a `kernel` of flax, `[*in, *out]`, what it stands for."""
    leaf = jnp.asarray(leaf)
    return weights.Kernel(kernel=leaf, **_axes(path, leaf)) if is_kernel(path) else leaf


def as_matrix(path: str, leaf: jax.Array) -> jax.Array:
    """A weight as an array `[..., out, in]`."""
    return weights.dense(as_weight(path, leaf))


def as_leaf(path: str, matrix: jax.Array, leaf: Any) -> jax.Array:
    """Undo `as_matrix`: an array like the leaf that was there."""
    return jnp.swapaxes(matrix, -1, -2).reshape(leaf.shape) if is_kernel(path) else matrix


def is_low_bit(leaf: Any) -> bool:
    """Whether a node of a tree is quantised already, or in training for it."""
    return isinstance(leaf, (weights.QuantizedWeight, weights.FakeQuantized))


def is_kernel(path: str) -> bool:
    """Whether a path is that of a kernel of flax."""
    return path.split(".")[-1] == "kernel"


def exactly(path: str) -> str:
    """The regular expression of one path."""
    return f"^{re.escape(path)}$"


def compiled(name: str, pattern: Any) -> re.Pattern[str]:
    """A regular expression that an argument holds; a TypeError or a ValueError that names the argument."""
    if not isinstance(pattern, str):
        raise TypeError(f"{name}: expected a regular expression, got {pattern!r}")
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{name}: {pattern!r} is no regular expression: {error}") from error


def _axes(path: str, leaf: jax.Array) -> dict[str, int]:
    # The last axis is the output of a convolution, which has four axes and more, and of the projection after flax's
    # attention; the first axis is the input of its queries, keys and values, and of a plain layer.
    inputs = leaf.ndim - 1 if leaf.ndim >= 4 or (leaf.ndim == 3 and "out" in path.split(".")) else 1
    return {"inputs": inputs, "outputs": leaf.ndim - inputs}


def _name(path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")


def _is_weight(keys: tuple[Any, ...], leaf: Any) -> bool:
    if not (is_array(leaf) and leaf.ndim >= 2 and jnp.issubdtype(leaf.dtype, jnp.floating)):
        return False
    fields = [key.name for key in keys if isinstance(key, jax.tree_util.GetAttrKey)]
    if any(name not in _INSIDE for name in fields):
        return False
    path = _name(tuple(key for key in keys if not isinstance(key, jax.tree_util.GetAttrKey)))
    *modules, name = path.split(".")
    normed = any("norm" in part.lower() or part in ("ln_1", "ln_2", "ln_f") for part in (*modules[-1:], name))
    return "bias" not in name and not normed
