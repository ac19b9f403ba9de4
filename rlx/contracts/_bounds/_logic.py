"""Comparisons, logic, choice, conversion."""

from typing import Any

import numpy as np

from rlx.contracts import _interval as iv
from rlx.contracts._interval import Interval, Unsupported

from ._walk import dtype_of, rule, shape_of


def _truth(never: np.ndarray, always: np.ndarray) -> Interval:
    return Interval(np.where(always, 1.0, 0.0), np.where(never, 0.0, 1.0))


@rule("lt", "le", "gt", "ge")
def _compare(equation: Any, a: Interval, b: Interval) -> Interval:
    name = equation.primitive.name
    if name in ("gt", "ge"):
        a, b = b, a
    strict = name in ("lt", "gt")
    always = a.high < b.low if strict else a.high <= b.low
    never = a.low >= b.high if strict else a.low > b.high
    return _truth(never, always & (not (a.nan or b.nan)))


@rule("eq")
def _eq(equation: Any, a: Interval, b: Interval) -> Interval:
    same = (a.low == a.high) & (b.low == b.high) & (a.low == b.low)
    return _truth((a.high < b.low) | (b.high < a.low), same & (not (a.nan or b.nan)))


@rule("ne")
def _ne(equation: Any, a: Interval, b: Interval) -> Interval:
    equal = _eq(equation, a, b)
    return Interval(1.0 - equal.high, 1.0 - equal.low)


@rule("is_finite")
def _is_finite(equation: Any, a: Interval) -> Interval:
    return Interval(np.zeros(a.shape) if a.nan or a.unbounded else np.ones(a.shape), np.ones(a.shape))


@rule("and", "or", "xor", "not")
def _logic(equation: Any, *parts: Interval) -> Interval:
    name, dtype = equation.primitive.name, dtype_of(equation)
    if dtype != np.bool_:
        return iv.everything(shape_of(equation), dtype)
    if name == "not":
        return Interval(1.0 - parts[0].high, 1.0 - parts[0].low)
    a, b = parts
    if name == "and":
        return Interval(np.minimum(a.low, b.low), np.minimum(a.high, b.high))
    if name == "or":
        return Interval(np.maximum(a.low, b.low), np.maximum(a.high, b.high))
    known = (a.low == a.high) & (b.low == b.high)
    return Interval(np.where(known, np.abs(a.low - b.low), 0.0), np.where(known, np.abs(a.low - b.low), 1.0))


@rule("select_n")
def _select_n(equation: Any, which: Interval, *cases: Interval) -> Interval:
    low, high = np.full(shape_of(equation), np.inf), np.full(shape_of(equation), -np.inf)
    nan, quotient = False, any(case.quotient for case in cases)
    for index, case in enumerate(cases):
        possible = np.broadcast_to((which.low <= index) & (index <= which.high), low.shape)
        low = np.where(possible, np.minimum(low, case.low), low)
        high = np.where(possible, np.maximum(high, case.high), high)
        nan = nan or (case.nan and bool(np.any(possible)))
    return Interval(low, high, nan, quotient)


@rule("rem")
def _rem(equation: Any, a: Interval, b: Interval) -> Interval:
    if iv.is_float(dtype_of(equation)) or b.holds(0.0):
        raise Unsupported("remainder of floats or by a divisor that may be 0")
    most = np.minimum(b.size - 1.0, a.size)
    return Interval(np.where(a.low < 0, -most, 0.0), np.where(a.high > 0, most, 0.0))


@rule("convert_element_type")
def _convert(equation: Any, a: Interval) -> Interval:
    source, target = np.dtype(equation.invars[0].aval.dtype), dtype_of(equation)
    if target == np.bool_:
        return _ne(equation, a, iv.point(0.0))
    if iv.is_float(source) and not iv.is_float(target):
        if a.nan or a.unbounded:
            return iv.everything(a.shape, target)
        return iv.settle(np.trunc(a.low), np.trunc(a.high), target)
    if source == target:
        return a
    a = iv.loosen(a, source) if iv.is_float(source) else a  # bfloat16 may be computed in float32 and stay there
    return iv.settle(a.low, a.high, target, nan=a.nan)


@rule("stop_gradient", "copy", "copy_p", "optimization_barrier")
def _same(equation: Any, *parts: Interval) -> list[Interval]:
    return list(parts)
