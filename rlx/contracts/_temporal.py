"""Signal temporal logic over tokens: robustness and truth of a formula, for a batch of texts."""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ._constraints import RELATIONS, Always, And, Event, Eventually, Formula, Not, Or, Until, name_of


class Trace(NamedTuple):
    """What formulas are judged on: masked tokens are gone, the text is the first of its row.

    Attributes:
      sequence: `[B]` by name, terms of level "sequence".
      token: `[B, T]` by name, terms of level "token".
      present: `[B, T]`, which positions hold a token; None if no term is token-level.
      ends: by name, the declared range.
    """

    sequence: Mapping[str, jax.Array]
    token: Mapping[str, jax.Array]
    present: jax.Array | None
    ends: Mapping[str, tuple[float, float]]


class Judgement(NamedTuple):
    """Robustness and truth, `[B, T]` or, of what does not change over the text, `[B, 1]`.

    What is true of an empty window is infinitely so until the end, where `judge` puts a finite number.
    """

    robustness: jax.Array
    holds: jax.Array


def compact(values: Mapping[str, jax.Array], mask: jax.Array) -> tuple[dict[str, jax.Array], jax.Array]:
    """Arrays `[B, T]` with the unmasked tokens moved to the front, and which positions hold one."""
    if mask.shape[-1] == 0:  # no room for a token: a text of one that is not there
        mask = jnp.zeros((mask.shape[0], 1), jnp.bool_)
        values = {name: jnp.zeros(mask.shape, value.dtype) for name, value in values.items()}
    kept = mask.astype(jnp.bool_)
    order = jnp.argsort(~kept, axis=-1, stable=True)
    lengths = jnp.sum(kept, axis=-1, keepdims=True, dtype=jnp.int32)
    present = jnp.arange(mask.shape[-1], dtype=jnp.int32)[None] < lengths
    moved = {name: jnp.take_along_axis(value, order, axis=-1) for name, value in values.items()}
    # what stands behind the text may be anything, NaN too
    return {name: jnp.where(present, value, 0.0) for name, value in moved.items()}, present


def judge(formula: Formula, trace: Trace, levels: Sequence[jax.Array]) -> tuple[jax.Array, jax.Array]:
    """A formula at the first token of each text.

    Args:
      formula: the formula.
      trace: what it is judged on.
      levels: the numbers that its events compare with, in the order of `events_in`.

    Returns:
      Robustness `[B]` (positive only if the formula holds, negative only if it does not, NaN if a compared term is
      NaN) and truth `[B]` (False then).

    References:
      Donzé and Maler 2010, definition 3; Fainekos and Pappas 2009, theorem 13 (the sign).
    """
    remaining = iter(levels)
    tops: list[jax.Array] = []

    def walk(part: Formula) -> Judgement:
        match part:
            case Event():
                level = next(remaining)
                tops.append(_most(trace.ends[name_of(part.term)], level))
                return _event(part, trace, level)
            case Not():
                of = walk(part.of)
                return Judgement(-of.robustness, ~of.holds)
            case And():
                return _joined([walk(p) for p in part.parts], jnp.minimum, jnp.logical_and)
            case Or():
                return _joined([walk(p) for p in part.parts], jnp.maximum, jnp.logical_or)
            case Always():
                return _over_window(walk(part.of), trace.present, part.first, part.last, every=True)
            case Eventually():
                return _over_window(walk(part.of), trace.present, part.first, part.last, every=False)
            case Until():
                return _until(walk(part.left), walk(part.right), trace.present, part.first, part.last)
        raise TypeError(f"formula: {type(part).__name__} has no meaning here")

    result = walk(formula)
    robustness, holds = result.robustness[:, 0], result.holds[:, 0]
    top = functools.reduce(jnp.maximum, tops).astype(robustness.dtype)
    robustness = jnp.where(jnp.isinf(robustness), jnp.where(robustness > 0, top, -top), robustness)
    # the truth of a comparison with NaN is False, and so is that of its negation
    return robustness, holds & ~jnp.isnan(robustness)


def _event(event: Event, trace: Trace, level: jax.Array) -> Judgement:
    name = name_of(event.term)
    value = trace.token[name] if name in trace.token else trace.sequence[name][:, None]
    level = jnp.broadcast_to(level.astype(value.dtype), value.shape)
    margin = value - level if event.relation in (">", ">=") else level - value
    return Judgement(margin, RELATIONS[event.relation](value, level))


def _most(ends: tuple[float, float], level: jax.Array) -> jax.Array:
    """The greatest robustness of a comparison that the declared range allows; 1 if none is declared."""
    if not all(map(math.isfinite, ends)):
        return jnp.ones_like(level)
    low, high = (jnp.abs(jnp.asarray(end, level.dtype) - level) for end in ends)
    return jnp.maximum(jnp.maximum(low, high), jnp.finfo(level.dtype).tiny)


def _joined(parts: list[Judgement], least: Callable[..., jax.Array], both: Callable[..., jax.Array]) -> Judgement:
    width = max(part.robustness.shape[1] for part in parts)
    result = _wide(parts[0], width)
    for part in parts[1:]:
        part = _wide(part, width)
        result = Judgement(
            least(result.robustness, part.robustness),
            both(result.holds, part.holds),
        )
    return result


def _wide(part: Judgement, width: int) -> Judgement:
    shape = (part.robustness.shape[0], width)
    return Judgement(jnp.broadcast_to(part.robustness, shape), jnp.broadcast_to(part.holds, shape))


def _over_window(part: Judgement, present: jax.Array | None, first: int, last: int | None, *, every: bool) -> Judgement:
    """The least (every) or greatest value over the window; what is behind the text counts as nothing."""
    part, present = _spread(part, present)
    fill = jnp.full((1, 1), jnp.inf if every else -jnp.inf, part.robustness.dtype)
    least, both = (jnp.minimum, jnp.logical_and) if every else (jnp.maximum, jnp.logical_or)
    robustness = _window(jnp.where(present, part.robustness, fill), least, fill, first, last)
    holds = _window(jnp.where(present, part.holds, every), both, jnp.full((1, 1), every), first, last)
    return Judgement(robustness, holds)


def _window(
    values: jax.Array, least: Callable[..., jax.Array], fill: jax.Array, first: int, last: int | None
) -> jax.Array:
    """`least` of `values[t + first : t + last + 1]`, by doubling: log2 of the window passes."""
    length = values.shape[1]
    size = length if last is None else min(last - first + 1, length)
    covered, result = 1, values
    while 2 * covered <= size:
        result = least(result, _shift(result, covered, fill))
        covered *= 2
    if covered < size:
        result = least(result, _shift(result, size - covered, fill))
    return _shift(result, first, fill)


def _shift(values: jax.Array, steps: int, fill: jax.Array) -> jax.Array:
    """`values[:, t + steps]`, and `fill` behind the end."""
    if steps == 0:
        return values
    length = values.shape[1]
    if steps >= length:
        return jnp.broadcast_to(fill, values.shape)
    return jnp.concatenate([values[:, steps:], jnp.broadcast_to(fill, (values.shape[0], steps))], axis=1)


def _until(left: Judgement, right: Judgement, present: jax.Array | None, first: int, last: int | None) -> Judgement:
    width = max(left.robustness.shape[1], right.robustness.shape[1])
    never = jnp.full((1, 1), -jnp.inf, right.robustness.dtype)
    (left, there), (right, _) = (_spread(_wide(part, width), present) for part in (left, right))
    robustness = _until_values(
        jnp.where(there, left.robustness, never),
        jnp.where(there, right.robustness, never),
        jnp.minimum,
        jnp.maximum,
        never,
        (first, last),
    )
    holds = _until_values(
        left.holds & there,
        right.holds & there,
        jnp.logical_and,
        jnp.logical_or,
        jnp.zeros((1, 1), jnp.bool_),
        (first, last),
    )
    return Judgement(robustness, holds)


def _until_values(
    left: jax.Array,
    right: jax.Array,
    both: Callable[..., jax.Array],
    either: Callable[..., jax.Array],
    bottom: jax.Array,
    window: tuple[int, int | None],
) -> jax.Array:
    """The recursion U(t) = right(t) or (left(t) and U(t + 1)), then `first` steps of left(t) and U(t + 1)."""
    first, last = window
    length = left.shape[1]
    first = min(first, length)
    steps = length - 1 if last is None else min(last - first, length - 1) if last >= first else 0

    def widen(found: jax.Array, _: Any) -> tuple[jax.Array, None]:
        return either(right, both(left, _shift(found, 1, bottom))), None

    def delay(found: jax.Array, _: Any) -> tuple[jax.Array, None]:
        return both(left, _shift(found, 1, bottom)), None

    if last is None:

        def compose(later: Any, earlier: Any) -> Any:
            # x -> right or (left and x), composed
            return both(earlier[0], later[0]), either(earlier[1], both(earlier[0], later[1]))

        _, found = jax.lax.associative_scan(compose, (left, right), reverse=True, axis=1)
    else:
        found = jax.lax.scan(widen, right, None, length=steps)[0] if steps else right
    return jax.lax.scan(delay, found, None, length=first)[0] if first else found


def _spread(part: Judgement, present: jax.Array | None) -> tuple[Judgement, jax.Array]:
    """The judgement at every token; without token-level terms the text is one token long."""
    if present is None:
        return part, jnp.ones((1, part.robustness.shape[1]), jnp.bool_)
    return _wide(part, present.shape[1]), present
