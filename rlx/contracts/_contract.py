"""What is wanted: terms, the people who care about them, and how their wishes are put together."""

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import jax

from rlx._checks import check_choice

from .aggregate import Aggregate, WeightedSum

Batch = Mapping[str, Any]
Relation = Literal["<", "<=", ">", ">="]
RELATIONS: dict[str, Callable[[Any, Any], Any]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


@dataclass(frozen=True)
class Signal:
    """An array that terms read from the batch.

    Attributes:
      dims: one letter a dim, "BT" for `[B, T]`; a digit string in a tuple is a fixed size, `("B", "T", 16)`.
      dtype: a numpy dtype name.
      range: lowest and highest value, both included; None promises nothing (not even that it is finite).
      unit: for people.
    """

    dims: str | tuple[str | int, ...] = "BT"
    dtype: str = "float32"
    range: tuple[float, float] | None = None
    unit: str = ""


@dataclass(frozen=True)
class Term:
    """One thing that can be measured on a text.

    Comparing a term with a number builds an `Event` for `Chance`: `Chance(term > 0.5) <= 0.1`.

    Attributes:
      name: unique in its contract.
      fn: `fn(batch) -> [B]` for level "sequence", `[B, T]` for level "token"; a pure jax function of the batch.
      unit: for people ("probability", "nats", "bytes").
      range: lowest and highest value that `fn` returns (for "token": of one token); `verify` proves or refutes it.
      level: "sequence" or "token".
      reduce: how a token-level term becomes one number a text: "mean" over `batch["mask"]` (0 if nothing is
        unmasked) or "sum" over it.

    Example:
      >>> import jax.numpy as jnp
      >>> Term("short", lambda batch: 1.0 - jnp.mean(batch["mask"], axis=-1)).range
      (0.0, 1.0)
    """

    name: str
    fn: Callable[[Batch], jax.Array]
    unit: str = ""
    range: tuple[float, float] = (0.0, 1.0)
    level: Literal["sequence", "token"] = "sequence"
    reduce: Literal["mean", "sum"] = "mean"

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise TypeError(f"name: expected a non-empty string, got {self.name!r}")
        if not callable(self.fn):
            raise TypeError(f"fn: expected a function of the batch, got {type(self.fn).__name__}")
        check_choice("level", self.level, ("sequence", "token"))
        check_choice("reduce", self.reduce, ("mean", "sum"))
        low, high = self.range
        if not low <= high:
            raise ValueError(f"range: ({low}, {high}) of term {self.name!r} is empty; write (lowest, highest)")

    def __lt__(self, value: float) -> "Event":
        return Event(self, "<", value)

    def __le__(self, value: float) -> "Event":
        return Event(self, "<=", value)

    def __gt__(self, value: float) -> "Event":
        return Event(self, ">", value)

    def __ge__(self, value: float) -> "Event":
        return Event(self, ">=", value)


@dataclass(frozen=True)
class Event:
    """Something that does or does not happen to a text: a term compared with a number."""

    term: "Term | str"
    relation: Relation
    value: float

    def __post_init__(self) -> None:
        check_choice("relation", self.relation, RELATIONS)

    def __bool__(self) -> bool:
        raise TypeError("an Event has no truth value before there is a batch; write one comparison, not a < term < b")


@dataclass(frozen=True)
class Constraint:
    """A limit on an expectation over texts; built by `Expect(term) <= x` or `Chance(term > c) <= p`.

    Its cost of a text and its threshold are such that the constraint says: mean cost <= threshold. For `>=` both
    change sign (`Expect`) or count the texts in which the event does not happen (`Chance`).

    Attributes:
      of: what is limited.
      relation: "<=" or ">=".
      limit: `x` or `p`.
      multiplier: the Lagrange multiplier to start from, >= 0. At 0 the constraint costs nothing.
    """

    of: "Expect | Chance"
    relation: Literal["<=", ">="]
    limit: float
    multiplier: float = 0.0

    @property
    def term(self) -> "Term | str":
        """The term, or its name, that the cost is computed from."""
        return self.of.event.term if isinstance(self.of, Chance) else self.of.term

    @property
    def threshold(self) -> float:
        """What the mean cost may be at most."""
        if self.relation == "<=":
            return float(self.limit)
        return 1.0 - float(self.limit) if isinstance(self.of, Chance) else -float(self.limit)

    def __str__(self) -> str:
        name = name_of(self.term)
        if isinstance(self.of, Chance):
            return f"Chance({name} {self.of.event.relation} {self.of.event.value:g}) {self.relation} {self.limit:g}"
        return f"Expect({name}) {self.relation} {self.limit:g}"

    def __bool__(self) -> bool:
        raise TypeError("a Constraint has no truth value before there is a batch; write one comparison, not a chain")


@dataclass(frozen=True)
class Expect:
    """The mean of a term over texts: `Expect(term) <= x`.

    >>> str(Expect("toxicity") <= 0.01)
    'Expect(toxicity) <= 0.01'
    """

    term: Term | str

    def __le__(self, limit: float) -> Constraint:
        return Constraint(self, "<=", limit)

    def __ge__(self, limit: float) -> Constraint:
        return Constraint(self, ">=", limit)


@dataclass(frozen=True)
class Chance:
    """The probability that an event happens to a text: `Chance(term > c) <= p`.

    The cost of a text is 1 where it happens and 0 where it does not; its gradient is zero, so it is learned by a
    score-function method, which needs none.

    >>> str(Chance(Event("letter_e", ">", 0.5)) <= 0.1)
    'Chance(letter_e > 0.5) <= 0.1'
    """

    event: Event

    def __post_init__(self) -> None:
        if not isinstance(self.event, Event):
            raise TypeError(f"event: expected a compared term such as `term > 0.5`, got {type(self.event).__name__}")

    def __le__(self, limit: float) -> Constraint:
        return Constraint(self, "<=", limit)

    def __ge__(self, limit: float) -> Constraint:
        return Constraint(self, ">=", limit)


@dataclass(frozen=True)
class Stakeholder:
    """Someone who cares: utility is a linear combination of terms.

    Attributes:
      name: unique in its contract.
      utility: coefficient by term name; `u = sum_n coefficient_n * term_n`.
      weight: how much the aggregate counts this stakeholder, >= 0.
    """

    name: str
    utility: Mapping[str, float]
    weight: float = 1.0


@dataclass(frozen=True)
class Contract:
    """What a model should do: terms, stakeholders, an aggregate and constraints.

    Attributes:
      name, version: for people and the digest.
      terms: everything that is measured.
      stakeholders: their utilities `[B, K]` are aggregated in this order.
      aggregate: `WeightedSum()`, `Nash(...)` or `MaxMin(...)`.
      constraints: built by `Expect(...) <= x` and `Chance(...) <= p`; a `Term` used only here need not be in `terms`.
      signals: the arrays of the batch by name. Optional; `verify` proves more when ranges are declared.
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
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for attribute, kind in (("terms", Term), ("stakeholders", Stakeholder), ("constraints", Constraint)):
            items = tuple(getattr(self, attribute))
            for item in items:
                if not isinstance(item, kind):
                    raise TypeError(f"{attribute}: expected {kind.__name__}, got {type(item).__name__} {item!r}")
            object.__setattr__(self, attribute, items)


def name_of(term: Term | str) -> str:
    """The name of a term that may be given by name."""
    return term if isinstance(term, str) else term.name


def all_terms(contract: Contract) -> dict[str, Term]:
    """The contract's terms by name, then those that only constraints use."""
    found = {term.name: term for term in contract.terms}
    for constraint in contract.constraints:
        if isinstance(constraint.term, Term):
            found.setdefault(constraint.term.name, constraint.term)
    return found


def naming_problems(contract: Contract) -> list[str]:
    """Every name that is missing, used twice or means two things; empty if the contract is well named."""
    terms = all_terms(contract)
    problems = []
    for kind, names in (
        ("term", [t.name for t in contract.terms]),
        ("stakeholder", [s.name for s in contract.stakeholders]),
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
        name = name_of(constraint.term)
        if name not in terms:
            problems.append(f"constraint {constraint} uses {name!r}, which is not a term")
        elif isinstance(constraint.term, Term) and constraint.term != terms[name]:
            problems.append(f"constraint {constraint} uses another term with the name {name!r}")
    if not contract.stakeholders:
        problems.append("no stakeholder: nothing is rewarded")
    names = [stakeholder.name for stakeholder in contract.stakeholders]
    problems += contract.aggregate.problems(names)
    return problems
