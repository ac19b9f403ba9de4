"""What a constraint costs each text, whether the text violates it, and by how much it is met."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ._constraints import RELATIONS, Chance, Constraint, CVaR, Event, Expect, Formula, events_in, name_of
from ._temporal import Trace, judge


class Cost(NamedTuple):
    """Of one constraint, `[B]` each: cost, violation, robustness (positive where the text meets it).

    Where the last two are None they follow from the cost and its threshold.
    """

    cost: jax.Array
    violated: jax.Array | None
    robustness: jax.Array | None


def cost_of(
    constraint: Constraint,
    terms: Mapping[str, jax.Array],
    trace: Trace,
    levels: Iterator[jax.Array],
    threshold: jax.Array,
) -> Cost:
    """The cost of each text.

    Args:
      constraint: what is limited.
      terms: `[B]` by name, token-level terms reduced.
      trace: for formulas.
      levels: the numbers that constraints compare with, those of this one next.
      threshold: `[]`, what the mean cost may be at most.
    """
    of = constraint.of
    sign = 1.0 if constraint.relation == "<=" else -1.0
    match of:
        case Expect():
            cost = sign * terms[name_of(of.term)] if sign < 0 else terms[name_of(of.term)]
        case CVaR():
            value = terms[name_of(of.term)] * sign
            level = next(levels)
            at = _quantile(value, level) if of.at is None else sign * next(levels)
            cost = _tail(value, level, at)
        case Chance():
            happens, known = _event(of.event, terms, trace, levels)
            counted = happens if constraint.relation == "<=" else ~happens
            cost = jnp.where(known, counted.astype(threshold.dtype), jnp.nan)  # what was not measured satisfies nothing
        case Formula():
            robustness, holds = judge(of, trace, [next(levels) for _ in events_in(of)])
            cost = jnp.maximum(-robustness, 0.0)
            allowed = jnp.broadcast_to(threshold, cost.shape)
            violated = jnp.where(allowed > 0, ~(cost <= allowed), ~holds)
            return Cost(cost, violated, robustness + allowed)
        case _:
            raise TypeError(f"constraint: {type(of).__name__} has no cost")
    return Cost(cost, None, None)


def _event(
    event: Formula, terms: Mapping[str, jax.Array], trace: Trace, levels: Iterator[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    """Whether it happens to each text, and whether that is known."""
    if isinstance(event, Event):
        value = terms[name_of(event.term)]
        level = jnp.broadcast_to(next(levels), value.shape)
        return RELATIONS[event.relation](value, level), ~jnp.isnan(value)
    robustness, holds = judge(event, trace, [next(levels) for _ in events_in(event)])
    return holds, ~jnp.isnan(robustness)


def _quantile(value: jax.Array, level: jax.Array) -> jax.Array:
    """The least value that at least `level` of the texts do not exceed."""
    count = value.shape[0]
    if count == 0:
        return jnp.zeros((), value.dtype)
    place = jnp.ceil(level * count).astype(jnp.int32) - 1
    return jnp.sort(value)[jnp.clip(place, 0, count - 1)]


def _tail(value: jax.Array, level: jax.Array, at: jax.Array) -> jax.Array:
    at = jnp.broadcast_to(at, value.shape)
    return at + jnp.maximum(value - at, 0.0) / (1.0 - level)
