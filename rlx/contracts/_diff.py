"""What changed between two contracts, what kind of change it is, and for whom."""

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

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
    terms_in,
)
from ._contract import Contract, check_contract
from ._digest import as_json

Kind = Literal["breaking", "tightening", "loosening", "neutral"]
_KINDS: tuple[Kind, ...] = ("breaking", "tightening", "loosening", "neutral")
_CALLERS = ("callers",)
_EVERYONE = ("everyone",)


@dataclass(frozen=True)
class Change:
    """One difference.

    Attributes:
      kind: "breaking", "tightening", "loosening" or "neutral"; see `diff`.
      what: "constraint Chance(e > 0.5)", "stakeholder editor", ...
      detail: from what to what.
      whom: names of stakeholders, or "callers" (who make the batch), or "everyone".
    """

    kind: Kind
    what: str
    detail: str
    whom: tuple[str, ...]

    def __str__(self) -> str:
        text = f"{self.kind:<10} {self.what}: {self.detail}; for {', '.join(self.whom)}"
        return textwrap.fill(text, 80, subsequent_indent=" " * 11, break_long_words=False)


@dataclass(frozen=True)
class Diff:
    """All differences, the most serious first; false if there is none."""

    changes: tuple[Change, ...]

    @property
    def kind(self) -> Kind:
        """Breaking if any change is, else tightening, loosening, neutral, in this order."""
        return min((change.kind for change in self.changes), key=_KINDS.index, default="neutral")

    def __bool__(self) -> bool:
        return bool(self.changes)

    def __str__(self) -> str:
        return "\n".join(map(str, self.changes)) if self.changes else "no change"


def diff(old: Contract, new: Contract) -> Diff:
    """What changed from one contract to another.

    breaking: totals, or what the batch must hold, are no longer what they were (a term's code, a coefficient, a weight,
    the rule, a signal's dtype). tightening: what the new contract allows, the old one allowed, and not the other way
    round. loosening: the reverse. neutral: nothing is rewarded or required otherwise (the version, provenance, tests,
    starting multipliers, an unused term). A change whose direction cannot be told is breaking.

    Args:
      old, new: contracts that `digest` takes.

    Returns:
      A `Diff`; it is empty if and only if the digests are equal.

    Example:
      >>> from rlx.contracts import Chance, Contract, Stakeholder, Term
      >>> def contract(limit):
      ...     bad = Term("bad", lambda batch: batch["bad"])
      ...     return Contract("demo", terms=(bad,), stakeholders=(Stakeholder("reader", {"bad": -1.0}),),
      ...                     constraints=(Chance(bad > 0.5) <= limit,))
      >>> print(diff(contract(0.1), contract(0.05)))
      tightening constraint Chance(bad > 0.5) <= 0.05: limit 0.1 -> 0.05; for reader
    """
    check_contract("old", old)
    check_contract("new", new)
    a, b = as_json(old), as_json(new)
    changes = [
        *_words(a, b),
        *_signals(a["signals"], b["signals"]),
        *_terms(a["terms"], b["terms"], old, new),
        *_stakeholders(a["stakeholders"], b["stakeholders"]),
        *_rule(a, b),
        *_constraints(old, new),
        *_order(old, new),
    ]
    return Diff(tuple(sorted(changes, key=lambda change: _KINDS.index(change.kind))))


def _words(a: Mapping[str, Any], b: Mapping[str, Any]) -> Iterator[Change]:
    for name in ("name", "version"):
        if a[name] != b[name]:
            yield Change("neutral", name, f"{a[name]!r} -> {b[name]!r}", _EVERYONE)
    if a["provenance"] != b["provenance"]:
        yield Change("neutral", "provenance", "it reads otherwise", _EVERYONE)
    if a["tests"] != b["tests"]:
        yield Change("neutral", "tests", f"{len(a['tests'])} -> {len(b['tests'])} examples, or other ones", _EVERYONE)


def _signals(a: Mapping[str, Any], b: Mapping[str, Any]) -> Iterator[Change]:
    for name in [*a, *(n for n in b if n not in a)]:
        what = f"signal {name}"
        if name not in b:
            yield Change("loosening", what, "no longer declared", _CALLERS)
        elif name not in a:
            yield Change("breaking", what, "the batch must hold it now", _CALLERS)
        else:
            for field in ("dims", "dtype", "unit"):
                if a[name][field] != b[name][field]:
                    yield Change("breaking", what, f"{field} {a[name][field]!r} -> {b[name][field]!r}", _CALLERS)
            yield from _range(what, a[name]["range"], b[name]["range"], _CALLERS)


def _terms(a: Mapping[str, Any], b: Mapping[str, Any], old: Contract, new: Contract) -> Iterator[Change]:
    for name in [*a, *(n for n in b if n not in a)]:
        what, whom = f"term {name}", _users(name, old, new)
        if name not in b:
            yield Change("breaking", what, "removed", whom)
            continue
        if name not in a:
            yield Change("neutral", what, "added", whom)
            continue
        if a[name]["code"] != b[name]["code"] or a[name].get("options") != b[name].get("options"):
            yield Change("breaking", what, "it computes something else", whom)
        elif a[name]["fn"] != b[name]["fn"]:
            yield Change("neutral", what, f"fn {a[name]['fn']} -> {b[name]['fn']}, the same computation", whom)
        for field in ("level", "reduce", "unit"):
            if a[name][field] != b[name][field]:
                yield Change("breaking", what, f"{field} {a[name][field]!r} -> {b[name][field]!r}", whom)
        if a[name].get("params") != b[name].get("params"):
            yield Change("breaking", what, "other learned parameters", whom)
        yield from _range(what, a[name]["range"], b[name]["range"], whom)


def _range(what: str, a: Any, b: Any, whom: tuple[str, ...]) -> Iterator[Change]:
    if a == b:
        return
    (low, high), (new_low, new_high) = ([-np.inf, np.inf] if r is None else [float(end) for end in r] for r in (a, b))
    inside, outside = low <= new_low and new_high <= high, new_low <= low and high <= new_high
    kind: Kind = "breaking" if inside == outside else "tightening" if inside else "loosening"
    if inside and outside:  # None and (-inf, inf): only None allows NaN
        kind = "tightening" if a is None else "loosening"
    yield Change(kind, what, f"range {_ends(a)} -> {_ends(b)}", whom)


def _ends(ends: Any) -> str:
    return "anything" if ends is None else f"[{float(ends[0]):g}, {float(ends[1]):g}]"


def _stakeholders(a: Sequence[Mapping[str, Any]], b: Sequence[Mapping[str, Any]]) -> Iterator[Change]:
    before, after = ({s["name"]: s for s in items} for items in (a, b))
    for name in [*before, *(n for n in after if n not in before)]:
        what = f"stakeholder {name}"
        if name not in after:
            yield Change("breaking", what, "no longer counts", (name,))
        elif name not in before:
            yield Change("breaking", what, "counts now, the others less", (name, *before))
        else:
            mine, theirs = before[name], after[name]
            if mine["weight"] != theirs["weight"]:
                more = "more, the others less" if theirs["weight"] > mine["weight"] else "less, the others more"
                whom = (name, *(other for other in after if other != name))
                yield Change(
                    "breaking", what, f"weight {mine['weight']:g} -> {theirs['weight']:g}: counts {more}", whom
                )
            if mine["unit"] != theirs["unit"]:
                yield Change("breaking", what, f"unit {mine['unit']!r} -> {theirs['unit']!r}", (name,))
            for term in sorted({*mine["utility"], *theirs["utility"]}):
                ours, now = mine["utility"].get(term), theirs["utility"].get(term)
                if ours != now:
                    shown = ["nothing" if value is None else f"{value:g}" for value in (ours, now)]
                    yield Change("breaking", what, f"wants {term}: {shown[0]} -> {shown[1]}", (name,))


def _rule(a: Mapping[str, Any], b: Mapping[str, Any]) -> Iterator[Change]:
    if a["aggregate"] == b["aggregate"]:
        return
    shown = []
    for document in (a, b):
        numbers = {k: v for k, v in document["aggregate"].items() if k not in ("kind", "code")}
        kind = document["aggregate"].get("kind", "a rule of its own")
        shown.append(f"{kind}({', '.join(f'{k}={_short(v)}' for k, v in numbers.items())})")
    whom = tuple(dict.fromkeys(s["name"] for document in (a, b) for s in document["stakeholders"]))
    yield Change("breaking", "aggregate", f"{shown[0]} -> {shown[1]}", whom)


def _short(value: Any) -> str:
    return (
        f"[{', '.join(map(_short, value))}]" if isinstance(value, list) else f"{value:g}" if value is not None else "-"
    )


def _constraints(old: Contract, new: Contract) -> Iterator[Change]:
    rest = list(new.constraints)
    pairs: list[tuple[Constraint, Constraint | None]] = []
    waiting = []
    for constraint in old.constraints:  # first those that are the same to the letter
        same = next((c for c in rest if str(c) == str(constraint)), None)
        if same is None:
            waiting.append(constraint)
        else:
            rest.remove(same)
            pairs.append((constraint, same))
    for constraint in waiting:
        like = next((c for c in rest if _shape(c) == _shape(constraint)), None)
        if like is not None:
            rest.remove(like)
        pairs.append((constraint, like))
    for before, after in pairs:
        whom = _concerned(before, old, new)
        if after is None:
            yield Change("loosening", f"constraint {before}", "removed", whom)
        else:
            yield from _constraint(before, after, whom)
    for constraint in rest:
        yield Change("tightening", f"constraint {constraint}", "added", _concerned(constraint, old, new))


def _constraint(before: Constraint, after: Constraint, whom: tuple[str, ...]) -> Iterator[Change]:
    moves: list[tuple[str, int | None]] = []  # what moved; 1 tighter, -1 looser, None cannot be told
    if _differ(before.limit, after.limit):
        lower = 1 if after.limit < before.limit else -1
        moves.append((f"limit {before.limit:g} -> {after.limit:g}", lower if after.relation == "<=" else -lower))
    one, two = before.of, after.of
    if isinstance(one, CVaR) and isinstance(two, CVaR):
        if _differ(one.level, two.level):
            moves.append((f"level {one.level:g} -> {two.level:g}", 1 if two.level > one.level else -1))
        if (one.at is None) != (two.at is None) or (
            one.at is not None and two.at is not None and _differ(one.at, two.at)
        ):
            moves.append((f"at {one.at} -> {two.at}", None))
    elif isinstance(one, Chance) and isinstance(two, Chance):
        moves += _formula(one.event, two.event, 1 if before.relation == ">=" else -1)
    elif isinstance(one, Formula) and isinstance(two, Formula):
        moves += _formula(one, two, 1)
    if moves:
        ways = {way for _, way in moves}
        kind: Kind = "tightening" if ways == {1} else "loosening" if ways == {-1} else "breaking"
        yield Change(kind, f"constraint {after}", ", ".join(told for told, _ in moves), whom)
    if _differ(before.multiplier, after.multiplier):
        told = f"starts with multiplier {before.multiplier:g} -> {after.multiplier:g}"
        yield Change("neutral", f"constraint {after}", told, whom)


def _formula(a: Formula, b: Formula, way: int) -> Iterator[tuple[str, int | None]]:
    """How the parts of two formulas of one shape moved; `way` is 1 where it must hold, -1 where it must not."""
    match a, b:
        case Event(), Event():
            above = a.relation[0] == ">"
            if _differ(a.value, b.value):
                harder = b.value > a.value if above else b.value < a.value
                yield f"{a} -> {b}", way if harder else -way
            elif a.relation != b.relation:
                yield f"{a} -> {b}", way if b.relation in ("<", ">") else -way
        case Not(), Not():
            yield from _formula(a.of, b.of, -way)
        case ((And() | Or()), (And() | Or())):
            for one, two in zip(a.parts, b.parts, strict=True):
                yield from _formula(one, two, way)
        case ((Always() | Eventually() | Until()), (Always() | Eventually() | Until())):
            if (a.first, a.last) != (b.first, b.last):
                ends = [(w.first, np.inf if w.last is None else w.last) for w in (a, b)]
                wider = ends[1][0] <= ends[0][0] and ends[1][1] >= ends[0][1]
                narrower = ends[0][0] <= ends[1][0] and ends[0][1] >= ends[1][1]
                harder = 1 if (wider if isinstance(a, Always) else narrower) else -1
                told = [f"[{w[0]}, {'end' if np.isinf(w[1]) else w[1]}]" for w in ends]
                yield f"window {told[0]} -> {told[1]}", way * harder if wider or narrower else None
            if isinstance(a, Until) and isinstance(b, Until):
                yield from _formula(a.left, b.left, way)
                yield from _formula(a.right, b.right, way)
            elif not isinstance(a, Until) and not isinstance(b, Until):
                yield from _formula(a.of, b.of, way)


def _shape(of: Any) -> Any:
    """What is limited and which way, without numbers."""
    match of:
        case Constraint():
            return of.relation, _shape(of.of)
        case Expect() | CVaR():
            return type(of).__name__, name_of(of.term)
        case Chance():
            return "Chance", _shape(of.event)
        case Event():
            return "Event", name_of(of.term), of.relation[0]
        case And() | Or():
            return type(of).__name__, tuple(_shape(part) for part in of.parts)
        case Until():
            return "Until", _shape(of.left), _shape(of.right)
    return type(of).__name__, _shape(of.of)


def _order(old: Contract, new: Contract) -> Iterator[Change]:
    """Columns of results and parameters that moved though nothing else did."""
    for what, a, b in (
        ("stakeholders", [s.name for s in old.stakeholders], [s.name for s in new.stakeholders]),
        ("constraints", [str(c) for c in old.constraints], [str(c) for c in new.constraints]),
    ):
        kept = [name for name in a if name in b]
        if kept != [name for name in b if name in a]:
            yield Change("breaking", f"order of {what}", "columns of results and parameters move", _EVERYONE)


def _users(term: str, *contracts: Contract) -> tuple[str, ...]:
    found = [s.name for contract in contracts for s in contract.stakeholders if term in s.utility]
    return tuple(dict.fromkeys(found)) or _EVERYONE


def _concerned(constraint: Constraint, old: Contract, new: Contract) -> tuple[str, ...]:
    names = {name_of(term) for term in terms_in(constraint.of)}
    found = [s.name for contract in (old, new) for s in contract.stakeholders if names & set(s.utility)]
    return tuple(dict.fromkeys(found)) or _EVERYONE


def _differ(a: float, b: float) -> bool:
    """Whether two numbers differ as the float32 that they are computed with."""
    return bool(np.float32(a) != np.float32(b))
