"""Arrays inside shard_map."""

from typing import Any

import jax


def vary_together(tree: Any) -> Any:
    """The tree with every array varying over all mesh axes that one of them varies over, as loops in shard_map want.

    Outside shard_map nothing happens. The gradient of what did not vary is summed over the axes, as it must be.
    """
    axes = frozenset().union(*(jax.typeof(leaf).mat.varying for leaf in jax.tree.leaves(tree)))

    def vary(leaf: jax.Array) -> jax.Array:
        missing = tuple(sorted(axes - jax.typeof(leaf).mat.varying, key=str))
        return jax.lax.pcast(leaf, missing, to="varying") if missing else leaf

    return jax.tree.map(vary, tree)
