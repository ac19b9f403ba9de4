"""Prices of constraints: Lagrange multipliers that rise while a constraint is broken."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from rlx._checks import check_choice, check_dtype, check_shapes


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class LagrangianState:
    """The multipliers of M constraints and what their updates need.

    Attributes:
      multipliers: `[M]`, >= 0; use these in the reward.
      integral: `[M]`, the integral part ("linear") or its logarithm ("log").
      violation: `[M]`, the last violation seen.
      average: `[M]`, mean of the multipliers since the start; the last one oscillates, this one settles.
      steps: `[]`, updates so far.
    """

    multipliers: jax.Array
    integral: jax.Array
    violation: jax.Array
    average: jax.Array
    steps: jax.Array


class Lagrangian(NamedTuple):
    """`init(multipliers) -> state` and `update(state, violation, *, step_size, ...) -> state`."""

    init: Callable[[Any], LagrangianState]
    update: Callable[..., LagrangianState]


def lagrangian(*, parametrisation: Literal["linear", "log"] = "linear") -> Lagrangian:
    """Multipliers as a controller: dual ascent with optional proportional and derivative parts.

    linear: I' = max(I + step_size * v, 0),  multiplier = max(I' + swing, 0)
    log:    I' = I + step_size * v,          multiplier = max(exp(I') + swing, 0)
    swing = proportional * v + derivative * max(v - v_last, 0)

    v = mean cost - threshold, positive while the constraint is broken. With `proportional = derivative = 0` "linear"
    is projected dual ascent. A log-parametrised multiplier is never 0 (a constraint always costs something) and
    moves by factors; it must start above 0.

    `init(multipliers)`: `[M]`, the first multipliers.
    `update(state, violation, *, step_size, proportional=0.0, derivative=0.0, maximum=inf)`: violation `[M]`; the rest
    `[]` or `[M]`, arrays or numbers, so that a step size of 0 (an unconstrained control run) is the same
    program. Both are pure: under shard_map, average the violation over devices first.

    Args:
      parametrisation: "linear" or "log".

    Returns:
      `(init, update)`.

    Raises:
      ValueError: the parametrisation is unknown; dims disagree.

    Example:
      >>> control = lagrangian()
      >>> state = control.init(jnp.zeros(1))
      >>> state = control.update(state, jnp.array([0.5]), step_size=2.0)
      >>> state.multipliers.tolist()
      [1.0]

    References:
      Stooke et al. 2020, "Responsive Safety in RL by PID Lagrangian Methods", algorithm 2 (the integral gain is
      inside the integral here, so that it may change during a run; the derivative acts on the violation, not
      smoothed); Dai et al. 2024, "Safe RLHF", equation 11 (log).
    """
    check_choice("parametrisation", parametrisation, ("linear", "log"))

    def init(multipliers: Any) -> LagrangianState:
        value = jnp.asarray(multipliers)
        check_shapes(multipliers=(value, "M"))
        check_dtype("floating", multipliers=value)
        zeros = jnp.zeros_like(value)
        return LagrangianState(
            multipliers=value,
            integral=jnp.log(value) if parametrisation == "log" else value,
            violation=zeros,
            average=zeros,
            steps=jnp.zeros((), jnp.int32),
        )

    def update(
        state: LagrangianState,
        violation: jax.Array,
        *,
        step_size: jax.Array | float,
        proportional: jax.Array | float = 0.0,
        derivative: jax.Array | float = 0.0,
        maximum: jax.Array | float = jnp.inf,
    ) -> LagrangianState:
        check_shapes(multipliers=(state.multipliers, "M"), violation=(violation, "M"))
        check_dtype("floating", violation=violation)
        dtype, dims = state.multipliers.dtype, violation.shape

        def wide(value: jax.Array | float) -> jax.Array:
            return jnp.broadcast_to(jnp.asarray(value).astype(dtype), dims)

        v, top = violation.astype(dtype), wide(maximum)
        # there is no change before the first violation is known
        last = jnp.where(state.steps > 0, state.violation, v)
        integral = state.integral + wide(step_size) * v
        if parametrisation == "linear":
            integral = jnp.clip(integral, 0.0, top)
            base = integral
        else:
            integral = jnp.minimum(integral, jnp.log(top))
            base = jnp.exp(integral)
        swing = wide(proportional) * v + wide(derivative) * jnp.maximum(v - last, 0.0)
        multipliers = jnp.clip(base + swing, 0.0, top)
        steps = state.steps + 1
        average = state.average + (multipliers - state.average) / steps.astype(dtype)
        return LagrangianState(multipliers=multipliers, integral=integral, violation=v, average=average, steps=steps)

    return Lagrangian(init, update)
