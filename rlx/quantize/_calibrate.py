"""What a model multiplies its weights by: second moments of activations over calibration data."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp

from rlx import weights
from rlx._checks import is_array
from rlx._names import some
from rlx._tree import key_at, named_leaves, replace_leaves

from ._rules import is_kernel, is_one, matching, matrices


def calibrate(
    apply: Callable[[Any, Any], Any], params: Any, batches: Iterable[Any], *, where: str = ""
) -> dict[str, jax.Array]:
    """Second moments of what a model multiplies its weights by, over batches of calibration data.

    moment = sum_rows x x.T,  [..., in, in], for each weight

    They are read from one backward pass a batch (`weights.Observed`), so layers may be scanned, checkpointed or
    reversible. Rows that the result does not depend on count nothing: return outputs with padding masked out.

    Args:
      apply: `apply(params, batch)`, any pytree of arrays that can be differentiated (logits, no argmax). It multiplies
        by `weights.matmul` or `weights.linear`, as the models of rlx do. Deterministic.
      params: float parameters; representations may be inside.
      batches: each is given to `apply`; all of the same shapes, or there is a compilation for each.
      where: a regular expression searched in the path of each weight; "" is all of them.

    Returns:
      Moments by path, float32, for `quantize_tree(moments=)` and `gptq`. A weight that is only looked up has zeros.

    Raises:
      ValueError: there is no batch, or none with a row that counts for any weight; `where` matches no weight; a
        weight is a kernel of flax, whose modules multiply by themselves; the result of `apply` has nothing
        floating.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from rlx import quantize, weights
      >>> params = {"up": {"weight": jnp.ones((3, 2))}}
      >>> apply = lambda params, x: weights.matmul(x, params["up"]["weight"])
      >>> found = quantize.calibrate(apply, params, [jnp.eye(2), jnp.eye(2)])
      >>> found["up.weight"].tolist()
      [[2.0, 0.0], [0.0, 2.0]]
    """
    chosen = matching(matrices(params), "where", where)
    kernels = [path for path, leaf in chosen.items() if is_kernel(path, leaf)]
    if kernels:
        raise ValueError(f"params: {some(kernels)} are kernels of flax; give gptq the moments of their inputs yourself")
    total = {
        path: jnp.zeros((*leaf.shape[:-2], leaf.shape[-1], leaf.shape[-1]), jnp.float32)
        for path, leaf in chosen.items()
    }

    @jax.jit
    def add(total: dict[str, jax.Array], params: Any, batch: Any) -> dict[str, jax.Array]:
        def result(moments: dict[str, jax.Array]) -> jax.Array:
            inside = matrices(params)
            watched = {path: weights.Observed(base=inside[path], moment=m) for path, m in moments.items()}
            return _one_number(apply(replace_leaves(params, watched, is_one), batch))

        found = jax.grad(result)(jax.tree.map(jnp.zeros_like, total))
        return jax.tree.map(jnp.add, total, found)

    empty = True
    for batch in batches:
        total, empty = add(total, params, batch), False
    if empty:
        raise ValueError("batches: there is none to calibrate with")
    if not any(isinstance(moment, jax.core.Tracer) or bool(jnp.any(moment)) for moment in total.values()):
        raise ValueError(
            f"batches: no weight was multiplied by anything but zeros ({some(total)}); are there rows in them, and "
            "does the result of apply depend on these weights?"
        )
    return total


def _one_number(outputs: Any) -> jax.Array:
    """A sum of the outputs with random weights: with equal ones the gradient of a softmax, or of a norm, would be 0."""
    terms = []
    for path, leaf in named_leaves(outputs).items():
        if is_array(leaf) and jnp.issubdtype(leaf.dtype, jnp.floating):
            random = jax.random.rademacher(key_at(jax.random.key(0), path), leaf.shape, jnp.float32)
            near_one = jax.random.uniform(key_at(jax.random.key(1), path), leaf.shape, jnp.float32, 0.5, 1.5)
            terms.append(jnp.sum(leaf.astype(jnp.float32) * random * near_one))
    if not terms:
        raise ValueError("apply: its result has no floating array")
    return jnp.sum(jnp.stack(terms))
