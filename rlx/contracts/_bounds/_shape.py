"""What only moves values: shapes, slices, gathers."""

from collections.abc import Callable
from typing import Any

import numpy as np

from rlx.contracts import _interval as iv
from rlx.contracts._interval import Interval, Unsupported

from ._walk import RULES, dtype_of, not_empty, rule, shape_of


def _shaped(*names: str) -> Callable[[Callable[..., np.ndarray]], None]:
    def register(move: Callable[..., np.ndarray]) -> None:
        def rule(equation: Any, *parts: Interval) -> Interval:
            low = move(equation, *(part.low for part in parts))
            high = move(equation, *(part.high for part in parts))
            return Interval(low, high, any(part.nan for part in parts), any(part.quotient for part in parts))

        RULES.update(dict.fromkeys(names, rule))

    return register


@_shaped("reshape", "squeeze", "expand_dims")
def _reshape(equation: Any, x: np.ndarray) -> np.ndarray:
    if equation.params.get("dimensions") is not None and equation.primitive.name == "reshape":
        raise Unsupported("reshape with dimensions")
    return np.reshape(x, shape_of(equation))


@_shaped("broadcast_in_dim")
def _broadcast(equation: Any, x: np.ndarray) -> np.ndarray:
    shape = [1] * len(shape_of(equation))
    for ours, theirs in enumerate(equation.params["broadcast_dimensions"]):
        shape[theirs] = x.shape[ours]
    return np.broadcast_to(np.reshape(x, shape), shape_of(equation))


@_shaped("transpose")
def _transpose(equation: Any, x: np.ndarray) -> np.ndarray:
    return np.transpose(x, equation.params["permutation"])


@_shaped("rev")
def _rev(equation: Any, x: np.ndarray) -> np.ndarray:
    return np.flip(x, equation.params["dimensions"])


@_shaped("slice")
def _slice(equation: Any, x: np.ndarray) -> np.ndarray:
    p = equation.params
    strides = p["strides"] or (1,) * x.ndim
    return x[tuple(slice(*ends) for ends in zip(p["start_indices"], p["limit_indices"], strides, strict=True))]


@_shaped("concatenate")
def _concatenate(equation: Any, *parts: np.ndarray) -> np.ndarray:
    return np.concatenate(parts, equation.params["dimension"])


@_shaped("pad")
def _pad(equation: Any, x: np.ndarray, fill: np.ndarray) -> np.ndarray:
    config = equation.params["padding_config"]
    if any(inner or before < 0 or after < 0 for before, after, inner in config):
        raise Unsupported("pad with holes or cuts")
    return np.pad(x, [(before, after) for before, after, _ in config], constant_values=float(fill))


@rule("iota")
def _iota(equation: Any) -> Interval:
    dimension, shape = equation.params["dimension"], shape_of(equation)
    line = np.arange(shape[dimension], dtype=np.float64)
    values = np.broadcast_to(line.reshape([-1 if i == dimension else 1 for i in range(len(shape))]), shape)
    return Interval(values, values)


def _anywhere(equation: Any, *parts: Interval) -> Interval:
    """Any element of any of the arrays, at any place."""
    low, high = min(float(np.min(p.low)) for p in parts), max(float(np.max(p.high)) for p in parts)
    nan, quotient = any(p.nan for p in parts), any(p.quotient for p in parts)
    return Interval(np.full(shape_of(equation), low), np.full(shape_of(equation), high), nan, quotient)


@rule("gather")
def _gather(equation: Any, operand: Interval, indices: Interval) -> Interval:
    not_empty(equation, operand)
    mode, dtype = equation.params["mode"], dtype_of(equation)
    if getattr(mode, "name", str(mode)) in ("CLIP", "PROMISE_IN_BOUNDS"):
        return _anywhere(equation, operand)
    inside = _gather_is_inside(equation, operand, indices)
    if inside:
        return _anywhere(equation, operand)
    fill = equation.params["fill_value"]
    if fill is not None:
        return _anywhere(equation, operand, iv.point(np.asarray(fill, dtype)))
    if iv.is_float(dtype):
        found = _anywhere(equation, operand)
        return Interval(found.low, found.high, True, found.quotient)
    low, high = iv.dtype_range(dtype)
    return _anywhere(equation, operand, iv.point(low if np.dtype(dtype).kind == "i" else high))


def _gather_is_inside(equation: Any, operand: Interval, indices: Interval) -> bool:
    starts, sizes = equation.params["dimension_numbers"].start_index_map, equation.params["slice_sizes"]
    room = np.array([operand.shape[dim] - sizes[dim] for dim in starts], np.float64)
    return bool(np.all(indices.low >= 0) and np.all(indices.high <= room))


@rule("dynamic_slice")
def _dynamic_slice(equation: Any, operand: Interval, *starts: Interval) -> Interval:
    not_empty(equation, operand)
    return _anywhere(equation, operand)


@rule("dynamic_update_slice")
def _dynamic_update_slice(equation: Any, operand: Interval, update: Interval, *starts: Interval) -> Interval:
    return _anywhere(equation, operand, update) if update.low.size else operand


@rule("split")
def _split(equation: Any, a: Interval) -> list[Interval]:
    axis, ends = equation.params["axis"], np.cumsum(equation.params["sizes"])[:-1]
    lows, highs = np.split(a.low, ends, axis), np.split(a.high, ends, axis)
    return [Interval(low, high, a.nan, a.quotient) for low, high in zip(lows, highs, strict=True)]
