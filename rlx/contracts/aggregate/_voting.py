"""Rules that vote: every stakeholder ranks the texts of a group by utility, and only the order counts."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from rlx._checks import check_dtype, check_range, check_shapes

from ._rule import Params, Rule, check_group, in_groups, number, spread


def margins(utilities: jax.Array, weights: jax.Array, *, temperature: jax.Array | float = 0.0) -> jax.Array:
    """Pairwise majority margins: the share of weight that prefers i to j, minus the share that prefers j.

        M_ij = sum_k p_k sign(u_ik - u_jk),   p = w / sum w

    Args:
      utilities: `[..., A, K]` of A alternatives.
      weights: `[K]`, >= 0 and not all 0; only their ratios count here.
      temperature: `[]`, in units of utility: with t > 0 the sign becomes tanh((u_i - u_j) / t), which has a gradient.

    Returns:
      `[..., A, A]` in [-1, 1], antisymmetric.

    Example:
      >>> margins(jnp.array([[1.0, 0.0], [0.5, 0.5]]), jnp.array([3.0, 1.0])).tolist()
      [[0.0, 0.5], [-0.5, 0.0]]
    """
    check_shapes(utilities=(utilities, "*AK"), weights=(weights, "K"))
    check_dtype("floating", utilities=utilities, weights=weights)
    apart = utilities[..., :, None, :] - utilities[..., None, :, :]
    return jnp.sum(soft_sign(apart, temperature) * spread(weights / jnp.sum(weights), apart), axis=-1)


def borda(utilities: jax.Array, weights: jax.Array, *, temperature: jax.Array | float = 0.0) -> jax.Array:
    """Borda's rule, normalised: the mean share of weight that prefers an alternative to another one, ties counted half.

        B_i = 1/2 + sum_(j != i) M_ij / (2 (A - 1))

    With K voters of weight 1, `K (A - 1) B_i` is the classical count of points.

    Args:
      utilities: `[..., A, K]`.
      weights: `[K]`, >= 0 and not all 0; only their ratios count here.
      temperature: see `margins`.

    Returns:
      `[..., A]` in [0, 1].

    Example:
      >>> borda(jnp.array([[3.0], [2.0], [1.0]]), jnp.ones(1)).tolist()
      [1.0, 0.5, 0.0]

    References:
      Borda 1781; Young 1974 for its axioms.
    """
    wins = margins(utilities, weights, temperature=temperature)
    return 0.5 + 0.5 * jnp.sum(wins, axis=-1) / max(utilities.shape[-2] - 1, 1)


def copeland(utilities: jax.Array, weights: jax.Array, *, temperature: jax.Array | float = 0.0) -> jax.Array:
    """Copeland's rule, normalised: pairwise majorities won minus lost, `C_i = sum_(j != i) sign(M_ij) / (A - 1)`.

    Args:
      utilities: `[..., A, K]`.
      weights: `[K]`, >= 0 and not all 0; only their ratios count here.
      temperature: of the comparisons, see `margins`; with t > 0 the majority, too, is soft: tanh(M / 0.1).

    Returns:
      `[..., A]` in [-1, 1]; 1 is a Condorcet winner.

    Example:
      >>> copeland(jnp.array([[3.0, 1.0, 2.0], [2.0, 3.0, 1.0], [1.0, 2.0, 3.0]]), jnp.ones(3)).tolist()
      [0.0, 0.0, 0.0]

    References:
      Copeland 1951; Fishburn 1977, "Condorcet social choice functions", C3.
    """
    won = margins(utilities, weights, temperature=temperature)
    t = jnp.asarray(temperature, won.dtype)
    # a difference of rounding is a tie: weights that sum to the same may differ in the last place
    settled = jnp.where(jnp.abs(won) < 8 * jnp.finfo(won.dtype).eps, 0.0, won)
    outcome = jnp.where(t > 0, jnp.tanh(won / 0.1), jnp.sign(settled))
    return jnp.sum(outcome, axis=-1) / max(utilities.shape[-2] - 1, 1)


def soft_sign(x: jax.Array, temperature: jax.Array | float) -> jax.Array:
    """`sign(x)`, or `tanh(x / temperature)` for a positive temperature."""
    t = jnp.asarray(temperature, x.dtype)
    return jnp.where(t > 0, jnp.tanh(x / jnp.where(t > 0, t, 1.0)), jnp.sign(x))


@dataclass(frozen=True)
class Vote(Rule):
    """What the voting rules hold.

    Attributes:
      group: so many consecutive texts are compared, such as the completions of one prompt; None compares the batch.
      temperature: in units of utility; 0 is the rule itself, whose gradient is 0.
    """

    group: int | None = None
    temperature: float = 0.0

    comparable: ClassVar[bool] = False
    across_texts: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_group(self.group)
        check_range("temperature", self.temperature, 0.0, math.inf, open_high=True)

    def init(self, names: Sequence[str]) -> Params:
        """`temperature []`."""
        return {"temperature": number(self.temperature)}


@dataclass(frozen=True)
class Borda(Vote):
    """`borda` in a contract: texts are ranked within consecutive groups. See `Vote` for what it holds."""

    kind: ClassVar[str] = "borda"

    def apply(self, utilities: jax.Array, weights: jax.Array, params: Params) -> jax.Array:
        """See `borda`."""
        grouped = in_groups(utilities, self.group)
        return borda(grouped, weights, temperature=params["temperature"]).reshape(-1)


@dataclass(frozen=True)
class Copeland(Vote):
    """`copeland` in a contract: texts are ranked within consecutive groups. See `Vote` for what it holds."""

    kind: ClassVar[str] = "copeland"

    def apply(self, utilities: jax.Array, weights: jax.Array, params: Params) -> jax.Array:
        """See `copeland`."""
        grouped = in_groups(utilities, self.group)
        return copeland(grouped, weights, temperature=params["temperature"]).reshape(-1)
