"""What is wanted: terms, the people who care about them, and how their wishes are put together."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ._constraints import Chance, Constraint, CVaR, Event, Formula, depth_of, events_in, events_now, name_of, terms_in
from ._terms import Signal, Term, checked_range
from .aggregate import Aggregate, WeightedSum

_DEEPEST = 32  # formulas nested deeper than this are a mistake, or an attack


@dataclass(frozen=True)
class Stakeholder:
    """Someone who cares: utility is a linear combination of terms.

    Attributes:
      name: unique in its contract.
      utility: coefficient by term name; `u = sum_n coefficient_n * term_n`.
      weight: how much the aggregate counts this stakeholder, >= 0.
      unit: of the utility. Empty: that of its terms, which must then agree; otherwise the coefficients convert.
    """

    name: str
    utility: Mapping[str, float]
    weight: float = 1.0
    unit: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise TypeError(f"name: expected a non-empty string, got {self.name!r}")
        if not isinstance(self.utility, Mapping):
            kind = type(self.utility).__name__
            raise TypeError(f"utility: expected coefficients by term name of {self.name!r}, got {kind}")


@dataclass(frozen=True)
class Example:
    """A test that a contract carries: what it must say of a few texts. `verify` runs it; it counts in the digest.

    Attributes:
      name: unique in its contract.
      batch: nested lists or arrays by signal name, `[B, ...]`.
      terms: (lowest, highest) value on every text, by term name.
      total: (lowest, highest) total of every text.
      ranking: rows in the order of their totals, best first; ties do not pass.
      satisfied: for each text, whether it violates no constraint.
    """

    name: str
    batch: Mapping[str, Any]
    terms: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    total: tuple[float, float] | None = None
    ranking: tuple[int, ...] = ()
    satisfied: tuple[bool, ...] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise TypeError(f"name: expected a non-empty string, got {self.name!r}")
        object.__setattr__(self, "ranking", tuple(self.ranking))
        if self.satisfied is not None:
            object.__setattr__(self, "satisfied", tuple(bool(value) for value in self.satisfied))
        if self.total is not None:
            object.__setattr__(self, "total", checked_range(f"total of example {self.name!r}", self.total))
        terms = {name: checked_range(f"example {self.name!r}, term {name!r}", v) for name, v in self.terms.items()}
        object.__setattr__(self, "terms", terms)
        if not (self.terms or self.total or self.ranking or self.satisfied):
            raise ValueError(f"example {self.name!r}: expects nothing; give terms, total, ranking or satisfied")


@dataclass(frozen=True)
class Contract:
    """What a model should do: terms, stakeholders, an aggregate and constraints.

    Attributes:
      name, version: for people and the digest.
      terms: everything that is measured.
      stakeholders: their utilities `[B, K]` are aggregated in this order.
      aggregate: a rule of `rlx.contracts.aggregate`, such as `WeightedSum()`, `Nash(...)` or `MaxMin(...)`.
      constraints: `Expect(...) <= x`, `Chance(...) <= p`, `CVaR(...) <= x`, or a formula such as `Always(term < c)`; a
        `Term` used only here need not be in `terms`.
      signals: the arrays of the batch by name. Optional; `verify` proves more when ranges are declared.
      tests: what the contract must say of a few texts.
      provenance: anything JSON; it counts in the digest.

    Example:
      >>> import jax.numpy as jnp
      >>> words = Term("words", lambda batch: jnp.mean(batch["is_letter"], axis=-1))
      >>> long = Term("long", lambda batch: jnp.mean(batch["mask"], axis=-1))
      >>> contract = Contract(
      ...     name="short", terms=(words, long), stakeholders=(Stakeholder("reader", {"words": 1.0}),),
      ...     constraints=(Chance(long > 0.9) <= 0.1,))
      >>> [str(constraint) for constraint in contract.constraints]
      ['Chance(long > 0.9) <= 0.1']
    """

    name: str
    version: str = "1"
    terms: tuple[Term, ...] = ()
    stakeholders: tuple[Stakeholder, ...] = ()
    aggregate: Aggregate = field(default_factory=WeightedSum)
    constraints: tuple[Constraint, ...] = ()
    signals: Mapping[str, Signal] = field(default_factory=dict)
    tests: tuple[Example, ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for attribute in ("name", "version"):
            if not isinstance(getattr(self, attribute), str) or not getattr(self, attribute):
                raise TypeError(f"{attribute}: expected a non-empty string, got {getattr(self, attribute)!r}")
        for attribute, kind in (
            ("terms", Term),
            ("stakeholders", Stakeholder),
            ("constraints", Constraint),
            ("tests", Example),
        ):
            items = getattr(self, attribute)
            if not isinstance(items, (tuple, list)):
                raise TypeError(
                    f"{attribute}: expected a tuple, got {type(items).__name__}; write ({kind.__name__}(...),)"
                )
            if kind is Constraint:
                items = [Constraint(item) if isinstance(item, Formula) else item for item in items]
            for item in items:
                if not isinstance(item, kind):
                    hint = f"; write {item} <= x" if kind is Constraint and hasattr(item, "__le__") else ""
                    raise TypeError(f"{attribute}: expected {kind.__name__}, got {type(item).__name__}{hint}")
            object.__setattr__(self, attribute, tuple(items))
        for name, signal in self.signals.items():
            if not isinstance(signal, Signal):
                raise TypeError(f"signals: expected a Signal for {name!r}, got {type(signal).__name__}")


def check_contract(name: str, value: Any) -> None:
    """Check that an argument is a contract.

    Raises:
      TypeError: names the argument.
    """
    if not isinstance(value, Contract):
        raise TypeError(f"{name}: expected a Contract, got {type(value).__name__}")


def all_terms(contract: Contract) -> dict[str, Term]:
    """The contract's terms by name, then those that only constraints use."""
    found = {term.name: term for term in contract.terms}
    for constraint in contract.constraints:
        for term in terms_in(constraint.of):
            if isinstance(term, Term):
                found.setdefault(term.name, term)
    return found


def naming_problems(contract: Contract) -> list[str]:
    """Every name that is missing, used twice or means two things; empty if the contract is well named."""
    terms = all_terms(contract)
    problems = []
    for kind, names in (
        ("term", [t.name for t in contract.terms]),
        ("stakeholder", [s.name for s in contract.stakeholders]),
        ("constraint", [str(c) for c in contract.constraints]),
        ("test", [e.name for e in contract.tests]),
    ):
        problems += [f"{kind} {name!r} is declared twice" for name in sorted({n for n in names if names.count(n) > 1})]
    for stakeholder in contract.stakeholders:
        problems += [
            f"stakeholder {stakeholder.name!r} wants {name!r}, which is not a term"
            for name in stakeholder.utility
            if name not in terms
        ]
        if not stakeholder.utility:
            problems.append(f"stakeholder {stakeholder.name!r} wants nothing: its utility is empty")
    for constraint in contract.constraints:
        problems += _constraint_problems(constraint, terms)
    for example in contract.tests:
        problems += [
            f"test {example.name!r} expects {name!r}, which is not a term"
            for name in example.terms
            if name not in terms
        ]
    if not contract.stakeholders:
        problems.append("no stakeholder: nothing is rewarded")
    names = [stakeholder.name for stakeholder in contract.stakeholders]
    problems += contract.aggregate.problems(names)
    return problems


def _constraint_problems(constraint: Constraint, terms: Mapping[str, Term]) -> list[str]:
    problems, of = [], constraint.of
    if depth_of(of.event if isinstance(of, Chance) else of) > _DEEPEST:
        return [f"a constraint is nested deeper than {_DEEPEST} operators"]
    for used in terms_in(of):
        name = name_of(used)
        if name not in terms:
            problems.append(f"constraint {constraint} uses {name!r}, which is not a term")
        elif isinstance(used, Term) and used is not terms[name] and used != terms[name]:
            problems.append(f"constraint {constraint} uses another term with the name {name!r}")
    # Chance(term > c) and Expect reduce a token-level term over the text; a formula says when
    whole = of.event if isinstance(of, Chance) else of
    if isinstance(whole, Formula) and not (isinstance(of, Chance) and isinstance(whole, Event)):
        problems += [
            f"constraint {constraint} compares token-level term {name_of(event.term)!r} at no token; "
            "write Always(...) or Eventually(...) around it"
            for event in events_now(whole)
            if name_of(event.term) in terms and terms[name_of(event.term)].level == "token"
        ]
    return problems


def number_problems(contract: Contract) -> list[str]:
    """Every number with which the contract would not mean what it says."""
    problems = []
    for stakeholder in contract.stakeholders:
        if not (_is_finite(stakeholder.weight) and stakeholder.weight >= 0):
            problems.append(f"stakeholder {stakeholder.name!r} has weight {stakeholder.weight}, expected a number >= 0")
        problems += [
            f"stakeholder {stakeholder.name!r} has coefficient {value} of {name!r}, expected a finite number"
            for name, value in stakeholder.utility.items()
            if not _is_finite(value)
        ]
    if contract.stakeholders and all(s.weight == 0 for s in contract.stakeholders):
        problems.append("every stakeholder has weight 0: nobody counts")
    for constraint in contract.constraints:
        if constraint.multiplier < 0:
            problems.append(f"constraint {constraint} has multiplier {constraint.multiplier}, below 0")
        if isinstance(constraint.of, Chance) and not 0 <= constraint.limit <= 1:
            problems.append(f"constraint {constraint} limits a probability by {constraint.limit}, outside [0, 1]")
        if isinstance(constraint.of, Formula) and constraint.limit < 0:
            problems.append(f"constraint {constraint} limits a shortfall by {constraint.limit}, below 0")
    return problems


def _is_finite(value: Any) -> bool:
    number = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    return number and math.isfinite(value)


def level_values(contract: Contract) -> list[float]:
    """The numbers that constraints compare with, in the order they are written: `reward.params["levels"]`."""
    values: list[float] = []
    for constraint in contract.constraints:
        values += [float(event.value) for event in events_in(constraint.of)]
        if isinstance(constraint.of, CVaR):
            values += [float(constraint.of.level)]
            values += [] if constraint.of.at is None else [float(constraint.of.at)]
    return values
