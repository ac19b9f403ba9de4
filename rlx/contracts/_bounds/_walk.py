"""The range of a jaxpr's outputs by interval arithmetic, one rule a primitive: the registry and the walk."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from rlx.contracts import _interval as iv
from rlx.contracts._canonical import body_of
from rlx.contracts._interval import Interval, Unsupported

Rule = Callable[..., Any]
RULES: dict[str, Rule] = {}


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
        elif name in RULES:
            out = RULES[name](equation, *sources)
            results = out if isinstance(out, list) else [out]
        else:
            raise Unsupported(f"primitive {name!r}")
        known |= dict(zip(equation.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a rule: `rule(equation, *intervals)` gives the interval, or intervals, of the outputs."""

    def register(rule: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, rule))
        return rule

    return register


def dtype_of(equation: Any) -> np.dtype:
    """The dtype of the first output."""
    return np.dtype(equation.outvars[0].aval.dtype)


def shape_of(equation: Any) -> tuple[int, ...]:
    """The shape of the first output."""
    return equation.outvars[0].aval.shape


def not_empty(equation: Any, a: Interval) -> None:
    """Refuse an array without elements.

    Raises:
      Unsupported: it has none.
    """
    if 0 in a.shape:
        raise Unsupported(f"{equation.primitive.name} of an empty array")
