"""Intervals: what values an array can take, rounding included."""

from dataclasses import dataclass
from typing import Any

import numpy as np

_GRIDS = (1.0, 1024.0)  # endpoints that are multiples of 1 or of 1/1024 may add up exactly


class Unsupported(Exception):
    """An operation that the interval arithmetic does not know; nothing is claimed."""


@dataclass(frozen=True, eq=False)
class Interval:
    """Elementwise bounds in float64.

    Attributes:
      low, high: both included.
      nan: whether any element may be NaN.
      quotient: whether this is a quotient as it is stored. x / c may be computed as x * (1 / c) and fused, unrounded,
        into the addition that follows: 1 - x / 41 is below 0 for x = 41 under jit. What uses it must `loosen` it.
    """

    low: np.ndarray
    high: np.ndarray
    nan: bool = False
    quotient: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the array that is bounded."""
        return self.low.shape

    @property
    def size(self) -> np.ndarray:
        """The largest magnitude, elementwise."""
        return np.maximum(np.abs(self.low), np.abs(self.high))

    @property
    def unbounded(self) -> bool:
        """Whether an infinity is possible."""
        return bool(np.any(np.isinf(self.low)) or np.any(np.isinf(self.high)))

    @property
    def is_point(self) -> bool:
        """Whether every element is known."""
        return not self.nan and bool(np.all(self.low == self.high))

    def holds(self, value: float) -> bool:
        """Whether some element may have this value."""
        return bool(np.any((self.low <= value) & (value <= self.high)))


def is_float(dtype: Any) -> bool:
    """Whether a dtype rounds (bfloat16 too)."""
    return _limits(dtype) is not None


def point(value: Any) -> Interval:
    """A known array."""
    array = np.asarray(value)
    if array.dtype.kind in "iu" and array.dtype.itemsize == 8 and np.any(np.abs(array.astype(np.float64)) > 2.0**53):
        raise Unsupported("64-bit integers beyond 2^53")
    if array.dtype.kind == "c" or (array.dtype.kind not in "biuf" and not is_float(array.dtype)):
        raise Unsupported(f"constants of dtype {array.dtype}")
    wide = array.astype(np.float64)
    nan = np.isnan(wide)
    return Interval(np.where(nan, -np.inf, wide), np.where(nan, np.inf, wide), bool(np.any(nan)))


def everything(shape: tuple[int, ...], dtype: Any, *, nan: bool | None = None) -> Interval:
    """All values of a dtype; for floating dtypes infinities and NaN too."""
    low, high = dtype_range(dtype)
    return Interval(np.full(shape, low), np.full(shape, high), is_float(dtype) if nan is None else nan)


def dtype_range(dtype: Any) -> tuple[float, float]:
    """The lowest and highest value of a dtype."""
    dtype = np.dtype(dtype)
    if dtype == np.bool_:
        return 0.0, 1.0
    if is_float(dtype):
        return -np.inf, np.inf
    if dtype.kind in "iu":
        return float(np.iinfo(dtype).min), float(np.iinfo(dtype).max)
    raise Unsupported(f"dtype {dtype}")


def settle(low: Any, high: Any, dtype: Any, *, exact: Any = True, nan: bool = False, ulps: float = 1.0) -> Interval:
    """Bounds of a result that was rounded to `dtype`.

    A bound that is exact and that the dtype can hold stays as it is, since rounding is monotone; any other moves
    outward by `ulps` units in the last place. Integers that leave their dtype may wrap to anything. Numbers too
    small for a normal float may be flushed to 0.
    """
    low, high = np.asarray(low, np.float64), np.asarray(high, np.float64)
    nan = nan or bool(np.any(np.isnan(low)) or np.any(np.isnan(high)))
    low, high = np.where(np.isnan(low), -np.inf, low), np.where(np.isnan(high), np.inf, high)
    limits = _limits(dtype)
    if limits is None:
        lowest, highest = dtype_range(dtype)
        if np.any(low < lowest) or np.any(high > highest):
            return everything(low.shape, dtype)
        return Interval(low, high, nan)
    eps, tiny, top = limits
    with np.errstate(over="ignore", invalid="ignore"):
        held_low = exact & (low.astype(dtype).astype(np.float64) == low)
        held_high = exact & (high.astype(dtype).astype(np.float64) == high)
        low = np.where(held_low | np.isinf(low), low, low - ulps * (eps * np.abs(low) + tiny * eps))
        high = np.where(held_high | np.isinf(high), high, high + ulps * (eps * np.abs(high) + tiny * eps))
    low = np.where((low > 0) & (low < tiny), 0.0, low)
    high = np.where((high < 0) & (high > -tiny), 0.0, high)
    low = np.where(low > top, top, np.where(low < -top, -np.inf, low))
    high = np.where(high < -top, -top, np.where(high > top, np.inf, high))
    return Interval(low, high, nan)


def loosen(a: Interval, dtype: Any) -> Interval:
    """The values before a quotient was rounded; anything else as it is."""
    return settle(a.low, a.high, dtype, exact=False, nan=a.nan, ulps=3.0) if a.quotient else a


def add(a: Interval, b: Interval, dtype: Any) -> Interval:
    """a + b."""
    a, b = loosen(a, dtype), loosen(b, dtype)
    with np.errstate(invalid="ignore"):
        low, high = a.low + b.low, a.high + b.high
        exact = _sum_is_exact(a.low, b.low, low) & _sum_is_exact(a.high, b.high, high)
        clash = (np.isneginf(a.low) & np.isposinf(b.high)) | (np.isposinf(a.high) & np.isneginf(b.low))
    return settle(low, high, dtype, exact=exact, nan=a.nan or b.nan or bool(np.any(clash)))


def negate(a: Interval) -> Interval:
    """-a."""
    return Interval(-a.high, -a.low, a.nan, a.quotient)


def multiply(a: Interval, b: Interval, dtype: Any) -> Interval:
    """a * b, of independent values."""
    a, b = loosen(a, dtype), loosen(b, dtype)
    low, high = _products(a, b)
    endless = np.isinf(a.size) & (b.low <= 0) & (b.high >= 0) | np.isinf(b.size) & (a.low <= 0) & (a.high >= 0)
    nan = a.nan or b.nan or (is_float(dtype) and bool(np.any(endless)))
    return settle(low, high, dtype, exact=np.dtype(dtype) != np.float64, nan=nan)


def square(a: Interval, dtype: Any) -> Interval:
    """a * a: never negative."""
    a = loosen(a, dtype)
    crosses = (a.low <= 0) & (a.high >= 0)
    small = np.where(crosses, 0.0, np.minimum(np.abs(a.low), np.abs(a.high)))
    return settle(small**2, a.size**2, dtype, exact=np.dtype(dtype) != np.float64, nan=a.nan)


def divide(a: Interval, b: Interval, dtype: Any) -> Interval:
    """a / b in floating point; a divisor that may be 0 gives anything."""
    if not is_float(dtype):
        raise Unsupported("integer division")
    a, b = loosen(a, dtype), loosen(b, dtype)
    nan = a.nan or b.nan or bool(np.any(np.isinf(a.size) & np.isinf(b.size)))
    zero = (b.low <= 0) & (b.high >= 0)
    nan = nan or bool(np.any(zero & (a.low <= 0) & (a.high >= 0)))
    low_b, high_b = np.where(zero, 1.0, b.low), np.where(zero, 1.0, b.high)
    with np.errstate(invalid="ignore", divide="ignore"):
        quotients = np.stack(np.broadcast_arrays(a.low / low_b, a.low / high_b, a.high / low_b, a.high / high_b))
    nan = nan or bool(np.any(np.isnan(quotients)))
    quotients = np.where(np.isnan(quotients), 0.0, quotients)
    low, high = np.min(quotients, axis=0), np.max(quotients, axis=0)
    if b.is_point and np.all(_is_power_of_two(b.low)):
        return settle(low, high, dtype, exact=np.dtype(dtype) != np.float64, nan=nan)
    # x / c may be computed as x * (1 / c): two roundings, which cannot pass a power of two outward
    kept_low = (low == 0) | (low < 0) & _is_power_of_two(low)
    kept_high = (high == 0) | (high > 0) & _is_power_of_two(high)
    bounds = settle(low, high, dtype, exact=False, nan=nan, ulps=3.0)
    low = np.where(zero, -np.inf, np.where(kept_low, low, bounds.low))
    high = np.where(zero, np.inf, np.where(kept_high, high, bounds.high))
    return Interval(low, high, bounds.nan, quotient=True)


def total(a: Interval, axes: tuple[int, ...], dtype: Any) -> Interval:
    """The sum over axes, in any order.

    Float addition is monotone, so where the endpoints add up exactly in every order, the sums of the endpoints are
    bounds as they are; elsewhere they move outward by n units of the largest possible sum.
    """
    a = loosen(a, dtype)
    terms = int(np.prod([a.shape[axis] for axis in axes], dtype=np.int64))
    low, high = np.sum(a.low, axis=axes), np.sum(a.high, axis=axes)
    both = bool(np.any(np.any(np.isneginf(a.low), axis=axes) & np.any(np.isposinf(a.high), axis=axes)))
    limits = _limits(dtype)
    if limits is None:
        return settle(low, high, dtype, nan=a.nan)
    eps = limits[0]
    size = np.sum(a.size, axis=axes)
    exact_low, exact_high = _adds_exactly(a.low, axes, eps), _adds_exactly(a.high, axes, eps)
    with np.errstate(invalid="ignore"):
        slack = np.where(np.isinf(size), 0.0, 2.0 * terms * eps * size)
        low, high = np.where(exact_low, low, low - slack), np.where(exact_high, high, high + slack)
    out = settle(low, high, dtype, exact=exact_low & exact_high, nan=a.nan or both)
    # what is not negative never adds up to less than 0, in any order
    positive, negative = np.all(a.low >= 0, axis=axes), np.all(a.high <= 0, axis=axes)
    return Interval(
        np.where(positive, np.maximum(out.low, 0.0), out.low),
        np.where(negative, np.minimum(out.high, 0.0), out.high),
        out.nan,
    )


def product_sum(a: Interval, b: Interval, axes: tuple[int, ...], dtype: Any) -> Interval:
    """The sum over axes of a * b, as a matrix product computes it: products are not rounded before they are added."""
    a, b = loosen(a, dtype), loosen(b, dtype)
    low, high = _products(a, b)
    nan = a.nan or b.nan or (a.unbounded and b.holds(0.0)) or (b.unbounded and a.holds(0.0))
    return total(Interval(low, high, nan), axes, dtype)


def hull(*parts: Interval) -> Interval:
    """The smallest interval around all."""
    low = np.minimum.reduce([part.low for part in parts])
    high = np.maximum.reduce([part.high for part in parts])
    return Interval(low, high, any(part.nan for part in parts), any(part.quotient for part in parts))


def _products(a: Interval, b: Interval) -> tuple[np.ndarray, np.ndarray]:
    with np.errstate(invalid="ignore"):
        products = np.stack(np.broadcast_arrays(a.low * b.low, a.low * b.high, a.high * b.low, a.high * b.high))
    products = np.where(np.isnan(products), 0.0, products)  # 0 * inf as a bound
    return np.min(products, axis=0), np.max(products, axis=0)


def _limits(dtype: Any) -> tuple[float, float, float] | None:
    """eps, the smallest normal and the largest number of a floating dtype; None for any other."""
    import ml_dtypes

    if np.dtype(dtype).kind == "c":
        raise Unsupported("complex numbers")
    try:
        info = ml_dtypes.finfo(np.dtype(dtype))
    except ValueError:
        return None
    return float(info.eps), float(info.smallest_normal), float(info.max)


def _sum_is_exact(a: np.ndarray, b: np.ndarray, s: np.ndarray) -> np.ndarray:
    """Knuth's two-sum: whether a + b was not rounded in float64."""
    part = s - a
    return (a - (s - part)) + (b - part) == 0


def _adds_exactly(x: np.ndarray, axes: tuple[int, ...], eps: float) -> np.ndarray:
    """Whether x sums over axes without rounding in any order: all on one grid, with few enough grid steps."""
    exact = np.zeros_like(np.sum(x, axis=axes), bool)
    with np.errstate(invalid="ignore"):
        for grid in _GRIDS:
            steps = np.abs(x) * grid
            exact |= np.all(steps == np.round(steps), axis=axes) & (np.sum(steps, axis=axes) <= 2.0 / eps)
    return exact


def _is_power_of_two(x: np.ndarray) -> np.ndarray:
    mantissa, _ = np.frexp(x)
    return np.abs(mantissa) == 0.5
