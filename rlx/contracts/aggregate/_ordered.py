"""Rules that look at utilities in order, the worst off first: leximin and ordered weighted averaging."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from rlx._checks import check_dtype, check_range, check_shapes

from ._rule import Params, Rule, number, spread


def owa(utilities: jax.Array, weights: jax.Array, order_weights: jax.Array) -> jax.Array:
    """Ordered weighted averaging with importance (WOWA): `W = sum_i omega_i u_(i)`, the least utility first.

        omega_i = F(P_i) - F(P_(i-1)),   P_i = p_(1) + ... + p_(i),   p = w / sum w

    F is piecewise linear through (i / K, v_1 + ... + v_i) with `v = order_weights / sum order_weights`. With equal
    weights, `omega = v`: Yager's OWA; with equal order weights, `omega = p`: the weighted mean. So (1, 0, ..., 0) is
    the minimum, (0, ..., 0, 1) the maximum. Gradients are shared among ties as the sort finds them.

    Args:
      utilities: `[..., K]`.
      weights: `[K]`, >= 0 and not all 0; only their ratios count here, and a weight of 0 leaves out.
      order_weights: `[K]`, >= 0 and not all 0, for the least utility first; decreasing ones are egalitarian.

    Returns:
      `[...]`.

    Example:
      >>> float(owa(jnp.array([0.5, 0.25, 1.0]), jnp.ones(3), jnp.array([1.0, 0.0, 0.0])))
      0.25

    References:
      Yager 1988, "On ordered weighted averaging aggregation operators", definition 1 (which sorts the other way);
      Torra 1997, "The weighted OWA operator", definition 3.
    """
    check_shapes(utilities=(utilities, "*K"), weights=(weights, "K"), order_weights=(order_weights, "K"))
    check_dtype("floating", utilities=utilities, weights=weights, order_weights=order_weights)
    count, dtype = utilities.shape[-1], utilities.dtype
    share = jnp.broadcast_to(spread(weights / jnp.sum(weights), utilities), utilities.shape)
    order = jnp.argsort(utilities, axis=-1)
    reached = jnp.cumsum(jnp.take_along_axis(share, order, axis=-1), axis=-1)
    steps = (order_weights / jnp.sum(order_weights)).astype(dtype)
    # F(P) = sum_i v_i clip(K P - (i - 1), 0, 1)
    place = reached[..., None] * count - jnp.arange(count, dtype=dtype).reshape((1,) * reached.ndim + (count,))
    within = jnp.sum(jnp.clip(place, 0.0, 1.0) * spread(steps, place), axis=-1)
    omega = jnp.diff(within, axis=-1, prepend=jnp.zeros((*within.shape[:-1], 1), dtype))
    return jnp.sum(omega * jnp.take_along_axis(utilities, order, axis=-1), axis=-1)


def leximin(utilities: jax.Array, weights: jax.Array, *, resolution: jax.Array | float = 0.05) -> jax.Array:
    """The leximin rule as a number: the worst off first, then the next, down to a resolution.

        W = sum_i c_i u_(i) / sum_i c_i,   c_i = r^(i - 1),   r = resolution / (1 + resolution)

    It orders texts exactly as leximin does if sorted utilities that differ at all differ by at least `resolution` and
    by at most 1: what is later in the order can never make up for an earlier place. Closer utilities are traded,
    1 unit of the worse off for `1 / r` of the next. `leximin_order` compares exactly and has no gradient. Everyone of
    positive weight counts the same; a weight of 0 leaves out.

    Args:
      utilities: `[..., K]`.
      weights: `[K]`, >= 0 and not all 0.
      resolution: `[]`, > 0, in units of the utilities' range.

    Returns:
      `[...]`; equal utilities u give u.

    Example:
      >>> a, b = leximin(jnp.array([[0.2, 0.9, 0.9], [0.3, 0.3, 0.3]]), jnp.ones(3))
      >>> bool(b > a)
      True

    References:
      Yager 1997, "On the analytic representation of the leximin ordering and its application to flexible constraint
      propagation", section 3; Sen 1970 for the ordering.
    """
    check_shapes(utilities=(utilities, "*K"), weights=(weights, "K"))
    check_dtype("floating", utilities=utilities, weights=weights)
    count, dtype = utilities.shape[-1], utilities.dtype
    delta = jnp.asarray(resolution, dtype)
    powers = (delta / (1.0 + delta)) ** jnp.arange(count, dtype=dtype)
    counted = jnp.broadcast_to(spread(weights, utilities) > 0, utilities.shape)
    order = jnp.argsort(jnp.where(counted, utilities, jnp.inf), axis=-1)
    ranked = jnp.take_along_axis(jnp.where(counted, utilities, 0.0), order, axis=-1)
    scale = spread(powers, utilities) * jnp.take_along_axis(counted, order, axis=-1).astype(dtype)
    return jnp.sum(scale * ranked, axis=-1) / jnp.sum(scale, axis=-1)


def leximin_order(utilities: jax.Array, weights: jax.Array) -> jax.Array:
    """The exact leximin order of alternatives: how many are strictly better than each.

    Args:
      utilities: `[A, K]`.
      weights: `[K]`; a weight of 0 leaves out, others count the same.

    Returns:
      Ranks `[A]`, int32, 0 the best; ties share the lower rank.

    Example:
      >>> leximin_order(jnp.array([[0.2, 0.9], [0.2, 0.8], [0.1, 1.0]]), jnp.ones(2)).tolist()
      [0, 1, 2]
    """
    check_shapes(utilities=(utilities, "AK"), weights=(weights, "K"))
    ranked = jnp.sort(jnp.where((weights > 0)[None], utilities, jnp.inf), axis=-1)
    mine, theirs = ranked[:, None], ranked[None]
    first = jnp.argmax(mine != theirs, axis=-1)[..., None]
    worse = jnp.take_along_axis((mine < theirs), first, axis=-1)[..., 0]
    return jnp.sum(worse, axis=-1, dtype=jnp.int32)


@dataclass(frozen=True)
class OWA(Rule):
    """`owa` in a contract.

    Attributes:
      order_weights: one a stakeholder, for the least utility first.
    """

    order_weights: Sequence[float]

    kind: ClassVar[str] = "owa"

    def __post_init__(self) -> None:
        if isinstance(self.order_weights, str) or not isinstance(self.order_weights, Sequence | np.ndarray):
            raise TypeError(f"order_weights: expected numbers, got {self.order_weights!r}")
        object.__setattr__(self, "order_weights", tuple(self.order_weights))
        for value in self.order_weights:
            check_range("order_weights", value, 0.0, math.inf, open_high=True)
        if not any(value > 0 for value in self.order_weights):
            raise ValueError(f"order_weights: {self.order_weights} has no positive weight")

    def init(self, names: Sequence[str]) -> Params:
        """`order_weights [K]`."""
        return {"order_weights": np.asarray(self.order_weights, np.float32)}

    def apply(self, utilities: jax.Array, weights: jax.Array, params: Params) -> jax.Array:
        """See `owa`."""
        return owa(utilities, weights, params["order_weights"])

    def problems(self, names: Sequence[str]) -> list[str]:
        """Order weights that do not fit the stakeholders."""
        if len(self.order_weights) != len(names):
            return [f"order_weights: {len(self.order_weights)} values for {len(names)} stakeholders"]
        return []


@dataclass(frozen=True)
class Leximin(Rule):
    """`leximin` in a contract.

    Attributes:
      resolution: differences smaller than this are traded, > 0, in units of utility.
    """

    resolution: float = 0.05

    kind: ClassVar[str] = "leximin"

    def __post_init__(self) -> None:
        check_range("resolution", self.resolution, 0.0, math.inf, open_low=True, open_high=True)

    def init(self, names: Sequence[str]) -> Params:
        """`resolution []`."""
        return {"resolution": number(self.resolution)}

    def apply(self, utilities: jax.Array, weights: jax.Array, params: Params) -> jax.Array:
        """See `leximin`."""
        return leximin(utilities, weights, resolution=params["resolution"])

    def problems(self, names: Sequence[str]) -> list[str]:
        """More stakeholders than float32 can keep in order at this resolution."""
        ratio = self.resolution / (1.0 + self.resolution)
        most = 1 + math.floor(math.log(2.0**-22 / self.resolution) / math.log(ratio)) if self.resolution < 2 else 1
        if len(names) > max(most, 1):
            told = f"float32 keeps {max(most, 1)} stakeholders in leximin order at resolution {self.resolution:g}"
            return [f"resolution: {told}, not {len(names)}; take a larger one, or MaxMin"]
        return []
