"""What a contract is, as one hash: its code and its numbers."""

import functools
import hashlib
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import rfc8785

from rlx._tree import tree_sha256

from ._canonical import canonical, has_custom_gradient
from ._contract import Contract, all_terms, check_contract, naming_problems
from ._document import constraint_document, example_document
from ._fingerprint import Changeable, fingerprint
from ._terms import Term
from ._trace import Spec, declared_spec, fixed_settings, term_spec, trace

_KNOWN: OrderedDict[Any, str] = OrderedDict()
_MOST_KNOWN = 1024


def digest(contract: Contract) -> str:
    """sha256 of everything that a contract says, as 64 hex digits.

    The hash is of RFC 8785 (canonical JSON) text. A term counts by what it computes: its jaxpr with variables
    numbered, calls inlined, unused equations dropped and constants replaced by their sha256 (and the jaxpr of its
    gradient, if a gradient rule was written by hand). So changed code changes the digest, and renamed variables, line
    numbers, object addresses and the process do not. Numbers count as the float32 that they are computed with.
    Weights, thresholds, ranges, names, the version, tests, provenance and the first values of learned terms count too.
    The text names no jax version, but two versions of jax may trace the same code differently.

    Signals that are not declared are traced as the first usual shape that fits (float32 `[B]`, `[B, T]`, ...). A term
    is traced once and known again by its bytecode and everything that it reads; one that reads what can change in
    place is traced every time.

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
    check_contract("contract", contract)
    try:
        return hashlib.sha256(_canonical(as_json(contract))).hexdigest()
    except (rfc8785.CanonicalizationError, RecursionError) as error:
        raise ValueError(f"contract {contract.name!r} says something that is not JSON: {error}") from error


def _canonical(document: dict[str, Any]) -> bytes:
    """RFC 8785 of a contract's document. A signal or a term that was written before is not written again."""
    parts = {name: rfc8785.dumps(value) for name, value in document.items() if name not in ("signals", "terms")}
    for name in ("signals", "terms"):
        parts[name] = _object({key: _written(tuple(value.items())) for key, value in _keyed(document[name])})
    return _object(parts)


def _keyed(parts: dict[str, dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    for key, value in parts.items():
        # lists as tuples, which can be looked up; rfc8785 writes both alike
        yield key, {name: tuple(item) if isinstance(item, list) else item for name, item in value.items()}


def _object(parts: dict[str, bytes]) -> bytes:
    """An object of values that are written already: keys sorted by UTF-16 (RFC 8785, section 3.2.3)."""
    keys = sorted(parts, key=lambda key: key.encode("utf-16-be"))
    return b"{" + b",".join(rfc8785.dumps(key) + b":" + parts[key] for key in keys) + b"}"


def _written(items: tuple[tuple[str, Any], ...]) -> bytes:
    try:
        return _remembered(items)
    except TypeError:  # options of a term are a dict
        return rfc8785.dumps(dict(items))


@functools.lru_cache(maxsize=4096, typed=True)
def _remembered(items: tuple[tuple[str, Any], ...]) -> bytes:
    return rfc8785.dumps(dict(items))


def as_json(contract: Contract) -> dict[str, Any]:
    """The JSON value that `digest` hashes."""
    problems = naming_problems(contract)
    if problems:
        raise ValueError(f"contract {contract.name!r}: " + "; ".join(problems))
    known = declared_spec(contract)
    signals = signals_key(known)
    return {
        "format": "rlx.contract/2",
        "name": contract.name,
        "version": contract.version,
        "provenance": plain(contract.provenance),
        "signals": {
            name: {"dims": list(s.dims), "dtype": s.dtype, "range": plain(s.range), "unit": s.unit}
            for name, s in contract.signals.items()
        },
        "terms": {name: _term(term, known, signals) for name, term in all_terms(contract).items()},
        "stakeholders": [
            {
                "name": s.name,
                "weight": plain(float(s.weight)),
                "utility": {n: plain(float(c)) for n, c in s.utility.items()},
                "unit": s.unit,
            }
            for s in contract.stakeholders
        ],
        "aggregate": _aggregate(contract),
        "constraints": [plain(constraint_document(c)) for c in contract.constraints],
        "tests": [plain(example_document(e)) for e in contract.tests],
    }


def code_hash(term: Term, known: Spec, signals: Any = None) -> str:
    """sha256 of the canonical text of a term's computation; `signals` is the spec as a hashable value.

    Raises:
      ValueError: it cannot be traced, or holds something that has no content.
    """
    try:
        key = _key(term, signals or signals_key(known))
    except Changeable:
        return hashlib.sha256(code_text(term, known).encode()).hexdigest()
    if key not in _KNOWN:
        _KNOWN[key] = hashlib.sha256(code_text(term, known).encode()).hexdigest()
        if len(_KNOWN) > _MOST_KNOWN:
            _KNOWN.popitem(last=False)
    _KNOWN.move_to_end(key)
    return _KNOWN[key]


def signals_key(known: Spec) -> Any:
    """Specs as a hashable value."""
    return tuple((name, s.shape, s.dtype) for name, s in sorted(known.items()))


def _key(term: Term, signals: Any) -> Any:
    function = term.fn if isinstance(term.fn, str) else fingerprint(term.fn)
    leaves, structure = jax.tree.flatten(term.params)
    shapes = tuple((np.shape(leaf), np.asarray(leaf).dtype) for leaf in leaves)
    if term.options:
        raise Changeable("options")
    return function, term.level, structure, shapes, signals


def code_text(term: Term, known: Spec) -> str:
    """The canonical text of a term's computation."""
    with fixed_settings():
        spec = term_spec(term, known)
        closed, names = trace(term, spec)
        text = canonical(closed, names)
        if has_custom_gradient(closed.jaxpr):
            text += "\ngradient\n" + _gradient_text(term, spec)
    return text


def _gradient_text(term: Term, spec: Spec) -> str:
    smooth = {name: s for name, s in spec.items() if np.issubdtype(s.dtype, np.floating)}
    others = {name: s for name, s in spec.items() if name not in smooth}
    out = jax.eval_shape(lambda batch: term(batch), dict(spec))
    if not smooth or not np.issubdtype(out.dtype, np.floating):
        return ""

    def gradient(smooth: Any, others: Any, cotangent: Any) -> Any:
        _, pullback = jax.vjp(lambda values: term({**values, **others}), smooth)
        return pullback(cotangent)

    closed = jax.make_jaxpr(gradient)(smooth, others, jax.ShapeDtypeStruct(out.shape, out.dtype))
    return canonical(closed, [*sorted(smooth), *sorted(others), "cotangent of the term"])


def _term(term: Term, known: Spec, signals: Any) -> dict[str, Any]:
    try:
        code = code_hash(term, known, signals)
    except ValueError as error:
        raise ValueError(f"term {term.name!r}: {error}") from error
    said = {
        "unit": term.unit,
        "range": plain(term.range),
        "level": term.level,
        "reduce": term.reduce,
        "code": code,
        "fn": term.fn if isinstance(term.fn, str) else None,
    }
    if term.options:
        said["options"] = plain(term.options)
    if term.params is not None:
        said["params"] = tree_sha256(term.params)
    return said


def _aggregate(contract: Contract) -> dict[str, Any]:
    rule, names = contract.aggregate, [s.name for s in contract.stakeholders]
    params = rule.init(names)
    described = {name: plain(np.asarray(value).tolist()) for name, value in params.items()}
    if type(rule).__module__.startswith("rlx."):
        group = {"group": rule.group} if hasattr(rule, "group") else {}
        return {"kind": type(rule).__name__, **group, **described}
    with fixed_settings():
        closed = jax.make_jaxpr(rule.apply)(
            np.zeros((4, len(names)), np.float32), np.ones(len(names), np.float32), params
        )
    return {"code": hashlib.sha256(canonical(closed).encode()).hexdigest(), **described}


def plain(value: Any) -> Any:
    """Plain JSON: floats as the float32 that they are computed with, infinities by name, tuples as lists."""
    if isinstance(value, (float, np.floating)):
        number = float(np.float32(value))
        return number if np.isfinite(number) else str(number)
    if isinstance(value, (np.integer, np.bool_)):
        return value.item()
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if hasattr(value, "items"):
        return {str(name): plain(item) for name, item in value.items()}
    return value
