"""Ordinary differential equations whose gradient stores nothing."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from rlx._checks import check_dtype, check_whole
from rlx._numerics import common
from rlx._tree import named_leaves

from ._coupling import Method, runge_kutta
from ._stack import stack


def integrate(
    field: Callable[[Any, jax.Array, Any], Any],
    params: Any,
    x: Any,
    *,
    steps: int,
    t0: Any = 0.0,
    t1: Any = 1.0,
    method: Method = "rk4",
    coupling: float = 1.0,
) -> Any:
    """Solve dx/dt = field(params, t, x) from `t0` to `t1` by reversible Runge-Kutta steps of equal size.

    The gradient, with respect to `params`, `x`, `t0` and `t1`, is that of the discrete solution (to the rounding of
    the reconstruction), and its memory does not grow with `steps`.

    Args:
      field: `field(params, t, x) -> dx/dt`, of the structure of `x`.
      params: any pytree.
      x: the state at `t0`, a pytree of floating arrays.
      steps: how many steps.
      t0: the start, a number.
      t1: the end, a number; before `t0` integrates backwards.
      method: "euler", "midpoint", "heun" or "rk4"; each step takes twice the method's evaluations.
      coupling: see `runge_kutta`; below 1 (such as .99) for stability over long or stiff spans.

    Returns:
      The state at `t1`.

    Raises:
      TypeError: a leaf of `x` is not floating, or `steps` is not a whole number.
      ValueError: `steps` is below 1, or the field's structure is not that of `x`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from rlx import reversible
      >>> solve = lambda rate: reversible.integrate(lambda p, t, x: -p * x, rate, jnp.array(1.0), steps=20)
      >>> value, slope = jax.value_and_grad(solve)(jnp.array(1.0))
      >>> round(float(value), 4), round(float(slope), 4)  # e**-1 and -e**-1
      (0.3679, -0.3679)

    References:
      McCallum & Foster 2024, "Efficient, accurate and stable gradients for neural ODEs".
    """
    check_whole("steps", steps, 1)
    for path, leaf in named_leaves({"x": x}).items():
        check_dtype("floating", **{path: leaf})
    dtype = common(jnp.float32, *(leaf.dtype for leaf in jax.tree.leaves(x)))
    begin, end = (jnp.asarray(t, dtype) for t in (t0, t1))

    def unit_field(_: Any, state: Any, key: None, shared: Any) -> Any:
        """In time that runs from 0 to 1, with the true time as a part of the state."""
        p, span = shared
        t, value = state
        slope = field(p, t, value)
        if jax.tree.map(jnp.shape, slope) != jax.tree.map(jnp.shape, value):
            found, wanted = (jax.tree.map(jnp.shape, tree) for tree in (slope, value))
            raise ValueError(f"field: dx/dt {found} must have the shape of x, {wanted}")
        slope = jax.tree.map(jnp.asarray, slope)
        return span, jax.tree.map(lambda s: s * span.astype(s.dtype), slope)

    layer = runge_kutta(unit_field, method=method, step=1.0 / steps, coupling=coupling)
    start = (begin, x)
    (_, out), _ = stack(
        layer, {"f": jnp.zeros((steps, 0))}, (start, start), shared=(params, end - begin), stream="float32"
    )
    return out
