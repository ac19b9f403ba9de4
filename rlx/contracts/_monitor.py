"""Whether constraints are kept while training runs: counts and bets that live inside jit and scan."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rlx._checks import check_range

from ._certify import STAKES
from ._compile import Params, Reward, RewardOut
from ._consistency import reduced_range
from ._constraints import Chance, Constraint, CVaR, Expect, Formula, events_in, name_of
from ._contract import Contract, all_terms

_EDGE = 1e-6  # of a threshold at the end of its range: both tests are of one that is this far inside


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class MonitorState:
    """What a monitor remembers, `[M]` each.

    Attributes:
      n: texts seen.
      missing: of them, those whose cost was NaN.
      outside: those whose cost was outside its declared bounds.
      violated: those that violated.
      mean: mean cost of those that were measured.
      worst: the least robustness.
      above, below: `[M, S]`, log of each bettor's capital against "mean <= threshold" and "mean >= threshold".
      above_rest, below_rest: `[M, S]`, what rounding took from them.
      above_most, below_most: the most that the average of the bettors ever held, as a logarithm.
    """

    n: jax.Array
    missing: jax.Array
    outside: jax.Array
    violated: jax.Array
    mean: jax.Array
    worst: jax.Array
    above: jax.Array
    above_rest: jax.Array
    above_most: jax.Array
    below: jax.Array
    below_rest: jax.Array
    below_most: jax.Array


class MonitorReport(NamedTuple):
    """What a monitor says of each constraint, `[M]` each.

    Attributes:
      n, missing, outside: counts of texts, of those without a cost, of those with a cost outside its declared bounds.
      mean: mean cost.
      violated: share of texts that violated.
      worst: the least robustness.
      alarm: the mean cost is above the threshold, with anytime-valid confidence 1 - alpha / 2.
      kept: it is below, likewise. The two together are wrong with probability at most alpha, however often you look.
      log_e_above, log_e_below: logarithms of the evidence for either; alarm means at least log(2 / alpha).
      testable: whether the cost has known bounds and is each text's own; where not, alarm and kept are False.
    """

    n: jax.Array
    missing: jax.Array
    outside: jax.Array
    mean: jax.Array
    violated: jax.Array
    worst: jax.Array
    alarm: jax.Array
    kept: jax.Array
    log_e_above: jax.Array
    log_e_below: jax.Array
    testable: jax.Array


class Monitor(NamedTuple):
    """Pure functions: `init() -> state`, `update(state, out, axis_name=None) -> state`, `read(state) -> report`."""

    init: Callable[[], MonitorState]
    update: Callable[..., MonitorState]
    read: Callable[[MonitorState], MonitorReport]


def monitor(reward: Reward, *, params: Params | None = None, alpha: float = 0.05) -> Monitor:
    """A monitor of a contract's constraints: arrays in, arrays out, no callback to the host.

    Against each constraint bet the bettors of `certify`, on every text of every batch; they are looked at after each
    batch. Costs are scaled to [0, 1] by bounds that follow from declared ranges. A cost that is NaN counts as whatever
    favours neither claim. If a cost was ever outside its bounds, neither claim is made.

    Args:
      reward: a compiled contract.
      params: where thresholds and levels are taken from; `reward.params` if None. Other values are another monitor.
      alpha: probability of a wrong statement about one constraint, in (0, 1).

    Returns:
      A `Monitor`. In `update`, `axis_name` names the axis of shard_map or pmap over which the batch is split.

    Example:
      >>> from rlx.contracts import Chance, Contract, Stakeholder, Term, compile
      >>> bad = Term("bad", lambda batch: batch["bad"])
      >>> reward = compile(Contract("demo", terms=(bad,), stakeholders=(Stakeholder("me", {"bad": -1.0}),),
      ...                           constraints=(Chance(bad > 0.5) <= 0.1,)))
      >>> watch = monitor(reward)
      >>> def step(state, batch):
      ...     return watch.update(state, reward(reward.params, batch)), None
      >>> batches = {"bad": (jnp.arange(1600) % 4 == 0).astype(jnp.float32).reshape(100, 16)}
      >>> state, _ = jax.lax.scan(step, watch.init(), batches)
      >>> report = watch.read(state)
      >>> float(report.mean[0]), bool(report.alarm[0])
      (0.25, True)

    References:
      See `certify`.
    """
    if not isinstance(reward, Reward):
        raise TypeError(f"reward: expected a compiled contract, got {type(reward).__name__}; write compile(contract)")
    check_range("alpha", alpha, 0.0, 1.0, open_low=True, open_high=True)
    params = reward.params if params is None else params
    bounds = [_bounds(reward.contract, c) for c in reward.contract.constraints]
    count = len(bounds)
    testable = np.array([bound is not None for bound in bounds], bool)
    ends = np.array([(0.0, 1.0) if bound is None else bound for bound in bounds], np.float64).reshape(count, 2)
    low, size = ends[:, 0], ends[:, 1] - ends[:, 0]
    thresholds = np.asarray(params["thresholds"], np.float64)
    # float32 rounds costs: what is out by that is in
    slack = 8 * np.finfo(np.float32).eps * np.max(np.abs(ends), axis=1, initial=0.0)
    middle = np.clip((thresholds - low) / size, _EDGE, 1.0 - _EDGE)
    stakes = jnp.asarray(STAKES, jnp.float32)
    needed = math.log(2.0 / alpha)

    def init() -> MonitorState:
        whole, number = jnp.zeros(count, jnp.int32), jnp.zeros(count, jnp.float32)
        bets = jnp.zeros((count, len(STAKES)), jnp.float32)
        return MonitorState(
            n=whole,
            missing=whole,
            outside=whole,
            violated=whole,
            mean=number,
            worst=jnp.full(count, jnp.inf, jnp.float32),
            above=bets,
            above_rest=bets,
            above_most=number,
            below=bets,
            below_rest=bets,
            below_most=number,
        )

    def update(state: MonitorState, out: RewardOut, axis_name: Any = None) -> MonitorState:
        if out.costs.ndim != 2 or out.costs.shape[1] != count:
            raise ValueError(f"out: costs have shape {out.costs.shape}, expected [B, {count}] of this contract")

        def total(x: jax.Array) -> jax.Array:
            summed = jnp.sum(x, axis=0)
            return summed if axis_name is None else jax.lax.psum(summed, axis_name)

        costs = out.costs.astype(jnp.float32)
        known = ~jnp.isnan(costs)
        x = (costs - jnp.asarray(low, jnp.float32)[None]) / jnp.asarray(size, jnp.float32)[None]
        edge = jnp.asarray(slack / size, jnp.float32)[None]
        outside = known & ~((x >= -edge) & (x <= 1.0 + edge)) & jnp.asarray(testable)[None]
        x = jnp.clip(x, 0.0, 1.0)
        m = jnp.asarray(middle, jnp.float32)[None]
        above = _log_gains(jnp.where(known, x / m, 0.0), stakes)
        below = _log_gains(jnp.where(known, (1.0 - x) / (1.0 - m), 0.0), stakes)
        seen = total(jnp.ones(costs.shape, jnp.int32))
        measured = total(known.astype(jnp.int32))
        before = (state.n - state.missing).astype(jnp.float32)
        share = measured.astype(jnp.float32) / jnp.maximum(before + measured.astype(jnp.float32), 1.0)
        batch_mean = total(jnp.where(known, costs, 0.0)) / jnp.maximum(measured.astype(jnp.float32), 1.0)
        worst = jnp.min(jnp.where(known, out.robustness.astype(jnp.float32), jnp.inf), axis=0)
        if axis_name is not None:
            worst = jax.lax.pmin(worst, axis_name)
        new_above, above_rest = _add(state.above, state.above_rest, total(above))
        new_below, below_rest = _add(state.below, state.below_rest, total(below))
        return MonitorState(
            n=state.n + seen,
            missing=state.missing + seen - measured,
            outside=state.outside + total(outside.astype(jnp.int32)),
            violated=state.violated + total(out.violated.astype(jnp.int32)),
            mean=state.mean + (batch_mean - state.mean) * share,
            worst=jnp.minimum(state.worst, worst),
            above=new_above,
            above_rest=above_rest,
            above_most=jnp.maximum(state.above_most, _log_mean_exp(new_above)),
            below=new_below,
            below_rest=below_rest,
            below_most=jnp.maximum(state.below_most, _log_mean_exp(new_below)),
        )

    def read(state: MonitorState) -> MonitorReport:
        sound = jnp.asarray(testable) & (state.outside == 0)
        return MonitorReport(
            n=state.n,
            missing=state.missing,
            outside=state.outside,
            mean=state.mean,
            violated=state.violated.astype(jnp.float32) / jnp.maximum(state.n, 1).astype(jnp.float32),
            worst=state.worst,
            alarm=sound & (state.above_most >= needed),
            kept=sound & (state.below_most >= needed),
            log_e_above=jnp.where(sound, state.above_most, jnp.nan),
            log_e_below=jnp.where(sound, state.below_most, jnp.nan),
            testable=jnp.asarray(testable),
        )

    return Monitor(init, update, read)


def _bounds(contract: Contract, constraint: Constraint) -> tuple[float, float] | None:
    """Bounds of a text's cost that follow from declared ranges; None if there are none, or it is not the text's own."""
    terms, of = all_terms(contract), constraint.of
    if isinstance(of, Chance):
        return 0.0, 1.0
    if isinstance(of, Formula):
        # robustness is the margin of one comparison, or the most that a declared range allows
        most = max(abs(end - event.value) for event in events_in(of) for end in terms[name_of(event.term)].range)
        return (0.0, most) if 0 < most < math.inf else None
    reduced = reduced_range(terms[name_of(of.term)])
    if reduced is None or not all(map(math.isfinite, reduced)) or reduced[0] == reduced[1]:
        return None
    low, high = reduced if constraint.relation == "<=" else (-reduced[1], -reduced[0])
    if isinstance(of, Expect):
        return low, high
    if not isinstance(of, CVaR) or of.at is None:
        return None
    at = of.at if constraint.relation == "<=" else -of.at
    most = at + max(high - at, 0.0) / (1.0 - of.level)
    return (at, most) if most > at else None


def _log_gains(ratio: jax.Array, stakes: jax.Array) -> jax.Array:
    """`log(1 - f + f ratio)` by stake, `[B, M, S]`; who loses all is left with next to nothing, not with -inf."""
    gains = stakes.reshape((1, 1, -1)) * (ratio[..., None] - 1.0)
    return jnp.where(gains <= -1.0, -1e5, jnp.log1p(jnp.maximum(gains, -0.9999999)))


def _add(value: jax.Array, rest: jax.Array, more: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Kahan's sum: what rounding takes is added next time."""
    more = more + rest
    total = value + more
    return total, more - (total - value)


def _log_mean_exp(x: jax.Array) -> jax.Array:
    top = jnp.max(x, axis=-1, keepdims=True)
    return jnp.log(jnp.mean(jnp.exp(x - top), axis=-1)) + top[..., 0]
