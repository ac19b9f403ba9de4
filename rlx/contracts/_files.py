"""A contract from a file that nobody has to trust: TOML or JSON, every refusal with its path in the document."""

import dataclasses
import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar

import msgspec
import numpy as np

from . import _schema as schema
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
)
from ._contract import Contract, Example, Stakeholder, naming_problems, number_problems
from ._document import RULES, document
from ._parse import LARGEST_FILE, plain_values
from ._terms import Signal, Term
from ._trace import signal_spec
from .aggregate import Aggregate, WeightedSum

_LARGEST_SIGNAL = 1 << 27  # elements, traced with B=4, T=32

_Any = TypeVar("_Any")


def dumps(contract: Contract) -> str:
    """A contract as JSON text that `loads` reads back to the same digest.

    Args:
      contract: its terms must be registered functions, since a file holds no code.

    Raises:
      ValueError: a term is a Python function, has learned parameters, or the aggregate is not one of rlx.

    Example:
      >>> from rlx.contracts import Contract, Stakeholder, Term, digest
      >>> short = Term("short", "rlx.length_share@1")
      >>> contract = Contract("brief", terms=(short,), stakeholders=(Stakeholder("me", {"short": -1.0}),))
      >>> digest(loads(dumps(contract))) == digest(contract)
      True
    """
    return json.dumps(document(contract), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def loads(text: str | bytes, *, format: Literal["json", "toml"] = "json") -> Contract:
    """A contract from text; nothing in it is executed, and its terms are functions registered here.

    Args:
      text: JSON or TOML, UTF-8, at most 1 MiB.
      format: which of the two.

    Returns:
      A contract that `compile` takes.

    Raises:
      ValueError: with the path in the document: bad syntax, an unknown or doubled field, a wrong type, a number that is
        not finite, nesting deeper than 64, a signal of more than 2^27 elements, a name that is not one, a term that
        is not registered, or what `compile` would refuse.

    Example:
      >>> loads('{"format": "rlx.contract/2", "name": "../x", "stakeholders": []}')
      Traceback (most recent call last):
      ValueError: $.name: expected `str` matching regex '^[A-Za-z0-9][A-Za-z0-9._ -]{0,127}$'
    """
    tree = plain_values(text, format)
    try:
        parsed = msgspec.convert(tree, schema.Contract)
    except msgspec.ValidationError as error:
        message, _, path = str(error).partition(" - at ")
        path = path.removeprefix("`key` in ").removeprefix("key in ").strip("`") or "$"
        unknown = re.fullmatch("Object contains unknown field `(.*)`", message)
        path = f"{path}.{unknown[1]}" if unknown else path
        raise ValueError(f"{path}: {message[:1].lower() + message[1:]}") from error
    return _contract(parsed)


def load(path: str | Path) -> Contract:
    """The contract in a `.json` or `.toml` file; see `loads`.

    Raises:
      ValueError: see `loads`; the file's name is in the message.
      OSError: it cannot be read.
    """
    path = Path(path)
    if path.suffix not in (".json", ".toml"):
        raise ValueError(f"{path}: expected a file name that ends in .json or .toml")
    with path.open("rb") as file:
        raw = file.read(LARGEST_FILE + 1)
    try:
        return loads(raw, format="toml" if path.suffix == ".toml" else "json")
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


# plain values to a contract


def _contract(parsed: schema.Contract) -> Contract:
    signals = {}
    for name, signal in parsed.signals.items():
        path = f"$.signals.{name}"
        dims = signal.dims if isinstance(signal.dims, str) else tuple(signal.dims)
        made = _made(path, lambda s=signal, d=dims: Signal(d, s.dtype, _ends(s.range), s.unit))
        size = math.prod(signal_spec(made).shape)
        if size > _LARGEST_SIGNAL:
            _refuse(f"{path}.dims", f"{size:.3g} elements with B=4, T=32, more than {_LARGEST_SIGNAL}")
        signals[name] = made
    terms = []
    for i, t in enumerate(parsed.terms):
        low_high = _ends(t.range) or (0.0, 1.0)
        build = lambda t=t, e=low_high: Term(t.name, t.fn, t.unit, e, t.level, t.reduce, options=t.options)  # noqa: E731
        terms.append(_made(f"$.terms[{i}]", build))
    contract = _made(
        "$",
        lambda: Contract(
            parsed.name,
            parsed.version,
            tuple(terms),
            tuple(Stakeholder(s.name, s.utility, s.weight, s.unit) for s in parsed.stakeholders),
            WeightedSum() if parsed.aggregate is None else _rule(parsed.aggregate),
            tuple(_constraint(c, f"$.constraints[{i}]") for i, c in enumerate(parsed.constraints)),
            signals,
            tuple(_example(e, f"$.tests[{i}]") for i, e in enumerate(parsed.tests)),
            parsed.provenance,
        ),
    )
    problems = naming_problems(contract) + number_problems(contract)
    if problems:
        _refuse("$", "; ".join(problems))
    return contract


def _rule(given: Mapping[str, Any]) -> Aggregate:
    path, fields = "$.aggregate", dict(given)
    kind = fields.pop("rule", None)
    if not isinstance(kind, str) or kind not in RULES:
        _refuse(f"{path}.rule", f"{kind!r} is not one of {', '.join(sorted(RULES))}")
    rule = RULES[kind]
    known = [f.name for f in dataclasses.fields(rule)]
    for name, value in fields.items():
        if name not in known:
            _refuse(f"{path}.{name}", f"object contains unknown field; {kind} has {', '.join(known) or 'none'}")
        numbers = value if isinstance(value, list) else value.values() if isinstance(value, dict) else [value]
        if any(isinstance(n, (str, bool, list, dict)) for n in numbers):
            _refuse(f"{path}.{name}", "expected a number, a list of numbers or a table of numbers")
    return _made(path, lambda: rule(**fields))


def _constraint(given: Any, path: str) -> Constraint:
    match given:
        case schema.Expect():
            of: Any = Expect(given.term)
        case schema.CVaR():
            of = _made(path, lambda: CVaR(given.term, given.level, given.at))
        case schema.Chance():
            of = Chance(_formula(given.event, f"{path}.event"))
        case _:
            of = _formula(given.holds, f"{path}.holds")
    return _made(path, lambda: Constraint(of, given.relation, given.limit, given.multiplier))


def _formula(given: Any, path: str) -> Formula:
    match given:
        case schema.Event():
            return _made(path, lambda: Event(given.term, given.relation, given.value))
        case schema.And() | schema.Or():
            parts = tuple(_formula(part, f"{path}.parts[{i}]") for i, part in enumerate(given.parts))
            return And(parts) if isinstance(given, schema.And) else Or(parts)
        case schema.Not():
            return Not(_formula(given.of, f"{path}.of"))
        case schema.Always() | schema.Eventually():
            of = _formula(given.of, f"{path}.of")
            kind = Always if isinstance(given, schema.Always) else Eventually
            return _made(path, lambda: kind(of, given.first, given.last))
        case _:
            left, right = _formula(given.left, f"{path}.left"), _formula(given.right, f"{path}.right")
            return _made(path, lambda: Until(left, right, given.first, given.last))


def _example(given: schema.Example, path: str) -> Example:
    for name, value in given.batch.items():
        try:
            array = np.asarray(value)
        except ValueError as error:
            raise ValueError(f"{path}.batch.{name}: rows of different lengths") from error
        if array.dtype.kind not in "bif" or array.ndim == 0:
            _refuse(f"{path}.batch.{name}", "expected (nested) lists of numbers, one entry a text")
    terms = {name: _ends(ends) for name, ends in given.terms.items()}
    satisfied = None if given.satisfied is None else tuple(given.satisfied)
    build: Any = lambda: Example(given.name, given.batch, terms, _ends(given.total), tuple(given.ranking), satisfied)  # noqa: E731
    return _made(path, build)


def _ends(given: list[Any] | None) -> Any:
    return None if given is None else (float(given[0]), float(given[1]))


def _made(path: str, build: Callable[[], _Any]) -> _Any:
    try:
        return build()
    except (TypeError, ValueError) as error:
        if str(error).startswith("$"):
            raise
        raise ValueError(f"{path}: {error}") from error


def _refuse(path: str, why: str) -> NoReturn:
    raise ValueError(f"{path}: {why}")
