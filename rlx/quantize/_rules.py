"""Which leaves of a tree are weights, and how many bits each gets."""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from rlx import weights
from rlx._checks import check_choice, is_array
from rlx._names import some
from rlx._tree import named_leaves

from ._kernels import as_kernel, compiled, is_raw, read_kernel, unread
from ._layers import LayerBits, layer_names
from ._quantize import Bits

Rule: TypeAlias = Bits | Mapping[str, Bits]

# Of a representation: what is a weight itself. An adapter's factors and scales are not.
_INSIDE = ("base", "table", "head")
_EMBEDDING = re.compile(r"embed|(^|\.)(wte|wpe|shared|token_type|position)(\.|$)", re.IGNORECASE)
_ENDS = re.compile(
    r"(^|\.)(lm_head|head|classifier|score|reader|(output|image|text|visual)_projection|patch_embed\w*)(\.|$)"
)


def plan_bits(params: Any, rule: Rule) -> dict[str, LayerBits]:
    """The bits of each weight under a rule.

    Args:
      params: a tree of arrays or of representations.
      rule: 2, 4 or 8 for every weight; or bits by regular expression, searched in each dotted path and, of a
        stack of layers, in Hugging Face's name of each layer's weight (`model.layers.0.mlp.up_proj.weight`); the
        first that matches counts. The layers of flax's kernels (see `kernels`) whose path has no `layers` or the like
        are the path and a number, `blocks.Dense_0.kernel.0`.

    Returns:
      Bits by the path of each weight that the rule finds; a tuple with one for each layer of a stack where they
      differ. Weights are floating leaves `[..., out, in]`, and each `kernel` of flax; not biases and norms (by name,
      since stacked layers give them two axes), not an adapter's own arrays, not what is quantised already.

    Raises:
      TypeError: the rule is neither bits nor a mapping; a pattern is no text.
      ValueError: no pattern; one that matches no weight, or is no regular expression; bits that are not 2, 4 or
        8; a stack some of whose layers have bits and others none.

    Example:
      >>> import jax.numpy as jnp
      >>> from rlx import quantize
      >>> up = {"weight": jnp.ones((3, 4, 4)), "bias": jnp.ones((3, 4))}
      >>> params = {"embed": {"weight": jnp.ones((8, 4))}, "layers": {"up": up}}
      >>> quantize.plan_bits(params, {"embed": 8, r"layers\\.(0|2)\\.": 8, "": 2})
      {'embed.weight': 8, 'layers.up.weight': (8, 2, 8)}
    """
    if isinstance(rule, (int, np.integer)) and not isinstance(rule, bool):
        check_choice("rule", rule, (2, 4, 8))
        rule = {"": rule}
    if not isinstance(rule, Mapping):
        raise TypeError(f"rule: expected bits by regular expression, as in {{'_proj': 4}}, or 2, 4 or 8, got {rule!r}")
    if not rule:
        raise ValueError("rule: is empty, so nothing would be quantised; {'': 8} is 8 bits for every weight")
    names = layers_of(matrices(params))
    chosen: dict[str, list[Any]] = {path: [None] * len(own) for path, own in names.items()}
    for pattern, bits in rule.items():
        check_choice(f"rule[{pattern!r}]", bits, (2, 4, 8))
        for path, at in matching_layers(names, "rule", pattern).items():
            for i in at:
                chosen[path][i] = int(bits) if chosen[path][i] is None else chosen[path][i]
    return {path: _settled(names[path], bits) for path, bits in chosen.items() if any(bits)}


def standard_rule(
    params: Any, *, bits: Bits = 2, embeddings: Bits = 8, ends: Bits = 8, outer: Bits = 8
) -> dict[str, Bits]:
    """The usual rule: few bits everywhere but at the two ends of a network and in its tables.

    Args:
      params: a tree of arrays.
      bits: of every other weight.
      embeddings: of what looks rows up, by name: tokens, positions. A table that is the head too is one of them.
      ends: of heads and of patch embeddings, by name, through which everything goes.
      outer: of the first and the last layer of each stack; a stack of one or two has no others. Where bytes count,
        it may be `bits` too: compare them at equal bytes.

    Returns:
      Bits by regular expression, one for each weight and before it those of its outer layers, for `quantize_tree`
      and `qat`.

    Raises:
      ValueError: bits that are not 2, 4 or 8, or a tree without a weight.

    Example:
      >>> import jax.numpy as jnp
      >>> from rlx import quantize
      >>> one = {"weight": jnp.ones((4, 4))}
      >>> params = {"embed_tokens": one, "layers": {"up_proj": {"weight": jnp.ones((4, 4, 4))}}, "lm_head": one}
      >>> quantize.plan_bits(params, quantize.standard_rule(params))
      {'embed_tokens.weight': 8, 'layers.up_proj.weight': (8, 2, 2, 8), 'lm_head.weight': 8}

    References:
      Esser et al. 2019, "Learned Step Size Quantization", section 3: first and last layers at 8 bits. There those
      are what is `ends` here; `outer` adds the transformer's first and last.
    """
    for name, value in (("bits", bits), ("embeddings", embeddings), ("ends", ends), ("outer", outer)):
        check_choice(name, value, (2, 4, 8))
    found = matrices(params)
    if not found:
        raise ValueError("params: the tree has no weight [..., out, in]")
    rule: dict[str, Bits] = {}
    for path, names in layers_of(found).items():
        own = ends if _ENDS.search(path) else embeddings if _EMBEDDING.search(path) else bits
        if own == bits != outer and names != (path,):
            rule |= {exactly(name): outer for name in (names[0], names[-1])}
        rule[exactly(path)] = own
    return rule


def matrices(params: Any) -> dict[str, Any]:
    """The weights of a tree by path: floating arrays that stand for matrices, flax's kernels as what can be read."""
    every = named_leaves(params, is_one)  # two leaves of one path are refused
    leaves = jax.tree_util.tree_leaves_with_path(params, is_leaf=is_one)
    found = {_name(path): leaf for path, leaf in leaves if _is_weight(path, leaf)}
    return {
        path: (read_kernel(path, leaf, every) if is_raw(path, leaf) else None) or leaf for path, leaf in found.items()
    }


def layers_of(found: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """The names of the layers of each weight; its path, where it is no stack."""
    return {
        path: (path,) if is_raw(path, leaf) else layer_names(path, leaf.shape, told=isinstance(leaf, weights.Kernel))
        for path, leaf in found.items()
    }


def matching_layers(names: Mapping[str, tuple[str, ...]], name: str, pattern: Any) -> dict[str, list[int]]:
    """Which layers of which weights a regular expression is found in; none is an error that names the argument."""
    searched = compiled(name, pattern)
    found: dict[str, list[int]] = {}
    for path, own in names.items():
        at = [i for i, one in enumerate(own) if searched.search(path) or searched.search(one)]
        if at:
            found[path] = at
    if not found:
        stack = next((own for path, own in names.items() if own != (path,)), None)
        more = "" if stack is None else f"; layers are named {stack[0]} to {stack[-1]}"
        raise ValueError(f"{name}: {pattern!r} matches no weight; {_paths(names)}{more}")
    return found


def matching(found: Mapping[str, Any], name: str, pattern: Any) -> dict[str, Any]:
    """Those of the weights whose path a regular expression is found in; none is an error that names the argument."""
    searched = compiled(name, pattern)
    matched = {path: leaf for path, leaf in found.items() if searched.search(path)}
    if not matched:
        raise ValueError(f"{name}: {pattern!r} matches no weight; {_paths(found)}")
    return matched


def _paths(names: Mapping[str, Any]) -> str:
    if names:
        return f"the paths are {some(names, 40)}"
    return (
        "the tree has none that could be quantised: a weight is a floating array of two axes or more, no bias, no "
        "norm, not quantised already; of flax.nnx, give nnx.to_pure_dict(nnx.state(model, nnx.Param))"
    )


def as_weight(path: str, leaf: Any) -> weights.Weight:
    """A weight `[..., out, in]` of those in `matrices`; a kernel of flax that could not be read is an error."""
    if isinstance(leaf, weights.Kernel):
        return replace(leaf, kernel=jnp.asarray(leaf.kernel))
    if is_raw(path, leaf):
        raise unread(path, leaf)
    return jnp.asarray(leaf)


def as_matrix(path: str, leaf: Any) -> jax.Array:
    """A weight as an array `[..., out, in]`."""
    return weights.dense(as_weight(path, leaf))


def as_leaf(path: str, matrix: jax.Array, leaf: Any) -> Any:
    """Undo `as_matrix`: what is like the leaf that was in the tree."""
    if isinstance(leaf, weights.Kernel):
        return replace(leaf, kernel=as_kernel(matrix, leaf.kernel.shape))
    return as_kernel(matrix, leaf.shape) if is_raw(path, leaf) else matrix


def is_one(leaf: Any) -> bool:
    """Whether a node of a tree is one leaf here: quantised already, in training for it, or a kernel of flax."""
    return isinstance(leaf, (weights.QuantizedWeight, weights.FakeQuantized, weights.Kernel))


def is_kernel(path: str, leaf: Any) -> bool:
    """Whether a weight is a kernel of flax."""
    return isinstance(leaf, weights.Kernel) or is_raw(path, leaf)


def exactly(path: str) -> str:
    """The regular expression of one path."""
    return f"^{re.escape(path)}$"


def _settled(names: tuple[str, ...], bits: list[Any]) -> LayerBits:
    """The bits of a weight from those of its layers."""
    missing = [name for name, one in zip(names, bits, strict=True) if one is None]
    if missing:
        raise ValueError(f"rule: some layers of a stack have bits and {some(missing)} none; add a pattern for these")
    return bits[0] if len(set(bits)) == 1 else tuple(bits)


def _name(path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")


def _is_weight(keys: tuple[Any, ...], leaf: Any) -> bool:
    leaf = leaf.kernel if isinstance(leaf, weights.Kernel) else leaf
    if not (is_array(leaf) and leaf.ndim >= 2 and jnp.issubdtype(leaf.dtype, jnp.floating)):
        return False
    fields = [key.name for key in keys if isinstance(key, jax.tree_util.GetAttrKey)]
    if any(name not in _INSIDE for name in fields):
        return False
    path = _name(tuple(key for key in keys if not isinstance(key, jax.tree_util.GetAttrKey)))
    *modules, name = path.split(".")
    normed = any("norm" in part.lower() or part in ("ln_1", "ln_2", "ln_f") for part in (*modules[-1:], name))
    return "bias" not in name and name != "scale" and not normed
