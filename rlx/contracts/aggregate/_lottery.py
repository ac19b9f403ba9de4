"""Maximal lotteries: the mixed strategy that no alternative beats on average."""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from rlx._checks import check_dtype, check_shapes
from rlx._numerics import wide

from ._rule import Params, in_groups
from ._voting import Vote, margins

_STEPS = 40


def maximal_lottery(margins: jax.Array, *, temperature: jax.Array | float = 0.0) -> jax.Array:
    """The maximal lottery of pairwise margins: an optimal strategy of the symmetric zero-sum game.

        p >= 0,  sum p = 1,  (p^T M)_j >= 0 for every j

    If several are, it is the analytic centre of them, which treats equals equally: all margins 0 give the uniform
    lottery. It is the end of the central path `p_i (v - (M p)_i) = mu`, `v = A mu`, followed by an interior-point
    method in a fixed number of steps; mu ends at a few units in the last place, so that float32 gives `p^T M >= -1e-5`.
    Where another strategy is nearly as good, float32 may not tell them apart: a probability was off by up to 0.005
    among 4 alternatives and by up to 0.02 among 32 (1e-7 is usual). In float64 it was within 1e-12.

    Args:
      margins: `[..., A, A]`, antisymmetric; only ratios count.
      temperature: `[]`, where the path ends instead, relative to the largest margin: the equilibrium of players whose
        payoff has `mu log p_i` added. It is differentiable in the margins (once); at 0 the gradient is 0.

    Returns:
      Probabilities `[..., A]`.

    Raises:
      ValueError: margins are not square.

    Example:
      >>> rock_paper_scissors = jnp.array([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]])
      >>> [round(float(p), 4) for p in maximal_lottery(rock_paper_scissors)]
      [0.3333, 0.3333, 0.3333]

    References:
      Kreweras 1965; Fishburn 1984, "Probabilistic social choice based on simple voting comparisons"; Brandl, Brandt and
      Seedig 2016, "Consistent probabilistic social choice". Wright 1997, "Primal-dual interior-point methods",
      chapter 8, for the method.
    """
    check_shapes(margins=(margins, "*AB"))
    check_dtype("floating", margins=margins)
    count = margins.shape[-1]
    if margins.shape[-2] != count:
        raise ValueError(f"margins: expected dims [..., A, A], got shape {margins.shape}")
    dtype = margins.dtype
    inside = wide(dtype)
    game = margins.astype(inside)
    game = 0.5 * (game - jnp.swapaxes(game, -1, -2))
    largest = jnp.max(jnp.abs(game), axis=(-1, -2), keepdims=True)
    game = game / jnp.where(largest > 0, largest, 1.0)
    exact = 2.0 * jnp.finfo(inside).eps
    t = jnp.asarray(temperature, inside)
    fixed = jax.lax.stop_gradient(game)
    path = jnp.vectorize(_solve, signature="(a,a),()->(a)")(fixed, jnp.maximum(jax.lax.stop_gradient(t), exact))
    solved = jnp.where(t > 0, path, jnp.vectorize(_polish, signature="(a,a),(a)->(a)")(fixed, path))
    smooth = jnp.vectorize(_newton_step, signature="(a,a),(a),()->(a)")(game, solved, jnp.where(t > 0, t, 1.0))
    return jnp.where(t > 0, smooth, solved).astype(dtype)


def _solve(game: jax.Array, target: jax.Array) -> jax.Array:
    """The point of the central path at mu = target: long steps, then centring."""
    count = game.shape[0]
    one = jnp.ones(count, game.dtype)

    def step(state: tuple[jax.Array, jax.Array], _: None) -> tuple[tuple[jax.Array, jax.Array], None]:
        p, v = state
        s = v - game @ p
        mu = jnp.maximum(0.2 * jnp.vdot(p, s) / count, target)
        # S dp + P (dv - M dp) = mu - p s;  sum dp = 1 - sum p
        top = jnp.concatenate([jnp.diag(s) - p[:, None] * game, p[:, None]], axis=1)
        matrix = jnp.concatenate([top, jnp.append(one, 0.0)[None]], axis=0)
        # rows of like size: the last places of a small row count, too
        scale = 1.0 / jnp.maximum(jnp.append(jnp.maximum(p, s), 1.0), jnp.finfo(game.dtype).tiny)
        right = jnp.append(mu - p * s, 1.0 - jnp.sum(p))
        found = jnp.linalg.solve(matrix * scale[:, None], right * scale)
        dp, dv = found[:-1], found[-1]
        ds = dv - game @ dp
        ratio = jnp.minimum(_room(p, dp), _room(s, ds))
        length = jnp.minimum(1.0, 0.95 * ratio)
        return (p + length * dp, v + length * dv), None

    value = 1.0 + jnp.max(game @ one) / count
    start = (one / count + 0.0 * value, value)  # under shard_map both vary over devices, as what follows does
    (p, _), _ = jax.lax.scan(step, start, None, length=_STEPS)
    p = jnp.maximum(p, 0.0)
    return p / jnp.sum(p)


def _polish(game: jax.Array, p: jax.Array) -> jax.Array:
    """The nearest point of the face that the path leads to, if it is a better strategy: it ends the path's last bit.

    What the lottery chooses (p_i > s_i) has margin 0 against it: `M_SS p_S = 0`, `sum p_S = 1`.
    """
    chosen = p > -(game @ p)
    inside = (chosen[:, None] & chosen[None]).astype(game.dtype)
    matrix = jnp.concatenate([game * inside, chosen.astype(game.dtype)[None]], axis=0)
    start = jnp.where(chosen, p, 0.0)
    missing = matrix @ start - jnp.append(jnp.zeros_like(p), 1.0)
    found = jnp.where(chosen, start - jnp.linalg.pinv(matrix) @ missing, 0.0)
    found = jnp.maximum(found, 0.0)
    found = found / jnp.maximum(jnp.sum(found), jnp.finfo(game.dtype).tiny)
    better = jnp.max(game @ found) < jnp.max(game @ p)  # False if it is not a number
    return jnp.where(better, found, p)


def _room(x: jax.Array, dx: jax.Array) -> jax.Array:
    """The longest step that keeps every element of `x + step dx` at or above 0."""
    falls = dx < 0
    return jnp.min(jnp.where(falls, x / jnp.where(falls, -dx, 1.0), jnp.inf))


def _newton_step(game: jax.Array, p: jax.Array, mu: jax.Array) -> jax.Array:
    """One step of Newton's method at the solution: it moves nothing, and has the implicit function's derivative."""
    count = game.shape[0]

    def residual(game: jax.Array, mu: jax.Array) -> jax.Array:
        return p * (count * mu - game @ p + jnp.sum(p) - 1.0) - mu

    fixed, fixed_mu = jax.lax.stop_gradient((game, mu))
    s = count * fixed_mu - fixed @ p
    matrix = jnp.diag(s) - p[:, None] * fixed + p[:, None]
    return p - jnp.linalg.solve(matrix, residual(game, mu))


@dataclass(frozen=True)
class MaximalLottery(Vote):
    """The maximal lottery of each group of texts: a text's value is its expected margin against the lottery.

        W_i = sum_j p_j M_ij,   at most 0, and 0 for every text that the lottery may choose

    So nothing is gained by moving away from what the lottery chooses, and a text that loses is told by how much; the
    probabilities themselves would say nothing to two texts that are both never chosen. The lottery is not
    differentiated, as the opponent in self-play is not; with a temperature the margins are. See `Vote` for what it
    holds.

    Where the lottery is unique the value is monotone, though its probabilities are not. Let M' be M with a greater row
    i, and p, p' their lotteries. If p' does not choose i, it is optimal for M too, since only row and column i differ
    and (M p')_i <= (M' p')_i <= 0. Then p' = p, and W'_i = (M' p)_i >= W_i; otherwise W'_i = 0. Among several optimal
    lotteries the centre may move, so nothing is claimed to `verify`.
    """

    kind: ClassVar[str] = "maximal_lottery"
    monotone: ClassVar[bool] = False

    def apply(self, utilities: jax.Array, weights: jax.Array, params: Params) -> jax.Array:
        """See `maximal_lottery`."""
        grouped = in_groups(utilities, self.group)
        wins = margins(grouped, weights, temperature=params["temperature"])
        chosen = jax.lax.stop_gradient(maximal_lottery(wins))
        return jnp.sum(wins * chosen[..., None, :], axis=-1).reshape(-1)
