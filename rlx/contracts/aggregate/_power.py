"""Constant elasticity of substitution: from the sum through Nash's product to the minimum."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from rlx._checks import check_dtype, check_range, check_shapes

from ._rule import Params, Rule, number, spread

_SERIES = 1e-2  # where cumulants are more accurate than the logarithm of a sum


def ces(
    utilities: jax.Array,
    weights: jax.Array,
    rho: jax.Array | float,
    *,
    floor: jax.Array | float = 1e-3,
) -> jax.Array:
    """Constant elasticity of substitution, the weighted power mean: `W = (sum_k p_k u_k^rho)^(1/rho)`.

    `p = w / sum w`. rho = 1 is the weighted mean, rho -> 0 the weighted geometric mean `prod u^p` (taken exactly at 0),
    rho -> -inf the minimum. The elasticity of substitution is 1 / (1 - rho). Equal utilities u give W = u. Below the
    floor a utility continues as `floor exp((u - floor) / floor)`, which is positive and increasing, so W and its
    gradients are finite everywhere.

    Args:
      utilities: `[..., K]`, above 0 where the equation is meant.
      weights: `[K]`, >= 0 and not all 0; only their ratios count here.
      rho: `[]`, at most 1.
      floor: `[]`, > 0.

    Returns:
      `[...]`.

    Example:
      >>> [round(float(ces(jnp.array([0.25, 1.0]), jnp.ones(2), rho)), 4) for rho in (1.0, 0.0, -1.0)]
      [0.625, 0.5, 0.4]

    References:
      Arrow, Chenery, Minhas and Solow 1961, equation 14; Atkinson 1970 (rho = 1 - epsilon) as welfare. The continuation
      below the floor is ours.
    """
    check_shapes(utilities=(utilities, "*K"), weights=(weights, "K"))
    check_dtype("floating", utilities=utilities, weights=weights)
    dtype = utilities.dtype
    low, rho = jnp.asarray(floor, dtype), jnp.asarray(rho, dtype)
    share = spread(weights / jnp.sum(weights), utilities)
    above = utilities > low
    logs = jnp.where(above, jnp.log(jnp.where(above, utilities, low)), jnp.log(low) + (utilities - low) / low)
    centre = jnp.sum(share * logs, axis=-1, keepdims=True)
    apart = jnp.where(share > 0, logs - centre, 0.0)
    return jnp.exp(centre[..., 0] + _mean_exp(rho, apart, share))


def _mean_exp(rho: jax.Array, apart: jax.Array, share: jax.Array) -> jax.Array:
    """`log(sum p exp(rho d)) / rho` of `d` whose weighted mean is 0; and its limit at rho = 0."""
    widest = jnp.max(jnp.abs(apart), axis=-1)
    x_widest = jnp.abs(rho) * widest
    second, third, fourth = (jnp.sum(share * apart**n, axis=-1) for n in (2, 3, 4))
    # cumulants of d: K(rho) / rho = k2 rho / 2 + k3 rho^2 / 6 + k4 rho^3 / 24
    series = rho * (second / 2 + rho * (third / 6 + rho * (fourth - 3 * second**2) / 24))
    small = x_widest < _SERIES
    safe = jnp.where(small, 1.0, rho)[..., None]  # both branches are differentiated
    x = jnp.where(small[..., None], 0.0, safe * apart)
    near = jnp.all(jnp.abs(x) < 1.0, axis=-1)
    gentle = jnp.log1p(jnp.sum(share * jnp.expm1(jnp.where(near[..., None], x, 0.0)), axis=-1))
    top = jax.lax.stop_gradient(jnp.max(x, axis=-1, keepdims=True))
    steep = jnp.log(jnp.sum(share * jnp.exp(x - top), axis=-1)) + top[..., 0]
    return jnp.where(small, series, jnp.where(near, gentle, steep) / safe[..., 0])


@dataclass(frozen=True)
class CES(Rule):
    """`ces` in a contract.

    Attributes:
      rho: at most 1; lower is more egalitarian.
      floor: below this utility the rule is continued; > 0.
    """

    rho: float = 0.0
    floor: float = 1e-3

    kind: ClassVar[str] = "ces"

    def __post_init__(self) -> None:
        check_range("rho", self.rho, -math.inf, 1.0, open_low=True)
        check_range("floor", self.floor, 0.0, math.inf, open_low=True, open_high=True)

    def init(self, names: Sequence[str]) -> Params:
        """`rho []` and `floor []`."""
        return {"rho": number(self.rho), "floor": number(self.floor)}

    def apply(self, utilities: jax.Array, weights: jax.Array, params: Params) -> jax.Array:
        """See `ces`."""
        return ces(utilities, weights, params["rho"], floor=params["floor"])
