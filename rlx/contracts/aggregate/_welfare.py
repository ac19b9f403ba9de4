"""Welfare functions: the utilitarian sum, Nash's product and the egalitarian minimum."""

import functools
import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from rlx._checks import check_dtype, check_range, check_shapes

from ._rule import Params, Rule, number, spread


def weighted_sum(utilities: jax.Array, weights: jax.Array) -> jax.Array:
    """The utilitarian rule, `W = sum_k w_k u_k`.

    Args:
      utilities: `[..., K]`.
      weights: `[K]`.

    Returns:
      `[...]`.

    Example:
      >>> float(weighted_sum(jnp.array([0.25, 0.5]), jnp.array([1.0, 2.0])))
      1.25
    """
    check_shapes(utilities=(utilities, "*K"), weights=(weights, "K"))
    check_dtype("floating", utilities=utilities, weights=weights)
    return jnp.sum(utilities * spread(weights, utilities), axis=-1)


def nash(
    utilities: jax.Array,
    weights: jax.Array,
    disagreement: jax.Array | float = 0.0,
    *,
    floor: jax.Array | float = 1e-3,
) -> jax.Array:
    """The Nash bargaining rule in log-gain form, `W = sum_k w_k log(u_k - d_k)`.

    A gain `g = u - d` at or below `floor` continues along the tangent, `log(floor) + (g - floor) / floor`: W and its
    first derivative are continuous, W is concave and strictly increasing everywhere, and no gradient exceeds
    `w / floor`. Above the floor, multiplying a stakeholder's gains by s only adds `w_k log s`.

    Args:
      utilities: `[..., K]`.
      weights: `[K]`, bargaining powers.
      disagreement: `[K]` or `[]`, what each has without an agreement.
      floor: `[]`, the gain below which the logarithm is continued, > 0.

    Returns:
      `[...]`.

    Example:
      >>> float(nash(jnp.array([0.5, 0.5]), jnp.ones(2), jnp.zeros(2)))
      -1.3862943649291992

    References:
      Nash 1950, "The Bargaining Problem"; Kaneko and Nakamura 1979, equation 1 (log form). The tangent below the
      floor is ours: the original has no value there.
    """
    check_shapes(utilities=(utilities, "*K"), weights=(weights, "K"))
    check_dtype("floating", utilities=utilities, weights=weights)
    low = jnp.asarray(floor, utilities.dtype)
    gain = utilities - spread(jnp.asarray(disagreement), utilities)
    above = gain > low
    log_gain = jnp.where(above, jnp.log(jnp.where(above, gain, low)), jnp.log(low) + (gain - low) / low)
    return jnp.sum(log_gain * spread(weights, utilities), axis=-1)


def max_min(utilities: jax.Array, weights: jax.Array, *, temperature: jax.Array | float = 0.05) -> jax.Array:
    """The egalitarian rule, smoothed: `W = -t log sum_k (w_k / sum_j w_j) exp(-u_k / t)`.

    As t goes to 0 this is the least utility among stakeholders of positive weight, which t = 0 gives exactly (its
    gradient is shared equally among ties, as jnp.min does). Equal utilities u give W = u for every t.

    Args:
      utilities: `[..., K]`.
      weights: `[K]`, >= 0 and not all 0; only their ratios count here.
      temperature: `[]`, in units of utility, >= 0.

    Returns:
      `[...]`.

    Example:
      >>> float(max_min(jnp.array([0.25, 0.5]), jnp.ones(2), temperature=0.0))
      0.25

    References:
      Rawls 1971; Chakraborty et al. 2024, "MaxMin-RLHF", equation 6. The soft minimum is a deviation; so are weights.
    """
    check_shapes(utilities=(utilities, "*K"), weights=(weights, "K"))
    check_dtype("floating", utilities=utilities, weights=weights)
    t = jnp.asarray(temperature, utilities.dtype)
    share = spread(weights / jnp.sum(weights), utilities)
    counted = share > 0
    hard = jnp.min(jnp.where(counted, utilities, jnp.inf), axis=-1)
    soft_t = jnp.where(t > 0, t, 1.0)
    # relative to the least utility, so that a stakeholder of weight 0 cannot overflow
    excess = jnp.where(counted, utilities - hard[..., None], 0.0)
    soft = hard - soft_t * jnp.log(jnp.sum(share * jnp.exp(-excess / soft_t), axis=-1))
    return jnp.where(t > 0, soft, hard)


@dataclass(frozen=True)
class WeightedSum(Rule):
    """`weighted_sum` in a contract."""

    kind: ClassVar[str] = "weighted_sum"

    def of_columns(self, columns: Sequence[jax.Array], weights: jax.Array, params: Params) -> jax.Array:
        """The same of one array `[B]` a stakeholder, which XLA fuses with what makes them."""
        return functools.reduce(operator.add, (weights[k] * column for k, column in enumerate(columns)))

    def apply(self, utilities: jax.Array, weights: jax.Array, params: Params) -> jax.Array:
        """See `weighted_sum`."""
        return weighted_sum(utilities, weights)


@dataclass(frozen=True)
class Nash(Rule):
    """`nash` in a contract.

    Attributes:
      disagreement: one number for all, one a stakeholder in the contract's order, or by stakeholder name.
      floor: the gain below which the logarithm is continued along its tangent.
    """

    disagreement: float | Sequence[float] | Mapping[str, float] = 0.0
    floor: float = 1e-3

    kind: ClassVar[str] = "nash"
    comparable: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_range("floor", self.floor, 0.0, float("inf"), open_low=True, open_high=True)
        if isinstance(self.disagreement, list):
            object.__setattr__(self, "disagreement", tuple(self.disagreement))
        points: Any = self.disagreement
        if isinstance(points, Mapping):
            points = points.values()
        elif not isinstance(points, Sequence):
            points = [points]
        for value in points:
            check_range("disagreement", value, -math.inf, math.inf, open_low=True, open_high=True)

    def values(self, names: Sequence[str]) -> list[float]:
        """The disagreement point in the order of `names`."""
        if isinstance(self.disagreement, Mapping):
            return [float(self.disagreement[name]) for name in names]
        if isinstance(self.disagreement, Sequence):
            return [float(value) for value in self.disagreement]
        return [float(self.disagreement)] * len(names)

    def init(self, names: Sequence[str]) -> Params:
        """`disagreement [K]` and `floor []`."""
        return {"disagreement": np.asarray(self.values(names), np.float32), "floor": number(self.floor)}

    def apply(self, utilities: jax.Array, weights: jax.Array, params: Params) -> jax.Array:
        """See `nash`."""
        return nash(utilities, weights, params["disagreement"], floor=params["floor"])

    def problems(self, names: Sequence[str]) -> list[str]:
        """A disagreement point that does not fit the stakeholders."""
        if isinstance(self.disagreement, Mapping):
            wrong = sorted(set(names) ^ set(self.disagreement))
            return [f"disagreement: {name!r} is only in one of stakeholders and disagreement" for name in wrong]
        if isinstance(self.disagreement, Sequence) and len(self.disagreement) != len(names):
            return [f"disagreement: {len(self.disagreement)} values for {len(names)} stakeholders"]
        return []


@dataclass(frozen=True)
class MaxMin(Rule):
    """`max_min` in a contract.

    Attributes:
      temperature: in units of utility; 0 is the hard minimum.
    """

    temperature: float = 0.05

    kind: ClassVar[str] = "max_min"

    def __post_init__(self) -> None:
        check_range("temperature", self.temperature, 0.0, float("inf"), open_high=True)

    def init(self, names: Sequence[str]) -> Params:
        """`temperature []`."""
        return {"temperature": number(self.temperature)}

    def apply(self, utilities: jax.Array, weights: jax.Array, params: Params) -> jax.Array:
        """See `max_min`."""
        return max_min(utilities, weights, temperature=params["temperature"])
