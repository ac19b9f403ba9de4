"""The range of a jaxpr's outputs by interval arithmetic, one rule a primitive."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from . import _interval as iv
from ._canonical import body_of
from ._interval import Interval, Unsupported

Rule = Callable[..., Any]
_LARGEST = 20_000_000
_LONGEST_SCAN = 512
_RULES: dict[str, Rule] = {}


def bounds(closed: ClosedJaxpr, inputs: Sequence[Interval]) -> list[Interval]:
    """Intervals that hold every output, for every input inside its interval.

    Raises:
      Unsupported: a primitive has no rule; names it.
    """
    return _run(closed.jaxpr, [iv.point(const) for const in closed.consts], inputs)


def _run(jaxpr: Jaxpr, consts: Sequence[Interval], inputs: Sequence[Interval]) -> list[Interval]:
    known: dict[Any, Interval] = dict(zip(jaxpr.constvars, consts, strict=True))
    known |= dict(zip(jaxpr.invars, inputs, strict=True))

    def read(atom: Any) -> Interval:
        if isinstance(atom, Literal):
            aval: Any = atom.aval
            return iv.point(np.asarray(atom.val, aval.dtype))
        return known[atom]

    for equation in jaxpr.eqns:
        sources = [read(atom) for atom in equation.invars]
        body, name = body_of(equation), equation.primitive.name
        if body is not None:
            results = bounds(body, sources[len(sources) - len(body.jaxpr.invars) :])
        elif name in _RULES:
            out = _RULES[name](equation, *sources)
            results = out if isinstance(out, list) else [out]
        else:
            raise Unsupported(f"primitive {name!r}")
        known |= dict(zip(equation.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _rule(*names: str) -> Callable[[Rule], Rule]:
    def register(rule: Rule) -> Rule:
        _RULES.update(dict.fromkeys(names, rule))
        return rule

    return register


def _dtype(equation: Any) -> np.dtype:
    return np.dtype(equation.outvars[0].aval.dtype)


def _shape(equation: Any) -> tuple[int, ...]:
    return equation.outvars[0].aval.shape


# arithmetic


@_rule("add", "add_any")
def _add(equation: Any, a: Interval, b: Interval) -> Interval:
    return iv.add(a, b, _dtype(equation))


@_rule("sub")
def _sub(equation: Any, a: Interval, b: Interval) -> Interval:
    return iv.add(a, iv.negate(b), _dtype(equation))


@_rule("neg")
def _neg(equation: Any, a: Interval) -> Interval:
    if not iv.is_float(_dtype(equation)):
        return iv.settle(-a.high, -a.low, _dtype(equation))
    return iv.negate(a)


@_rule("mul")
def _mul(equation: Any, a: Interval, b: Interval) -> Interval:
    if equation.invars[0] is equation.invars[1]:
        return iv.square(a, _dtype(equation))
    return iv.multiply(a, b, _dtype(equation))


@_rule("square")
def _square(equation: Any, a: Interval) -> Interval:
    return iv.square(a, _dtype(equation))


@_rule("div")
def _div(equation: Any, a: Interval, b: Interval) -> Interval:
    return iv.divide(a, b, _dtype(equation))


@_rule("integer_pow")
def _integer_pow(equation: Any, a: Interval) -> Interval:
    power, dtype = equation.params["y"], _dtype(equation)
    a = iv.loosen(a, dtype)
    if power < 1 or not iv.is_float(dtype):
        raise Unsupported(f"integer_pow with exponent {power} of {dtype}")
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


@_rule("abs")
def _abs(equation: Any, a: Interval) -> Interval:
    low = np.where((a.low <= 0) & (a.high >= 0), 0.0, np.minimum(np.abs(a.low), np.abs(a.high)))
    return iv.settle(low, a.size, _dtype(equation), nan=a.nan)


@_rule("sign")
def _sign(equation: Any, a: Interval) -> Interval:
    return Interval(np.sign(a.low), np.sign(a.high), a.nan)


@_rule("floor")
def _floor(equation: Any, a: Interval) -> Interval:
    return Interval(np.floor(a.low), np.floor(a.high), a.nan)


@_rule("ceil")
def _ceil(equation: Any, a: Interval) -> Interval:
    return Interval(np.ceil(a.low), np.ceil(a.high), a.nan)


@_rule("round")
def _round(equation: Any, a: Interval) -> Interval:
    return Interval(np.floor(a.low), np.ceil(a.high), a.nan)


@_rule("max")
def _max(equation: Any, a: Interval, b: Interval) -> Interval:
    return Interval(np.maximum(a.low, b.low), np.maximum(a.high, b.high), a.nan or b.nan)


@_rule("min")
def _min(equation: Any, a: Interval, b: Interval) -> Interval:
    return Interval(np.minimum(a.low, b.low), np.minimum(a.high, b.high), a.nan or b.nan)


@_rule("clamp")
def _clamp(equation: Any, low: Interval, a: Interval, high: Interval) -> Interval:
    return _min(equation, _max(equation, a, low), high)


# elementary functions: monotone, a few units in the last place, exact at 0 or 1, inside their mathematical range


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
            out = iv.settle(low, high, _dtype(equation), exact=False, nan=a.nan, ulps=ulps)
        low, high = (
            np.where(np.isin(a.low, exact_at), low, out.low),
            np.where(np.isin(a.high, exact_at), high, out.high),
        )
        return Interval(np.clip(low, least, most), np.clip(high, least, most), out.nan)

    _RULES[name] = rule


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


@_rule("rsqrt")
def _rsqrt(equation: Any, a: Interval) -> Interval:
    with np.errstate(all="ignore"):
        low, high = 1.0 / np.sqrt(a.high), np.where(a.low == 0, np.inf, 1.0 / np.sqrt(a.low))
    return iv.settle(low, high, _dtype(equation), exact=False, nan=a.nan, ulps=8.0)


@_rule("sin", "cos")
def _wave(equation: Any, a: Interval) -> Interval:
    return Interval(np.full(a.shape, -1.0), np.full(a.shape, 1.0), a.nan or a.unbounded)


# comparisons, logic, choice


def _truth(never: np.ndarray, always: np.ndarray) -> Interval:
    return Interval(np.where(always, 1.0, 0.0), np.where(never, 0.0, 1.0))


@_rule("lt", "le", "gt", "ge")
def _compare(equation: Any, a: Interval, b: Interval) -> Interval:
    name = equation.primitive.name
    if name in ("gt", "ge"):
        a, b = b, a
    strict = name in ("lt", "gt")
    always = a.high < b.low if strict else a.high <= b.low
    never = a.low >= b.high if strict else a.low > b.high
    return _truth(never, always & (not (a.nan or b.nan)))


@_rule("eq")
def _eq(equation: Any, a: Interval, b: Interval) -> Interval:
    same = (a.low == a.high) & (b.low == b.high) & (a.low == b.low)
    return _truth((a.high < b.low) | (b.high < a.low), same & (not (a.nan or b.nan)))


@_rule("ne")
def _ne(equation: Any, a: Interval, b: Interval) -> Interval:
    equal = _eq(equation, a, b)
    return Interval(1.0 - equal.high, 1.0 - equal.low)


@_rule("is_finite")
def _is_finite(equation: Any, a: Interval) -> Interval:
    return Interval(np.zeros(a.shape) if a.nan or a.unbounded else np.ones(a.shape), np.ones(a.shape))


@_rule("and", "or", "xor", "not")
def _logic(equation: Any, *parts: Interval) -> Interval:
    name, dtype = equation.primitive.name, _dtype(equation)
    if dtype != np.bool_:
        return iv.everything(_shape(equation), dtype)
    if name == "not":
        return Interval(1.0 - parts[0].high, 1.0 - parts[0].low)
    a, b = parts
    if name == "and":
        return Interval(np.minimum(a.low, b.low), np.minimum(a.high, b.high))
    if name == "or":
        return Interval(np.maximum(a.low, b.low), np.maximum(a.high, b.high))
    known = (a.low == a.high) & (b.low == b.high)
    return Interval(np.where(known, np.abs(a.low - b.low), 0.0), np.where(known, np.abs(a.low - b.low), 1.0))


@_rule("select_n")
def _select_n(equation: Any, which: Interval, *cases: Interval) -> Interval:
    low, high = np.full(_shape(equation), np.inf), np.full(_shape(equation), -np.inf)
    nan, quotient = False, any(case.quotient for case in cases)
    for index, case in enumerate(cases):
        possible = np.broadcast_to((which.low <= index) & (index <= which.high), low.shape)
        low = np.where(possible, np.minimum(low, case.low), low)
        high = np.where(possible, np.maximum(high, case.high), high)
        nan = nan or (case.nan and bool(np.any(possible)))
    return Interval(low, high, nan, quotient)


@_rule("rem")
def _rem(equation: Any, a: Interval, b: Interval) -> Interval:
    if iv.is_float(_dtype(equation)) or b.holds(0.0):
        raise Unsupported("remainder of floats or by a divisor that may be 0")
    most = np.minimum(b.size - 1.0, a.size)
    return Interval(np.where(a.low < 0, -most, 0.0), np.where(a.high > 0, most, 0.0))


@_rule("convert_element_type")
def _convert(equation: Any, a: Interval) -> Interval:
    source, target = np.dtype(equation.invars[0].aval.dtype), _dtype(equation)
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


@_rule("stop_gradient", "copy", "copy_p", "optimization_barrier")
def _same(equation: Any, *parts: Interval) -> list[Interval]:
    return list(parts)


# reductions


@_rule("reduce_sum")
def _reduce_sum(equation: Any, a: Interval) -> Interval:
    return iv.total(a, tuple(equation.params["axes"]), _dtype(equation))


def _empty(equation: Any, a: Interval) -> None:
    if 0 in a.shape:
        raise Unsupported(f"{equation.primitive.name} of an empty array")


@_rule("reduce_max", "reduce_or")
def _reduce_max(equation: Any, a: Interval) -> Interval:
    _empty(equation, a)
    axes = tuple(equation.params["axes"])
    return Interval(np.max(a.low, axis=axes), np.max(a.high, axis=axes), a.nan)


@_rule("reduce_min", "reduce_and")
def _reduce_min(equation: Any, a: Interval) -> Interval:
    _empty(equation, a)
    axes = tuple(equation.params["axes"])
    return Interval(np.min(a.low, axis=axes), np.min(a.high, axis=axes), a.nan)


@_rule("argmax", "argmin")
def _argmax(equation: Any, a: Interval) -> Interval:
    _empty(equation, a)
    (axis,) = equation.params["axes"]
    return Interval(np.zeros(_shape(equation)), np.full(_shape(equation), a.shape[axis] - 1.0))


@_rule("cumsum")
def _cumsum(equation: Any, a: Interval) -> Interval:
    axis, reverse = equation.params["axis"], equation.params["reverse"]
    columns = [
        iv.total(Interval(np.take(a.low, kept, axis), np.take(a.high, kept, axis), a.nan), (axis,), _dtype(equation))
        for kept in (range(i, a.shape[axis]) if reverse else range(i + 1) for i in range(a.shape[axis]))
    ]
    low, high = np.stack([c.low for c in columns], axis), np.stack([c.high for c in columns], axis)
    return Interval(low, high, any(c.nan for c in columns))


@_rule("cummax", "cummin")
def _cumulative(equation: Any, a: Interval) -> Interval:
    axis, reverse = equation.params["axis"], equation.params["reverse"]
    step = np.maximum if equation.primitive.name == "cummax" else np.minimum

    def run(x: np.ndarray) -> np.ndarray:
        x = np.flip(x, axis) if reverse else x
        x = step.accumulate(x, axis=axis)
        return np.flip(x, axis) if reverse else x

    return Interval(run(a.low), run(a.high), a.nan)


@_rule("sort")
def _sort(equation: Any, *parts: Interval) -> list[Interval]:
    axis, results = equation.params["dimension"], []
    for part in parts:
        low = np.broadcast_to(np.min(part.low, axis=axis, keepdims=True), part.shape)
        high = np.broadcast_to(np.max(part.high, axis=axis, keepdims=True), part.shape)
        results.append(Interval(low, high, part.nan))
    if len(parts) == 1:  # order statistics of the bounds are bounds of the order statistics
        results = [Interval(np.sort(parts[0].low, axis=axis), np.sort(parts[0].high, axis=axis), parts[0].nan)]
    return results


@_rule("dot_general")
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
    return iv.product_sum(left, right, tuple(range(rank - count, rank)), _dtype(equation))


# shapes


def _shaped(*names: str) -> Callable[[Callable[..., np.ndarray]], None]:
    def register(move: Callable[..., np.ndarray]) -> None:
        def rule(equation: Any, *parts: Interval) -> Interval:
            low = move(equation, *(part.low for part in parts))
            high = move(equation, *(part.high for part in parts))
            return Interval(low, high, any(part.nan for part in parts), any(part.quotient for part in parts))

        _RULES.update(dict.fromkeys(names, rule))

    return register


@_shaped("reshape", "squeeze", "expand_dims")
def _reshape(equation: Any, x: np.ndarray) -> np.ndarray:
    if equation.params.get("dimensions") is not None and equation.primitive.name == "reshape":
        raise Unsupported("reshape with dimensions")
    return np.reshape(x, _shape(equation))


@_shaped("broadcast_in_dim")
def _broadcast(equation: Any, x: np.ndarray) -> np.ndarray:
    shape = [1] * len(_shape(equation))
    for ours, theirs in enumerate(equation.params["broadcast_dimensions"]):
        shape[theirs] = x.shape[ours]
    return np.broadcast_to(np.reshape(x, shape), _shape(equation))


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


@_rule("iota")
def _iota(equation: Any) -> Interval:
    dimension, shape = equation.params["dimension"], _shape(equation)
    line = np.arange(shape[dimension], dtype=np.float64)
    values = np.broadcast_to(line.reshape([-1 if i == dimension else 1 for i in range(len(shape))]), shape)
    return Interval(values, values)


def _anywhere(equation: Any, *parts: Interval) -> Interval:
    """Any element of any of the arrays, at any place."""
    low, high = min(float(np.min(p.low)) for p in parts), max(float(np.max(p.high)) for p in parts)
    nan, quotient = any(p.nan for p in parts), any(p.quotient for p in parts)
    return Interval(np.full(_shape(equation), low), np.full(_shape(equation), high), nan, quotient)


@_rule("gather")
def _gather(equation: Any, operand: Interval, indices: Interval) -> Interval:
    _empty(equation, operand)
    mode, dtype = equation.params["mode"], _dtype(equation)
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


@_rule("dynamic_slice")
def _dynamic_slice(equation: Any, operand: Interval, *starts: Interval) -> Interval:
    _empty(equation, operand)
    return _anywhere(equation, operand)


@_rule("dynamic_update_slice")
def _dynamic_update_slice(equation: Any, operand: Interval, update: Interval, *starts: Interval) -> Interval:
    return _anywhere(equation, operand, update) if update.low.size else operand


# control


@_rule("cond")
def _cond(equation: Any, which: Interval, *sources: Interval) -> list[Interval]:
    branches = [bounds(branch, sources) for branch in equation.params["branches"]]
    return [iv.hull(*parts) for parts in zip(*branches, strict=True)]


@_rule("scan")
def _scan(equation: Any, *sources: Interval) -> list[Interval]:
    body, length = equation.params["jaxpr"], equation.params["length"]
    if length > _LONGEST_SCAN:
        raise Unsupported(f"a scan of {length} steps")
    stacked_out = [len(o.aval.shape) != len(i.shape) for o, i in zip(equation.outvars, body.out_avals, strict=True)]
    stacked_in = [len(o.aval.shape) != len(i.shape) for o, i in zip(equation.invars, body.in_avals, strict=True)]
    carried, given = stacked_out.count(False), stacked_in.count(False)
    consts, carry, xs = sources[: given - carried], list(sources[given - carried : given]), sources[given:]
    rows: list[list[Interval]] = [[] for _ in range(stacked_out.count(True))]
    steps = range(length)[::-1] if equation.params["reverse"] else range(length)
    for i in steps:
        out = bounds(body, [*consts, *carry, *(Interval(x.low[i], x.high[i], x.nan, x.quotient) for x in xs)])
        carry = out[:carried]
        for row, value in zip(rows, out[carried:], strict=True):
            row.append(value)
    stacked = []
    for row in rows:
        row = row[::-1] if equation.params["reverse"] else row
        low, high = np.stack([r.low for r in row]), np.stack([r.high for r in row])
        stacked.append(Interval(low, high, any(r.nan for r in row), any(r.quotient for r in row)))
    return [*carry, *stacked]
