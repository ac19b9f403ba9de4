"""What is required: events, formulas over tokens, and limits on them."""

import math
import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from rlx._checks import check_choice, check_range

if TYPE_CHECKING:
    from ._terms import Term

Relation = Literal["<", "<=", ">", ">="]
RELATIONS: dict[str, Callable[[Any, Any], Any]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_LONGEST = 1 << 20


class Formula:
    """Something that is true or false of a text; `&`, `|` and `~` combine formulas.

    A formula in `Contract.constraints` demands that it holds for every text. Its robustness says by how much: the
    least change of the compared terms that would make it false (positive) or true (negative). See `Always`.
    """

    def __and__(self, other: "Formula") -> "And":
        return And((self, other))

    def __or__(self, other: "Formula") -> "Or":
        return Or((self, other))

    def __invert__(self) -> "Not":
        return Not(self)

    def __bool__(self) -> bool:
        raise TypeError(
            f"{type(self).__name__} has no truth value before there is a batch; write & | ~, and one comparison, "
            "not a < term < b"
        )


@dataclass(frozen=True)
class Event(Formula):
    """A term compared with a number: `term > 0.5`. In a formula over tokens a token-level term is one token's value."""

    term: "Term | str"
    relation: Relation
    value: float

    def __post_init__(self) -> None:
        check_choice("relation", self.relation, RELATIONS)
        check_range("value", self.value, -math.inf, math.inf, open_low=True, open_high=True)

    def __str__(self) -> str:
        return f"{name_of(self.term)} {self.relation} {self.value:g}"


@dataclass(frozen=True)
class And(Formula):
    """Every part holds; robustness is the least of theirs."""

    parts: tuple[Formula, ...]

    def __post_init__(self) -> None:
        _check_formulas(self, *self.parts)

    def __str__(self) -> str:
        return "(" + " & ".join(map(str, self.parts)) + ")"


@dataclass(frozen=True)
class Or(Formula):
    """Some part holds; robustness is the greatest of theirs."""

    parts: tuple[Formula, ...]

    def __post_init__(self) -> None:
        _check_formulas(self, *self.parts)

    def __str__(self) -> str:
        return "(" + " | ".join(map(str, self.parts)) + ")"


@dataclass(frozen=True)
class Not(Formula):
    """The part does not hold; robustness changes sign."""

    of: Formula

    def __post_init__(self) -> None:
        _check_formulas(self, self.of)

    def __str__(self) -> str:
        return f"~{self.of}" if not isinstance(self.of, Event) else f"~({self.of})"


@dataclass(frozen=True)
class Always(Formula):
    """From now on, at every token of the window, the formula holds: signal temporal logic over the token axis.

        rho(Always[a, b] phi, t) = min over t' in [t + a, t + b] of rho(phi, t')

    Time counts unmasked tokens only; a constraint is judged at the first one. Without a token-level term the text
    counts as one token. The window ends where the text ends: of an empty one everything is true, with the robustness
    that the declared ranges allow at most.

    Attributes:
      of: the formula.
      first, last: the window in tokens from now, both included; None is the end of the text.

    >>> from rlx.contracts import Term
    >>> toxicity = Term("toxicity", lambda batch: batch["toxicity"], level="token")
    >>> str(Always(toxicity < 0.25))
    'Always(toxicity < 0.25)'

    References:
      Maler and Nickovic 2004, "Monitoring temporal properties of continuous signals"; Donzé and Maler 2010, "Robust
      satisfaction of temporal logic over real-valued signals", definition 3. The finite end of a text is ours.
    """

    of: Formula
    first: int = 0
    last: int | None = None

    def __post_init__(self) -> None:
        _check_formulas(self, self.of)
        _check_window(self.first, self.last)

    def __str__(self) -> str:
        return f"Always{_window(self)}({_bare(self.of)})"


@dataclass(frozen=True)
class Eventually(Formula):
    """At some token of the window the formula holds: the greatest robustness in it. See `Always` for time and masks.

    Of an empty window nothing is true.
    """

    of: Formula
    first: int = 0
    last: int | None = None

    def __post_init__(self) -> None:
        _check_formulas(self, self.of)
        _check_window(self.first, self.last)

    def __str__(self) -> str:
        return f"Eventually{_window(self)}({_bare(self.of)})"


@dataclass(frozen=True)
class Until(Formula):
    """`right` holds at some token of the window, and `left` at every token from now to before it.

    rho(t) = max over t' in [t + a, t + b] of min(rho(right, t'), min over t'' in [t, t') of rho(left, t''))
    """

    left: Formula
    right: Formula
    first: int = 0
    last: int | None = None

    def __post_init__(self) -> None:
        _check_formulas(self, self.left, self.right)
        _check_window(self.first, self.last)

    def __str__(self) -> str:
        return f"Until{_window(self)}({_bare(self.left)}, {_bare(self.right)})"


@dataclass(frozen=True)
class Constraint:
    """A limit; built by `Expect(term) <= x`, `Chance(term > c) <= p`, `CVaR(term, level) <= x`, or a formula alone.

    Its cost of a text and its threshold are such that the constraint says: mean cost <= threshold. For `>=` both
    change sign (`Expect`, `CVaR`) or count the texts in which the event does not happen (`Chance`). A formula costs
    what its robustness lacks to 0, `max(-rho, 0)`, so that a limit of 0 says that every text satisfies it.

    Attributes:
      of: what is limited.
      relation: "<=" or ">=".
      limit: `x` or `p`.
      multiplier: the Lagrange multiplier to start from, >= 0. At 0 the constraint costs nothing.
    """

    of: "Expect | Chance | CVaR | Formula"
    relation: Literal["<=", ">="] = "<="
    limit: float = 0.0
    multiplier: float = 0.0

    def __post_init__(self) -> None:
        if not isinstance(self.of, (Expect, Chance, CVaR, Formula)):
            raise TypeError(f"of: expected Expect, Chance, CVaR or a formula, got {type(self.of).__name__}")
        check_choice("relation", self.relation, ("<=", ">="))
        for name in ("limit", "multiplier"):
            check_range(name, getattr(self, name), -math.inf, math.inf, open_low=True, open_high=True)
        if isinstance(self.of, Formula) and self.relation != "<=":
            raise ValueError('relation: a formula has a shortfall, which is limited from above; write "<="')

    @property
    def threshold(self) -> float:
        """What the mean cost may be at most."""
        if self.relation == "<=":
            return float(self.limit)
        return 1.0 - float(self.limit) if isinstance(self.of, Chance) else -float(self.limit)

    def __str__(self) -> str:
        if isinstance(self.of, Formula):
            return str(self.of) if self.limit == 0 else f"Shortfall({_bare(self.of)}) <= {self.limit:g}"
        return f"{self.of} {self.relation} {self.limit:g}"

    def __bool__(self) -> bool:
        raise TypeError("a Constraint has no truth value before there is a batch; write one comparison, not a chain")


class _Limited:
    def __le__(self, limit: float) -> Constraint:
        return Constraint(self, "<=", limit)  # type: ignore[arg-type]

    def __ge__(self, limit: float) -> Constraint:
        return Constraint(self, ">=", limit)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Expect(_Limited):
    """The mean of a term over texts: `Expect(term) <= x`.

    >>> str(Expect("toxicity") <= 0.01)
    'Expect(toxicity) <= 0.01'
    """

    term: "Term | str"

    def __str__(self) -> str:
        return f"Expect({name_of(self.term)})"


@dataclass(frozen=True)
class Chance(_Limited):
    """The probability that an event happens to a text: `Chance(term > c) <= p`, `Chance(Always(term < c)) >= p`.

    The cost of a text is 1 where it happens and 0 where it does not; its gradient is zero, so it is learned by a
    score-function method, which needs none.

    >>> str(Chance(Event("letter_e", ">", 0.5)) <= 0.1)
    'Chance(letter_e > 0.5) <= 0.1'
    """

    event: Formula

    def __post_init__(self) -> None:
        if not isinstance(self.event, Formula):
            raise TypeError(f"event: expected a compared term such as `term > 0.5`, got {type(self.event).__name__}")

    def __str__(self) -> str:
        return f"Chance({_bare(self.event)})"


@dataclass(frozen=True)
class CVaR(_Limited):
    """The conditional value at risk of a term: its mean over the worst `1 - level` of texts.

        CVaR(X) = min over eta of  eta + E[max(X - eta, 0)] / (1 - level)

    The cost of a text is the bracket's integrand. `CVaR(...) <= x` limits the highest values, `>= x` the lowest.

    Attributes:
      term: the term.
      level: in [0, 1); 0 is the mean, 0.9 looks at the worst tenth.
      at: eta. None takes the batch's own quantile, so that the mean cost is exactly the batch's CVaR: the batch must
        then be the whole sample, not one device's part of it. A number makes each text's cost its own, and the mean
        cost an upper bound of CVaR for any eta (tight at the quantile), which is what `certify` can speak of.

    >>> str(CVaR("latency", 0.9) <= 2.0)
    'CVaR(latency, 0.9) <= 2'

    References:
      Rockafellar and Uryasev 2000, "Optimization of conditional value-at-risk", equations 4 and 5.
    """

    term: "Term | str"
    level: float = 0.9
    at: float | None = None

    def __post_init__(self) -> None:
        check_range("level", self.level, 0.0, 1.0, open_high=True)
        if self.at is not None:
            check_range("at", self.at, -math.inf, math.inf, open_low=True, open_high=True)

    def __str__(self) -> str:
        at = "" if self.at is None else f", at={self.at:g}"
        return f"CVaR({name_of(self.term)}, {self.level:g}{at})"


def name_of(term: "Term | str") -> str:
    """The name of a term that may be given by name."""
    return term if isinstance(term, str) else term.name


def events_in(of: Any) -> Iterator[Event]:
    """The comparisons of a constraint's subject, in the order they are written."""
    match of:
        case Event():
            yield of
        case Chance():
            yield from events_in(of.event)
        case And() | Or():
            for part in of.parts:
                yield from events_in(part)
        case Not() | Always() | Eventually():
            yield from events_in(of.of)
        case Until():
            yield from events_in(of.left)
            yield from events_in(of.right)


def terms_in(of: Any) -> "list[Term | str]":
    """The terms, or their names, that a constraint's subject measures."""
    return [of.term] if isinstance(of, (Expect, CVaR)) else [event.term for event in events_in(of)]


def events_now(of: Formula) -> Iterator[Event]:
    """The comparisons that no Always, Eventually or Until is around."""
    match of:
        case Event():
            yield of
        case And() | Or():
            for part in of.parts:
                yield from events_now(part)
        case Not():
            yield from events_now(of.of)


def depth_of(of: Any) -> int:
    """How many operators are around the innermost comparison."""
    match of:
        case And() | Or():
            return 1 + max(depth_of(part) for part in of.parts)
        case Not() | Always() | Eventually():
            return 1 + depth_of(of.of)
        case Until():
            return 1 + max(depth_of(of.left), depth_of(of.right))
    return 0


def _check_formulas(owner: Formula, *parts: Any) -> None:
    for part in parts:
        if not isinstance(part, Formula):
            raise TypeError(f"{type(owner).__name__}: expected a formula such as `term < 3.0`, got {part!r}")
    if not parts:
        raise ValueError(f"{type(owner).__name__}: no parts")


def _check_window(first: Any, last: Any) -> None:
    for name, value in (("first", first), ("last", last)):
        if name == "last" and value is None:
            continue
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= _LONGEST:
            raise ValueError(f"{name}: {value!r} is not a number of tokens in [0, {_LONGEST}]")
    if last is not None and last < first:
        raise ValueError(f"last: {last} is before first={first}, the window is empty")


def _window(of: Any) -> str:
    return "" if of.first == 0 and of.last is None else f"[{of.first}, {'end' if of.last is None else of.last}]"


def _bare(of: Formula) -> str:
    text = str(of)
    return text[1:-1] if isinstance(of, (And, Or)) else text
