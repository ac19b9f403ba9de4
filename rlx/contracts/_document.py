"""A contract as plain JSON values, and back."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from . import aggregate as rules
from ._constraints import (
    Always,
    And,
    Chance,
    Constraint,
    CVaR,
    Event,
    Eventually,
    Expect,
    Formula,
    Not,
    Or,
    Until,
    name_of,
)
from ._contract import Contract, Example, all_terms
from ._terms import Term

FORMAT = "rlx.contract/2"
RULES = {
    name: rule
    for rule in vars(rules).values()
    if isinstance(rule, type) and isinstance(name := getattr(rule, "kind", None), str)
}


def document(contract: Contract) -> dict[str, Any]:
    """The contract as JSON values, numbers as they were given.

    Raises:
      ValueError: a term is a Python function, has learned parameters, or the aggregate is not one of rlx.
    """
    return {
        "format": FORMAT,
        "name": contract.name,
        "version": contract.version,
        "signals": {
            name: _without_defaults(
                s, {"dims": s.dims if isinstance(s.dims, str) else list(s.dims), "range": _ends(s.range)}
            )
            for name, s in contract.signals.items()
        },
        "terms": [_term_document(term) for term in all_terms(contract).values()],
        "stakeholders": [
            _without_defaults(
                s, {"utility": {n: _number(c) for n, c in s.utility.items()}, "weight": _number(s.weight)}
            )
            for s in contract.stakeholders
        ],
        "aggregate": _rule_document(contract.aggregate),
        "constraints": [constraint_document(c) for c in contract.constraints],
        "tests": [example_document(e) for e in contract.tests],
        "provenance": _plain(contract.provenance),
    }


def constraint_document(constraint: Constraint) -> dict[str, Any]:
    """A constraint as JSON values."""
    of = constraint.of
    match of:
        case Expect():
            said: dict[str, Any] = {"kind": "expect", "term": name_of(of.term)}
        case Chance():
            said = {"kind": "chance", "event": formula_document(of.event)}
        case CVaR():
            said = {"kind": "cvar", "term": name_of(of.term), "level": _number(of.level)}
            said |= {} if of.at is None else {"at": _number(of.at)}
        case _:
            said = {"kind": "formula", "holds": formula_document(of)}
    said |= {"relation": constraint.relation, "limit": _number(constraint.limit)}
    return said | {"multiplier": _number(constraint.multiplier)}


def formula_document(of: Formula) -> dict[str, Any]:
    """A formula as JSON values."""
    match of:
        case Event():
            return {"kind": "event", "term": name_of(of.term), "relation": of.relation, "value": _number(of.value)}
        case And() | Or():
            return {"kind": type(of).__name__.lower(), "parts": [formula_document(part) for part in of.parts]}
        case Not():
            return {"kind": "not", "of": formula_document(of.of)}
        case Always() | Eventually():
            return {
                "kind": type(of).__name__.lower(),
                "of": formula_document(of.of),
                "first": of.first,
                "last": of.last,
            }
        case Until():
            left, right = formula_document(of.left), formula_document(of.right)
            return {"kind": "until", "left": left, "right": right, "first": of.first, "last": of.last}
    raise TypeError(f"formula: {type(of).__name__} has no document")


def example_document(example: Example) -> dict[str, Any]:
    """An example as JSON values."""
    said: dict[str, Any] = {
        "name": example.name,
        "batch": {name: _plain(np.asarray(value).tolist()) for name, value in example.batch.items()},
    }
    if example.terms:
        said["terms"] = {name: _ends(ends) for name, ends in example.terms.items()}
    if example.total is not None:
        said["total"] = _ends(example.total)
    if example.ranking:
        said["ranking"] = list(example.ranking)
    if example.satisfied is not None:
        said["satisfied"] = list(example.satisfied)
    return said


def _term_document(term: Term) -> dict[str, Any]:
    if not isinstance(term.fn, str):
        raise ValueError(
            f"term {term.name!r}: its fn is a Python function, which a file cannot hold; "
            f"register it (rlx.contracts.register) and give Term the identifier"
        )
    if term.params is not None:
        raise ValueError(f"term {term.name!r}: it has learned parameters, which a contract file cannot hold")
    return _without_defaults(term, {"range": _ends(term.range), "options": _plain(term.options)}, drop=("params",))


def _rule_document(rule: Any) -> dict[str, Any]:
    kind = getattr(rule, "kind", None)
    if not isinstance(kind, str) or RULES.get(kind) is not type(rule):
        raise ValueError(f"aggregate: {type(rule).__name__} is not a rule of rlx.contracts.aggregate")
    return {"rule": kind, **{f.name: _plain(getattr(rule, f.name)) for f in dataclasses.fields(rule)}}


def _without_defaults(item: Any, values: Mapping[str, Any], drop: tuple[str, ...] = ()) -> dict[str, Any]:
    """The fields of a dataclass that say something, `values` in place of its own."""
    said = {}
    for f in dataclasses.fields(item):
        own = getattr(item, f.name)
        empty = f.default_factory is not dataclasses.MISSING and not own
        if f.name in drop or (f.default is not dataclasses.MISSING and own == f.default) or empty:
            continue
        said[f.name] = values.get(f.name, own)
    return said


def _number(value: Any) -> float | str:
    number = float(value)
    return number if np.isfinite(number) else str(number)


def _ends(ends: tuple[float, float] | None) -> list[float | str] | None:
    return None if ends is None else [_number(end) for end in ends]


def _plain(value: Any) -> Any:
    if isinstance(value, (bool, str, int)) or value is None:
        return value
    if isinstance(value, (float, np.floating)):
        return _number(value)
    if isinstance(value, (np.integer, np.bool_)):
        return value.item()
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    raise ValueError(f"{type(value).__name__} {value!r} is not JSON")
