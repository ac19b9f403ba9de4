"""Branches and loops."""

from typing import Any

import numpy as np

from rlx.contracts import _interval as iv
from rlx.contracts._interval import Interval, Unsupported

from ._walk import bounds, rule

_LONGEST_SCAN = 512


@rule("cond")
def _cond(equation: Any, which: Interval, *sources: Interval) -> list[Interval]:
    branches = [bounds(branch, sources) for branch in equation.params["branches"]]
    return [iv.hull(*parts) for parts in zip(*branches, strict=True)]


@rule("scan")
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
