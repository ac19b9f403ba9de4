"""What a contract is, as one hash: its code and its numbers."""

import hashlib
from typing import Any

import jax
import numpy as np
import rfc8785

from ._canonical import canonical, has_custom_gradient
from ._contract import Chance, Constraint, Contract, Term, all_terms, name_of, naming_problems
from ._trace import Spec, declared_spec, fixed_settings, term_spec, trace
from .aggregate import MaxMin, Nash, WeightedSum


def digest(contract: Contract) -> str:
    """sha256 of everything that a contract says, as 64 hex digits.

    The hash is of RFC 8785 (canonical JSON) text. A term counts by what it computes: its jaxpr with variables
    numbered, calls inlined, unused equations dropped and constants replaced by their sha256 (and the jaxpr of its
    gradient, if a gradient rule was written by hand). So changed code changes the digest, and renamed variables, line
    numbers, object addresses and the process do not. Numbers count as the float32 that they are computed with.
    Weights, thresholds, ranges, names, the version and provenance count too. The text names no jax version, but
    two versions of jax may trace the same code differently.

    Signals that are not declared are traced as the first usual shape that fits (float32 `[B]`, `[B, T]`, ...).

    Args:
      contract: what to hash.

    Returns:
      64 hex digits.

    Raises:
      ValueError: names are missing or doubled, a term cannot be traced, or it holds something that has no content.

    Example:
      >>> from rlx.contracts import Contract, Stakeholder, Term
      >>> def contract(fn):
      ...     return Contract("demo", terms=(Term("x", fn),), stakeholders=(Stakeholder("me", {"x": 1.0}),))
      >>> digest(contract(lambda batch: batch["a"] * 2)) == digest(contract(lambda b: b["a"] * 2))
      True
      >>> digest(contract(lambda batch: batch["a"] * 2)) == digest(contract(lambda batch: batch["a"] * 20))
      False

    References:
      RFC 8785, "JSON Canonicalization Scheme".
    """
    return hashlib.sha256(rfc8785.dumps(as_json(contract))).hexdigest()


def as_json(contract: Contract) -> dict[str, Any]:
    """The JSON value that `digest` hashes."""
    problems = naming_problems(contract)
    if problems:
        raise ValueError(f"contract {contract.name!r}: " + "; ".join(problems))
    known = declared_spec(contract)
    return {
        "format": "rlx.contract/1",
        "name": contract.name,
        "version": contract.version,
        "provenance": _json(contract.provenance),
        "signals": {
            name: {"dims": list(s.dims), "dtype": s.dtype, "range": _numbers(s.range), "unit": s.unit}
            for name, s in contract.signals.items()
        },
        "terms": {name: _term(term, known) for name, term in all_terms(contract).items()},
        "stakeholders": [
            {"name": s.name, "weight": _number(s.weight), "utility": {n: _number(c) for n, c in s.utility.items()}}
            for s in contract.stakeholders
        ],
        "aggregate": _aggregate(contract),
        "constraints": [_constraint(c) for c in contract.constraints],
    }


def code_text(term: Term, known: Spec) -> str:
    """The canonical text of a term's computation."""
    with fixed_settings():
        spec = term_spec(term, known)
        closed = trace(term, spec)
        text = canonical(closed, sorted(spec))
        if has_custom_gradient(closed.jaxpr):
            text += "\ngradient\n" + _gradient_text(term, spec)
    return text


def _gradient_text(term: Term, spec: Spec) -> str:
    smooth = {name: s for name, s in spec.items() if np.issubdtype(s.dtype, np.floating)}
    others = {name: s for name, s in spec.items() if name not in smooth}
    out = jax.eval_shape(lambda batch: term.fn(batch), dict(spec))
    if not smooth or not np.issubdtype(out.dtype, np.floating):
        return ""

    def gradient(smooth: Any, others: Any, cotangent: Any) -> Any:
        _, pullback = jax.vjp(lambda values: term.fn({**values, **others}), smooth)
        return pullback(cotangent)

    closed = jax.make_jaxpr(gradient)(smooth, others, jax.ShapeDtypeStruct(out.shape, out.dtype))
    return canonical(closed, [*sorted(smooth), *sorted(others), "cotangent of the term"])


def _term(term: Term, known: Spec) -> dict[str, Any]:
    try:
        code = code_text(term, known)
    except ValueError as error:
        raise ValueError(f"term {term.name!r}: {error}") from error
    return {
        "unit": term.unit,
        "range": _numbers(term.range),
        "level": term.level,
        "reduce": term.reduce,
        "code": hashlib.sha256(code.encode()).hexdigest(),
    }


def _aggregate(contract: Contract) -> dict[str, Any]:
    rule, names = contract.aggregate, [s.name for s in contract.stakeholders]
    params = rule.init(names)
    described = {name: _json(np.asarray(value).tolist()) for name, value in params.items()}
    if isinstance(rule, (WeightedSum, Nash, MaxMin)):
        return {"kind": type(rule).__name__, **described}
    with fixed_settings():
        closed = jax.make_jaxpr(rule.apply)(
            np.zeros((4, len(names)), np.float32), np.ones(len(names), np.float32), params
        )
    return {"code": hashlib.sha256(canonical(closed).encode()).hexdigest(), **described}


def _constraint(constraint: Constraint) -> dict[str, Any]:
    of = constraint.of
    inner: dict[str, Any] = {"kind": "expect"}
    if isinstance(of, Chance):
        inner = {"kind": "chance", "relation": of.event.relation, "value": _number(of.event.value)}
    return {
        "of": inner,
        "term": name_of(constraint.term),
        "relation": constraint.relation,
        "limit": _number(constraint.limit),
        "multiplier": _number(constraint.multiplier),
    }


def _number(value: Any) -> float | str:
    """A number as the float32 that it is computed with; infinities by name."""
    number = float(np.float32(value))
    return number if np.isfinite(number) else str(number)


def _numbers(values: Any) -> list[float | str] | None:
    return None if values is None else [_number(value) for value in values]


def _json(value: Any) -> Any:
    """Plain JSON: numpy numbers as float32, tuples as lists."""
    if isinstance(value, (float, np.floating)):
        return _number(value)
    if isinstance(value, (np.integer, np.bool_)):
        return value.item()
    if isinstance(value, (list, tuple)):
        return [_json(item) for item in value]
    if hasattr(value, "items"):
        return {str(name): _json(item) for name, item in value.items()}
    return value
