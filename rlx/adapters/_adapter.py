"""What every adapter is: three pure functions over a tree of parameters and a tree of changes."""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from rlx import weights
from rlx._tree import key_at, named_leaves, replace_leaves

Params = Any
Delta = dict[str, dict[str, jax.Array]]


class Adapter(NamedTuple):
    """A way to change a tree of parameters by a small trained one.

    Attributes:
      init: `init(key, params) -> delta`; the trained arrays, keyed by the path of the weight
        they belong to. At the start, attaching them changes nothing.
      attach: `attach(params, delta) -> params` with adapted weights in place; factored.
      merge: `merge(params, delta) -> params` of dense arrays, the structure of the original.
    """

    init: Callable[[jax.Array, Params], Delta]
    attach: Callable[[Params, Delta], Params]
    merge: Callable[[Params, Delta], Params]


def over_matrices(
    where: str,
    start: Callable[[jax.Array, str, weights.Weight], dict[str, jax.Array]],
    adapt: Callable[[str, weights.Weight, dict[str, jax.Array]], weights.Weight],
) -> Adapter:
    """An adapter from what it does to one weight: `start(key, path, weight)` and `adapt(path, weight, arrays)`."""
    pattern = re.compile(where)

    def init(key: jax.Array, params: Params) -> Delta:
        chosen = _choose(pattern, params)
        return {path: start(key_at(key, path), path, weight) for path, weight in chosen.items()}

    def attach(params: Params, delta: Delta) -> Params:
        leaves = named_leaves(params, is_weight)
        missing = [path for path in delta if path not in leaves]
        if missing:
            raise ValueError(f"delta: the parameters have no weight at {', '.join(missing)}")
        adapted = {path: adapt(path, leaves[path], arrays) for path, arrays in delta.items()}
        return replace_leaves(params, adapted, is_weight)

    def merge(params: Params, delta: Delta) -> Params:
        adapted = named_leaves(attach(params, delta), is_weight)
        return replace_leaves(params, {path: dense_stack(adapted[path]) for path in delta}, is_weight)

    return Adapter(init, attach, merge)


def is_weight(leaf: Any) -> bool:
    """Whether a node of a tree is a weight's representation, which is one leaf here."""
    return isinstance(leaf, weights.Representation)


def check_arrays(path: str, arrays: dict[str, jax.Array], shapes: dict[str, tuple[int, ...]]) -> None:
    """Check that a delta's arrays are those that the weight needs.

    Raises:
      ValueError: names the path and the array.
    """
    if arrays.keys() != shapes.keys():
        raise ValueError(f"delta: {path} must have {sorted(shapes)}, got {sorted(arrays)}")
    for name, shape in shapes.items():
        if tuple(arrays[name].shape) != shape:
            raise ValueError(f"delta: {path}.{name} must have shape {shape}, got {tuple(arrays[name].shape)}")


def dense_stack(weight: weights.Weight) -> jax.Array:
    """`weights.dense` of a weight with any number of leading axes of stacked layers."""
    dense = weights.dense
    for _ in weight.shape[:-2]:
        dense = jax.vmap(dense)
    return dense(weight)


def _choose(pattern: re.Pattern[str], params: Params) -> dict[str, weights.Weight]:
    """The matrices whose path the pattern finds; biases and norms, stacked or not, are no matrices."""
    leaves = named_leaves(params, is_weight)
    chosen = {
        path: leaf
        for path, leaf in leaves.items()
        if pattern.search(path) and len(leaf.shape) >= 2 and not path.endswith("bias") and "norm" not in path
    }
    if not chosen:
        raise ValueError(f"where: {pattern.pattern!r} matches no weight [out, in]; the paths are {', '.join(leaves)}")
    return chosen
