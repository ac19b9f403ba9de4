"""Reductions along axes, running ones, sorting, matrix products."""

from typing import Any

import numpy as np

from rlx.contracts import _interval as iv
from rlx.contracts._interval import Interval, Unsupported

from ._walk import dtype_of, not_empty, rule, shape_of

_LARGEST = 20_000_000


@rule("reduce_sum")
def _reduce_sum(equation: Any, a: Interval) -> Interval:
    return iv.total(a, tuple(equation.params["axes"]), dtype_of(equation))


@rule("reduce_max", "reduce_or")
def _reduce_max(equation: Any, a: Interval) -> Interval:
    not_empty(equation, a)
    axes = tuple(equation.params["axes"])
    return Interval(np.max(a.low, axis=axes), np.max(a.high, axis=axes), a.nan)


@rule("reduce_min", "reduce_and")
def _reduce_min(equation: Any, a: Interval) -> Interval:
    not_empty(equation, a)
    axes = tuple(equation.params["axes"])
    return Interval(np.min(a.low, axis=axes), np.min(a.high, axis=axes), a.nan)


@rule("argmax", "argmin")
def _argmax(equation: Any, a: Interval) -> Interval:
    not_empty(equation, a)
    (axis,) = equation.params["axes"]
    return Interval(np.zeros(shape_of(equation)), np.full(shape_of(equation), a.shape[axis] - 1.0))


@rule("cumsum")
def _cumsum(equation: Any, a: Interval) -> Interval:
    axis, reverse = equation.params["axis"], equation.params["reverse"]
    columns = [
        iv.total(Interval(np.take(a.low, kept, axis), np.take(a.high, kept, axis), a.nan), (axis,), dtype_of(equation))
        for kept in (range(i, a.shape[axis]) if reverse else range(i + 1) for i in range(a.shape[axis]))
    ]
    low, high = np.stack([c.low for c in columns], axis), np.stack([c.high for c in columns], axis)
    return Interval(low, high, any(c.nan for c in columns))


@rule("cummax", "cummin")
def _cumulative(equation: Any, a: Interval) -> Interval:
    axis, reverse = equation.params["axis"], equation.params["reverse"]
    step = np.maximum if equation.primitive.name == "cummax" else np.minimum

    def run(x: np.ndarray) -> np.ndarray:
        x = np.flip(x, axis) if reverse else x
        x = step.accumulate(x, axis=axis)
        return np.flip(x, axis) if reverse else x

    return Interval(run(a.low), run(a.high), a.nan)


@rule("sort")
def _sort(equation: Any, *parts: Interval) -> list[Interval]:
    axis, results = equation.params["dimension"], []
    for part in parts:
        low = np.broadcast_to(np.min(part.low, axis=axis, keepdims=True), part.shape)
        high = np.broadcast_to(np.max(part.high, axis=axis, keepdims=True), part.shape)
        results.append(Interval(low, high, part.nan))
    if len(parts) == 1:  # order statistics of the bounds are bounds of the order statistics
        results = [Interval(np.sort(parts[0].low, axis=axis), np.sort(parts[0].high, axis=axis), parts[0].nan)]
    return results


@rule("dot_general")
def _dot_general(equation: Any, a: Interval, b: Interval) -> Interval:
    (contract_a, contract_b), (batch_a, batch_b) = equation.params["dimension_numbers"]
    free_a = [i for i in range(len(a.shape)) if i not in (*contract_a, *batch_a)]
    free_b = [i for i in range(len(b.shape)) if i not in (*contract_b, *batch_b)]

    def arrange(x: Interval, order: list[int], lead: int, ours: int, theirs: int, first: bool) -> Interval:
        def move(end: np.ndarray) -> np.ndarray:
            end = np.transpose(end, order)
            extra = [lead + ours + i for i in range(theirs)] if first else [lead + i for i in range(theirs)]
            return np.expand_dims(end, extra)

        return Interval(move(x.low), move(x.high), x.nan)

    lead, count = len(batch_a), len(contract_a)
    left = arrange(a, [*batch_a, *free_a, *contract_a], lead, len(free_a), len(free_b), True)
    right = arrange(b, [*batch_b, *free_b, *contract_b], lead, len(free_b), len(free_a), False)
    if np.prod(np.broadcast_shapes(left.shape, right.shape), dtype=np.int64) > _LARGEST:
        raise Unsupported("a matrix product of this size")
    rank = lead + len(free_a) + len(free_b) + count
    return iv.product_sum(left, right, tuple(range(rank - count, rank)), dtype_of(equation))


@rule("reduce_prod")
def _reduce_prod(equation: Any, a: Interval) -> Interval:
    """Factors one by one, in any order: each product is rounded."""
    axes, dtype = tuple(equation.params["axes"]), dtype_of(equation)
    kept = [axis for axis in range(len(a.shape)) if axis not in axes]
    flat = (-1, *(a.shape[axis] for axis in kept))
    low, high = (np.transpose(end, [*axes, *kept]).reshape(flat) for end in (a.low, a.high))
    out = Interval(np.ones(flat[1:]), np.ones(flat[1:]), a.nan)
    for least, most in zip(low, high, strict=True):
        out = iv.multiply(out, Interval(least, most, a.nan), dtype)
    # another order rounds otherwise, by at most one unit a factor
    return iv.settle(out.low, out.high, dtype, exact=bool(np.all(low == high)), nan=out.nan, ulps=float(len(low)))


@rule("top_k")
def _top_k(equation: Any, a: Interval) -> list[Interval]:
    """The k greatest along an axis lie between the k greatest lows and the k greatest highs; and their places."""
    count = equation.outvars[0].aval.shape
    axis = len(count) - 1 if equation.params.get("axis") is None else equation.params["axis"] % len(count)
    k = count[axis]

    def best(ends: np.ndarray) -> np.ndarray:
        return np.flip(np.sort(ends, axis=axis), axis=axis).take(range(k), axis=axis)

    places = Interval(np.zeros(count), np.full(count, a.shape[axis] - 1.0))
    return [Interval(best(a.low), best(a.high), a.nan), places]
