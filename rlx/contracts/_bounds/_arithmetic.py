"""Sums, products, powers, rounding, extremes."""

from typing import Any

import numpy as np

from rlx.contracts import _interval as iv
from rlx.contracts._interval import Interval, Unsupported

from ._walk import dtype_of, rule


@rule("add", "add_any")
def _add(equation: Any, a: Interval, b: Interval) -> Interval:
    return iv.add(a, b, dtype_of(equation))


@rule("sub")
def _sub(equation: Any, a: Interval, b: Interval) -> Interval:
    return iv.add(a, iv.negate(b), dtype_of(equation))


@rule("neg")
def _neg(equation: Any, a: Interval) -> Interval:
    if not iv.is_float(dtype_of(equation)):
        return iv.settle(-a.high, -a.low, dtype_of(equation))
    return iv.negate(a)


@rule("mul")
def _mul(equation: Any, a: Interval, b: Interval) -> Interval:
    if equation.invars[0] is equation.invars[1]:
        return iv.square(a, dtype_of(equation))
    return iv.multiply(a, b, dtype_of(equation))


@rule("square")
def _square(equation: Any, a: Interval) -> Interval:
    return iv.square(a, dtype_of(equation))


@rule("one_minus_square")  # in the gradient of tanh
def _one_minus_square(equation: Any, a: Interval) -> Interval:
    dtype = dtype_of(equation)
    return iv.add(iv.point(np.ones((), dtype)), iv.negate(iv.square(a, dtype)), dtype)


@rule("div")
def _div(equation: Any, a: Interval, b: Interval) -> Interval:
    return iv.divide(a, b, dtype_of(equation))


@rule("integer_pow")
def _integer_pow(equation: Any, a: Interval) -> Interval:
    power, dtype = equation.params["y"], dtype_of(equation)
    a = iv.loosen(a, dtype)
    if power == 0 or not iv.is_float(dtype):
        raise Unsupported(f"integer_pow with exponent {power} of {dtype}")
    if power < 0:
        return iv.divide(iv.point(np.ones((), dtype)), _power(a, -power, dtype), dtype)
    return _power(a, power, dtype)


def _power(a: Interval, power: int, dtype: Any) -> Interval:
    with np.errstate(over="ignore"):
        ends = np.stack([a.low**power, a.high**power])
    low, high = np.min(ends, axis=0), np.max(ends, axis=0)
    if power % 2 == 0:
        low = np.where((a.low <= 0) & (a.high >= 0), 0.0, low)
    kept = np.abs(ends) <= 1.0  # 0 and 1 are powers of themselves
    unit = kept & (ends == np.round(ends))
    out = iv.settle(low, high, dtype, exact=False, nan=a.nan, ulps=float(power))
    fixed = np.all(unit, axis=0) & (np.abs(a.low) <= 1) & (np.abs(a.high) <= 1)
    return Interval(np.where(fixed | (low == 0), low, out.low), np.where(fixed | (high == 0), high, out.high), out.nan)


@rule("abs")
def _abs(equation: Any, a: Interval) -> Interval:
    low = np.where((a.low <= 0) & (a.high >= 0), 0.0, np.minimum(np.abs(a.low), np.abs(a.high)))
    return iv.settle(low, a.size, dtype_of(equation), nan=a.nan)


@rule("sign")
def _sign(equation: Any, a: Interval) -> Interval:
    return Interval(np.sign(a.low), np.sign(a.high), a.nan)


@rule("floor")
def _floor(equation: Any, a: Interval) -> Interval:
    return Interval(np.floor(a.low), np.floor(a.high), a.nan)


@rule("ceil")
def _ceil(equation: Any, a: Interval) -> Interval:
    return Interval(np.ceil(a.low), np.ceil(a.high), a.nan)


@rule("round")
def _round(equation: Any, a: Interval) -> Interval:
    return Interval(np.floor(a.low), np.ceil(a.high), a.nan)


@rule("max")
def _max(equation: Any, a: Interval, b: Interval) -> Interval:
    return Interval(np.maximum(a.low, b.low), np.maximum(a.high, b.high), a.nan or b.nan)


@rule("min")
def _min(equation: Any, a: Interval, b: Interval) -> Interval:
    return Interval(np.minimum(a.low, b.low), np.minimum(a.high, b.high), a.nan or b.nan)


@rule("clamp")
def _clamp(equation: Any, low: Interval, a: Interval, high: Interval) -> Interval:
    return _min(equation, _max(equation, a, low), high)
