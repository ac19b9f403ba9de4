"""Elementary functions: monotone, a few units in the last place, exact at 0 or 1, inside their mathematical range."""

from collections.abc import Callable
from typing import Any

import numpy as np

from rlx.contracts import _interval as iv
from rlx.contracts._interval import Interval

from ._walk import RULES, dtype_of, rule, shape_of

_REDUCED = 1e3  # sin and cos of larger float32 arguments: any value


def _monotone(
    name: str,
    fn: Callable[[np.ndarray], np.ndarray],
    least: float = -np.inf,
    most: float = np.inf,
    *,
    exact_at: tuple[float, ...] = (0.0,),
    ulps: float = 8.0,
) -> None:
    def rule(equation: Any, a: Interval) -> Interval:
        with np.errstate(all="ignore"):
            low, high = fn(a.low), fn(a.high)
            out = iv.settle(low, high, dtype_of(equation), exact=False, nan=a.nan, ulps=ulps)
        low, high = (
            np.where(np.isin(a.low, exact_at), low, out.low),
            np.where(np.isin(a.high, exact_at), high, out.high),
        )
        return Interval(np.clip(low, least, most), np.clip(high, least, most), out.nan)

    RULES[name] = rule


def _logistic(x: np.ndarray) -> np.ndarray:
    return np.where(x >= 0, 1.0 / (1.0 + np.exp(-np.abs(x))), np.exp(-np.abs(x)) / (1.0 + np.exp(-np.abs(x))))


def _erf(x: np.ndarray) -> np.ndarray:
    import scipy.special

    return scipy.special.erf(x)


_monotone("exp", np.exp, 0.0)
_monotone("exp2", np.exp2, 0.0)
_monotone("expm1", np.expm1, -1.0)
_monotone("tanh", np.tanh, -1.0, 1.0, ulps=16.0)
_monotone("logistic", _logistic, 0.0, 1.0, ulps=16.0)
_monotone("erf", _erf, -1.0, 1.0, ulps=16.0)
_monotone("log", np.log, exact_at=(1.0,))  # of a number below 0: NaN, which settle sees
_monotone("log1p", np.log1p)
_monotone("sqrt", np.sqrt, 0.0, exact_at=(0.0, 1.0))
_monotone("cbrt", np.cbrt)
_monotone("atan", np.arctan, -2.0, 2.0)
_monotone("sinh", np.sinh, ulps=32.0)
_monotone("asinh", np.arcsinh, ulps=32.0)
_monotone("asin", np.arcsin, -1.6, 1.6, ulps=32.0)  # outside [-1, 1]: NaN, which settle sees


@rule("rsqrt")
def _rsqrt(equation: Any, a: Interval) -> Interval:
    with np.errstate(all="ignore"):
        low, high = 1.0 / np.sqrt(a.high), np.where(a.low == 0, np.inf, 1.0 / np.sqrt(a.low))
    return iv.settle(low, high, dtype_of(equation), exact=False, nan=a.nan, ulps=8.0)


@rule("sin", "cos")
def _wave(equation: Any, a: Interval) -> Interval:
    """Exact where the argument is small enough to be reduced exactly: the ends, and 1 or -1 if a crest is inside."""
    shift = 0.0 if equation.primitive.name == "sin" else 0.5 * np.pi
    eps = float(np.finfo(np.float32).eps) if dtype_of(equation).itemsize >= 4 else 2.0**-7
    near = np.maximum(np.abs(a.low), np.abs(a.high)) <= _REDUCED
    low, high = (np.where(near, end, 0.0) + shift for end in (a.low, a.high))
    ends = np.stack([np.sin(low), np.sin(high)])
    slack = 8.0 * eps
    crest = np.floor((high + slack - 0.5 * np.pi) / (2 * np.pi)) >= np.ceil((low - slack - 0.5 * np.pi) / (2 * np.pi))
    trough = np.floor((high + slack + 0.5 * np.pi) / (2 * np.pi)) >= np.ceil((low - slack + 0.5 * np.pi) / (2 * np.pi))
    least = np.where(trough | ~near, -1.0, np.maximum(ends.min(0) - slack, -1.0))
    most = np.where(crest | ~near, 1.0, np.minimum(ends.max(0) + slack, 1.0))
    return Interval(least, most, a.nan or a.unbounded)


@rule("tan")
def _tan(equation: Any, a: Interval) -> Interval:
    """Monotone between its poles; close to one, or across, anything."""
    edge = 0.5 * np.pi - 0.05
    if np.any(a.low < -edge) or np.any(a.high > edge) or a.nan:
        return iv.everything(shape_of(equation), dtype_of(equation))
    return iv.settle(np.tan(a.low), np.tan(a.high), dtype_of(equation), exact=False, ulps=64.0)


@rule("pow")
def _pow(equation: Any, a: Interval, b: Interval) -> Interval:
    """`x ** y` of x >= 0, monotone in either argument: extremes are at corners."""
    dtype = dtype_of(equation)
    if np.any(a.low < 0) or not iv.is_float(dtype) or a.nan or b.nan or a.unbounded or b.unbounded:
        return iv.everything(shape_of(equation), dtype)
    with np.errstate(all="ignore"):
        corners = np.stack([np.power(x, y) for x in (a.low, a.high) for y in (b.low, b.high)])
        # an error of log x is multiplied by y
        ulps = 16.0 * float(1.0 + np.max(b.size) * np.max(np.abs(np.log(np.maximum([a.low, a.high], 1e-300)))))
    out = iv.settle(corners.min(0), corners.max(0), dtype, exact=False, ulps=min(ulps, 1e6))
    below_one = (a.high <= 1.0) & (b.low >= 0.0)
    return Interval(np.maximum(out.low, 0.0), np.where(below_one, 1.0, out.high), out.nan)


@rule("atan2")
def _atan2(equation: Any, a: Interval, b: Interval) -> Interval:
    turn = np.full(shape_of(equation), 3.1416)
    return Interval(-turn, turn, a.nan or b.nan)


@rule("erfc")
def _erfc(equation: Any, a: Interval) -> Interval:
    import scipy.special

    out = iv.settle(
        scipy.special.erfc(a.high), scipy.special.erfc(a.low), dtype_of(equation), exact=False, nan=a.nan, ulps=64.0
    )
    return Interval(np.clip(out.low, 0.0, 2.0), np.clip(out.high, 0.0, 2.0), out.nan)


@rule("cosh")
def _cosh(equation: Any, a: Interval) -> Interval:
    least = np.where((a.low <= 0) & (a.high >= 0), 0.0, np.minimum(np.abs(a.low), np.abs(a.high)))
    with np.errstate(over="ignore"):
        low, high = np.cosh(least), np.cosh(a.size)
    out = iv.settle(low, high, dtype_of(equation), exact=False, nan=a.nan, ulps=16.0)
    return Interval(np.maximum(out.low, 1.0 - 1e-6), out.high, out.nan)
