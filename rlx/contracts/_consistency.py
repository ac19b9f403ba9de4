"""Whether a contract's numbers agree with each other: weights, the rule, units, limits, and its own examples."""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import jax
import numpy as np

from ._compile import compile
from ._constraints import (
    RELATIONS,
    Always,
    And,
    Chance,
    CVaR,
    Event,
    Eventually,
    Expect,
    Formula,
    Not,
    Or,
    Until,
    events_in,
    name_of,
)
from ._contract import Contract, Example, all_terms, number_problems
from ._terms import Term
from .aggregate import Nash

Verdict = Literal["PROVED", "REFUTED", "UNKNOWN"]
Ranges = dict[str, tuple[float, float]]
_WITNESSES = 4096


@dataclass(frozen=True)
class Check:
    """One statement about a contract and what is known of it.

    Attributes:
      name: what was checked, "range:fluency".
      verdict: "PROVED" for all inputs, "REFUTED" by the counterexample (or by what detail says), "UNKNOWN" otherwise.
      detail: the statement and the evidence.
      counterexample: a batch (arrays by name) or utilities that break the statement; None if there is none.
    """

    name: str
    verdict: Verdict
    detail: str
    counterexample: Any = None


def consistency(contract: Contract, seed: int) -> list[Check]:
    """The checks of a well-named contract that need no signal."""
    checks = [_check_weights(contract), _check_monotone(contract, seed), *_check_disagreement(contract)]
    checks += [_check_units(contract), *_check_limits(contract)]
    return checks + [_check_example(contract, example) for example in contract.tests]


def _check_weights(contract: Contract) -> Check:
    wrong = [f"{s.name} has weight {s.weight}" for s in contract.stakeholders if not s.weight >= 0]
    if not wrong and not any(s.weight > 0 for s in contract.stakeholders):
        wrong = ["all weights are 0: nobody counts"]
    return Check("weights", "REFUTED" if wrong else "PROVED", "; ".join(wrong) or "none is negative, one is positive")


def _check_monotone(contract: Contract, seed: int) -> Check:
    rule, weights = contract.aggregate, np.asarray([s.weight for s in contract.stakeholders], np.float32)
    statement = "more utility for one stakeholder of a text never lowers its value"
    if getattr(rule, "monotone", False) and np.all(weights >= 0) and np.any(weights > 0):
        return Check("monotone", "PROVED", f"{statement}: {type(rule).__name__} with weights >= 0")
    params = rule.init([s.name for s in contract.stakeholders])
    group = (getattr(rule, "group", None) or 4) if getattr(rule, "across_texts", False) else 1
    apply: Callable[..., Any] = jax.jit(rule.apply)
    if group > 1:
        apply = jax.jit(jax.vmap(rule.apply, in_axes=(0, None, None)))  # one group a row
    rng = np.random.default_rng(seed)
    ranges = np.array(utility_ranges(contract))
    for _ in range(64):
        shape = (256, len(weights)) if group == 1 else (256, group, len(weights))
        less = rng.uniform(ranges[:, 0], ranges[:, 1], shape).astype(np.float32)
        more = less.copy()
        first = more if group == 1 else more[:, 0]  # the text that gains; the others of its group stay
        rows, who = np.arange(256), rng.integers(len(weights), size=256)
        first[rows, who] += rng.uniform(0.01, 1.0, 256).astype(np.float32) * (1.0 + np.abs(first[rows, who]))
        before, after = (np.asarray(apply(u, weights, params)).reshape(256, -1)[:, 0] for u in (less, more))
        worse = np.flatnonzero(after < before - 1e-5 * (1.0 + np.abs(before)))
        if worse.size:
            row = int(worse[0])
            told = f"{statement}: from {before[row]:g} to {after[row]:g}"
            return Check("monotone", "REFUTED", told, {"less": less[row], "more": more[row]})
    return Check("monotone", "UNKNOWN", f"{statement}: no rule proves it, 16,384 drawn steps kept it")


def utility_ranges(contract: Contract) -> list[tuple[float, float]]:
    """The range of each utility if each term takes any value in its declared range."""
    terms, ranges = all_terms(contract), []
    for stakeholder in contract.stakeholders:
        ends = [
            sorted((c * terms[n].range[0], c * terms[n].range[1])) if c else [0.0, 0.0]
            for n, c in stakeholder.utility.items()
            if reduced_range(terms[n]) is not None
        ]
        ranges.append((sum(e[0] for e in ends), sum(e[1] for e in ends)))
    return ranges


def reduced_range(term: Term) -> tuple[float, float] | None:
    """The range of a term once it is one number a text: a sum over tokens has none without the length."""
    return None if term.level == "token" and term.reduce == "sum" else term.range


def _check_disagreement(contract: Contract) -> list[Check]:
    rule = contract.aggregate
    if not isinstance(rule, Nash):
        return []
    terms, names = all_terms(contract), [s.name for s in contract.stakeholders]
    below, never = [], []
    for stakeholder, value, (low, high) in zip(
        contract.stakeholders, rule.values(names), utility_ranges(contract), strict=True
    ):
        if any(reduced_range(terms[name]) is None for name in stakeholder.utility):
            below.append(stakeholder.name)
        elif value >= high:
            never.append(f"{stakeholder.name} has at most {high:g}, {value:g} without agreement")
        elif value > low:
            below.append(stakeholder.name)
    if never:
        return [Check("disagreement", "REFUTED", "no text is worth an agreement to all: " + "; ".join(never))]
    if below:
        told = f"texts may leave {', '.join(below)} below the disagreement point; there the logarithm is a tangent"
        return [Check("disagreement", "UNKNOWN", told)]
    return [Check("disagreement", "PROVED", "no text leaves anyone below the disagreement point")]


def _check_units(contract: Contract) -> Check:
    """Utilities are sums of one unit; a rule that compares people needs one unit for all."""
    terms, wrong, unknown, units = all_terms(contract), [], [], {}
    for stakeholder in contract.stakeholders:
        used = {terms[name].unit for name in stakeholder.utility}
        if stakeholder.unit:
            units[stakeholder.name] = stakeholder.unit
        elif len(used - {""}) > 1:
            wrong.append(f"{stakeholder.name} adds {' and '.join(sorted(used - {''}))}; give the utility a unit")
        elif len(used) > 1 or "" in used:
            unknown.append(f"{stakeholder.name} uses a term without a unit")
        else:
            units[stakeholder.name] = used.pop()
    rule = contract.aggregate
    if getattr(rule, "comparable", True):
        found = sorted(set(units.values()))
        if len(found) > 1:
            wrong.append(f"{type(rule).__name__} compares people, whose units are {', '.join(found)}")
    if wrong:
        return Check("units", "REFUTED", "; ".join(wrong))
    if unknown:
        return Check("units", "UNKNOWN", "; ".join(unknown))
    return Check("units", "PROVED", "no sum or comparison of two units")


def _check_example(contract: Contract, example: Example) -> Check:
    label = f"test:{example.name}"
    batch = {}
    for name, value in example.batch.items():
        declared = contract.signals.get(name)
        array = np.asarray(value, declared.dtype if declared else None)
        narrow = {"f": np.float32, "i": np.int32}.get(array.dtype.kind)
        batch[name] = array if declared or narrow is None else array.astype(narrow)
    problems = number_problems(contract)
    if problems:
        return Check(label, "UNKNOWN", f"not run: {'; '.join(problems)}")
    reward = compile(contract)
    try:
        out = reward(reward.params, batch)
    except (TypeError, ValueError, KeyError, IndexError) as error:
        return Check(label, "REFUTED", f"it cannot be evaluated, {type(error).__name__}: {error}", batch)
    wrong = []
    for name, ends in [*example.terms.items(), *([("total", example.total)] if example.total else [])]:
        values = np.asarray(out.total if name == "total" and name not in example.terms else out.terms[name])
        low, high = (np.float32(end) for end in ends)
        if not np.all((values >= low) & (values <= high)):
            wrong.append(f"{name} is {values.tolist()}, expected [{low:g}, {high:g}]")
    total = np.asarray(out.total)
    if example.ranking:
        if sorted(example.ranking) != list(range(len(total))):
            wrong.append(f"ranking {list(example.ranking)} does not name each of {len(total)} texts once")
        elif not np.all(np.diff(total[list(example.ranking)]) < 0):
            wrong.append(f"totals {total.tolist()} do not fall in the order {list(example.ranking)}")
    if example.satisfied is not None:
        satisfied = (~np.any(np.asarray(out.violated), axis=1)).tolist()
        if satisfied != list(example.satisfied):
            wrong.append(f"satisfied is {satisfied}, expected {list(example.satisfied)}")
    return Check(label, "REFUTED" if wrong else "PROVED", "; ".join(wrong) or "as expected", batch if wrong else None)


def _check_limits(contract: Contract) -> list[Check]:
    if not contract.constraints:
        return []
    ranges: Ranges = {}
    for name, term in all_terms(contract).items():
        whole = reduced_range(term)
        ranges[name] = (-math.inf, math.inf) if whole is None else whole
    wrong = [f"{c} starts with multiplier {c.multiplier}, below 0" for c in contract.constraints if c.multiplier < 0]
    wrong += _contradictory_means(contract, ranges) + _contradictory_chances(contract, ranges)
    tokens = {name: term.range for name, term in all_terms(contract).items()}
    formulas = [c.of for c in contract.constraints if isinstance(c.of, Formula) and c.limit == 0]
    for formula in formulas:
        tokens, empty = _narrowed(formula, tokens)
        wrong += [f"{formula} cannot be met: it leaves no value of {name}" for name in empty]
    if not wrong:
        wrong += [f"{of} cannot be met inside the declared ranges" for of in formulas if _best(of, tokens) < 0]
    if wrong:
        return [Check("limits", "REFUTED", "; ".join(wrong))]
    if formulas and not _has_witness(formulas, tokens):
        return [Check("limits", "UNKNOWN", "no contradiction found, and no constant text that meets every formula")]
    return [Check("limits", "PROVED", "none contradicts a range or another on the same term")]


def _contradictory_means(contract: Contract, ranges: Ranges) -> list[str]:
    """Limits on means and tails of one term that leave nothing: the mean is at most the CVaR of the highest values."""
    wrong, allowed = [], dict(ranges)
    for constraint in contract.constraints:
        if not isinstance(constraint.of, (Expect, CVaR)):
            continue
        name, limit = name_of(constraint.of.term), float(constraint.limit)
        low, high = allowed[name]
        low, high = (low, min(high, limit)) if constraint.relation == "<=" else (max(low, limit), high)
        if not low <= high:
            wrong.append(f"{constraint} cannot be met: it leaves [{low:g}, {high:g}]")
        allowed[name] = (low, high)
    return wrong


def _contradictory_chances(contract: Contract, ranges: Ranges) -> list[str]:
    """Limits on probabilities of which one is impossible, or two are: a wider event is at least as probable."""
    wrong, most, least = [], [], []
    for constraint in contract.constraints:
        if not isinstance(constraint.of, Chance):
            continue
        limit = float(constraint.limit)
        possible = (0.0, 1.0)
        event = constraint.of.event
        if isinstance(event, Event):
            ends = [RELATIONS[event.relation](end, event.value) for end in ranges[name_of(event.term)]]
            possible = (float(all(ends)), float(any(ends)))
        (most if constraint.relation == "<=" else least).append((constraint, limit))
        if limit < possible[0] if constraint.relation == "<=" else limit > possible[1]:
            wrong.append(f"{constraint} cannot be met: the probability is in [{possible[0]:g}, {possible[1]:g}]")
    for (upper, highest), (lower, lowest) in itertools.product(most, least):
        if highest < lowest and _implies(lower.of.event, upper.of.event):
            wrong.append(f"{upper} contradicts {lower}")
    return wrong


def _implies(narrow: Formula, wide: Formula) -> bool:
    """Whether one event is known to be part of the other."""
    if str(narrow) == str(wide):
        return True
    if not (isinstance(narrow, Event) and isinstance(wide, Event)) or name_of(narrow.term) != name_of(wide.term):
        return False
    if narrow.relation[0] != wide.relation[0]:
        return False
    beyond = narrow.value - wide.value if narrow.relation[0] == ">" else wide.value - narrow.value
    return beyond > 0 or (beyond == 0 and ("=" in wide.relation or "=" not in narrow.relation))


def _narrowed(of: Formula, ranges: Ranges) -> tuple[Ranges, list[str]]:
    """The ranges that are left if `Always(event)` holds at every token; and the terms that nothing is left of."""
    narrowed, empty = dict(ranges), []
    for event in _always(of):
        name = name_of(event.term)
        low, high = narrowed[name]
        edge = float(event.value)
        if event.relation in ("<", "<="):
            high = min(high, np.nextafter(edge, -math.inf) if event.relation == "<" else edge)
        else:
            low = max(low, np.nextafter(edge, math.inf) if event.relation == ">" else edge)
        narrowed[name] = (low, high)
        if not low <= high:
            empty.append(name)
            narrowed[name] = ranges[name]
    return narrowed, empty


def _always(of: Formula) -> Iterator[Event]:
    match of:
        case Event():
            yield of
        case And():
            for part in of.parts:
                yield from _always(part)
        case Always() if of.first == 0 and of.last is None:
            yield from _always(of.of)


def _best(of: Formula, ranges: Ranges) -> float:
    """An upper bound of the robustness: below 0, no text satisfies the formula."""
    return _bounds(of, ranges)[1]


def _bounds(of: Formula, ranges: Ranges) -> tuple[float, float]:
    match of:
        case Event():
            low, high = ranges[name_of(of.term)]
            low, high = (
                (low - of.value, high - of.value) if of.relation in (">", ">=") else (of.value - high, of.value - low)
            )
            return low, high
        case Not():
            low, high = _bounds(of.of, ranges)
            return -high, -low
        case And() | Or():
            parts = [_bounds(part, ranges) for part in of.parts]
            pick = min if isinstance(of, And) else max
            return pick(p[0] for p in parts), pick(p[1] for p in parts)
        case Always() | Eventually():
            low, high = _bounds(of.of, ranges)
            whole = of.first == 0  # a window that may lie behind the end is true, or false, of nothing
            return (low, high if whole else math.inf) if isinstance(of, Always) else (low if whole else -math.inf, high)
        case Until():
            left, right = _bounds(of.left, ranges), _bounds(of.right, ranges)
            return (right[0] if of.first == 0 else -math.inf), right[1] if of.first == 0 else min(left[1], right[1])
    raise TypeError(f"formula: {type(of).__name__} has no bounds")


def _has_witness(formulas: list[Formula], ranges: Ranges) -> bool:
    """Whether some text whose terms are constant satisfies every formula."""
    values: dict[str, set[float]] = {}
    for event in itertools.chain.from_iterable(events_in(of) for of in formulas):
        low, high = ranges[name_of(event.term)]
        edge = float(event.value)
        step = 1e-3 * (1.0 + abs(edge))
        found = values.setdefault(name_of(event.term), {end for end in (low, high) if math.isfinite(end)})
        found |= {value for value in (edge - step, edge, edge + step) if low <= value <= high}
    names = list(values)
    for point in itertools.islice(itertools.product(*(sorted(values[n]) for n in names)), _WITNESSES):
        chosen = dict(zip(names, point, strict=True))
        if all(_holds(of, chosen) for of in formulas):
            return True
    return False


def _holds(of: Formula, values: Mapping[str, float]) -> bool:
    """The truth of a formula on an endless text whose terms are constant."""
    match of:
        case Event():
            return bool(RELATIONS[of.relation](values[name_of(of.term)], of.value))
        case Not():
            return not _holds(of.of, values)
        case And():
            return all(_holds(part, values) for part in of.parts)
        case Or():
            return any(_holds(part, values) for part in of.parts)
        case Always() | Eventually():
            return _holds(of.of, values)
        case Until():
            return _holds(of.right, values) and (of.first == 0 or _holds(of.left, values))
    raise TypeError(f"formula: {type(of).__name__} has no truth")
