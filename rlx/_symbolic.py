"""What a custom_vjp with symbolic zeros is given: what is differentiated, and which cotangents are nought."""

from typing import Any

import jax
import jax.numpy as jnp


def primals(tree: Any) -> tuple[Any, Any]:
    """The values that a forward rule is given, and which of them are floating and differentiated."""
    values = jax.tree.map(lambda primal: primal.value, tree, is_leaf=_is_primal)
    trained = jax.tree.map(
        lambda primal: bool(primal.perturbed) and jnp.issubdtype(primal.value.dtype, jnp.inexact),
        tree,
        is_leaf=_is_primal,
    )
    return values, trained


def materialised(tree: Any) -> Any:
    """The cotangents that a backward rule is given, with arrays for those that are nought by structure."""
    return jax.tree.map(
        lambda leaf: jnp.zeros(leaf.shape, leaf.dtype) if _is_zero(leaf) else leaf, tree, is_leaf=_is_zero
    )


def _is_primal(leaf: Any) -> bool:
    return isinstance(leaf, jax.custom_derivatives.CustomVJPPrimal)


def _is_zero(leaf: Any) -> bool:
    return isinstance(leaf, jax.custom_derivatives.SymbolicZero)
