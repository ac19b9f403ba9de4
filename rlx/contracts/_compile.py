"""A contract as one pure function of its parameters and a batch."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rlx._checks import is_array
from rlx._numerics import wide

from ._constraints import Chance, Event, Expect, Formula, events_in, name_of
from ._contract import Contract, all_terms, check_contract, level_values, naming_problems, number_problems
from ._costs import Cost, cost_of
from ._temporal import Trace, compact
from ._terms import Batch, Term

Params = dict[str, Any]


class RewardOut(NamedTuple):
    """What a contract says of a batch.

    Attributes:
      total: `[B]`, the aggregate minus multipliers times (cost - threshold).
      token: `[B, T]`, the same reward paid over time: each row sums to `total`. A token-level term is paid where it
        occurs (at the aggregate's first-order price), the rest on the last unmasked token. None if no term is
        token-level.
      terms: `[B]` by name; token-level terms are reduced by the mask.
      utilities: `[B, K]`.
      costs: `[B, M]`, such that constraint m says: mean cost <= threshold.
      violated: `[B, M]`, whether the text's own cost is above the threshold (of a formula: whether it is false). A
        text whose cost is NaN violates.
      robustness: `[B, M]`, by how much the text meets the constraint: threshold - cost, and of a formula its robustness
        plus the shortfall that is allowed.
    """

    total: jax.Array
    token: jax.Array | None
    terms: dict[str, jax.Array]
    utilities: jax.Array
    costs: jax.Array
    violated: jax.Array
    robustness: jax.Array


@dataclass(frozen=True, eq=False)
class Reward:
    """A compiled contract: `reward(params, batch) -> RewardOut`; `reward.params` are the contract's own values.

    Attributes:
      contract: what was compiled.
      params: `weights [K]`, `utility [K, N]` (coefficients), `thresholds [M]`, `multipliers [M]`, `levels [L]` (the
        numbers that constraints compare with, in the order they are written: `c` of `term > c`, `level` and `at` of
        `CVaR`), what the aggregate adds (`disagreement [K]`, `floor []`, `temperature []`, ...), and `terms`, the
        parameters of learned terms by name. A new value never retraces.
    """

    contract: Contract
    params: Params
    _call: Any = dataclasses.field(init=False, repr=False)

    def __post_init__(self) -> None:
        contract, shapes = self.contract, {name: np.shape(v) for name, v in self.params.items() if name != "terms"}

        def evaluate(params: Params, batch: Batch) -> RewardOut:
            _check_params(params, shapes, self.params)
            return _evaluate(contract, params, batch)

        object.__setattr__(self, "_call", jax.jit(evaluate))

    def __call__(self, params: Params, batch: Batch) -> RewardOut:
        """Evaluate the contract on a batch: arrays by signal name."""
        if not isinstance(batch, Mapping):
            raise TypeError(f"batch: expected a dict of arrays by signal name, got {type(batch).__name__}")
        try:
            return self._call(params, batch)
        except TypeError as error:
            for name, value in batch.items():
                if not is_array(value) and not isinstance(value, (bool, int, float)):
                    kind = type(value).__name__
                    raise TypeError(f"batch: {name!r} is {kind}, expected an array; leave it out") from error
            raise


def compile(contract: Contract) -> Reward:
    """The contract as a pure function.

    total = W(u) - sum_m multiplier_m * (cost_m - threshold_m),   u_k = sum_n coefficient_kn * term_n

    A constraint whose multiplier is 0 adds exactly 0 to the reward of every text, satisfied or not. One whose
    multiplier is positive adds the same constant, multiplier * threshold, to all texts: it moves no advantage, and
    makes the mean of `total` the Lagrangian. A text that satisfies a formula costs 0.

    Args:
      contract: what to compile.

    Returns:
      A `Reward`; call it as `reward(params, batch)` under jit, vmap, grad, shard_map or pmap. It is compiled once for
      each shape of the batch.

    Raises:
      ValueError: a name is missing, used twice or ambiguous; a weight, multiplier or limit makes no sense. When called:
        a term's shape is not what its level says, a token-level term meets a batch without "mask", or params have
        another shape than `reward.params`.
      TypeError: when called: a term returns something that is not a real array.

    Example:
      >>> from rlx.contracts import Contract, Stakeholder, Term, Chance
      >>> words = Term("words", lambda batch: batch["words"])
      >>> reward = compile(Contract("demo", terms=(words,), stakeholders=(Stakeholder("reader", {"words": 1.0}),),
      ...                           constraints=(Chance(words > 0.5) <= 0.25,)))
      >>> out = reward(reward.params, {"words": jnp.array([0.2, 0.8])})
      >>> out.total.tolist(), out.costs[:, 0].tolist()
      ([0.20000000298023224, 0.800000011920929], [0.0, 1.0])
    """
    check_contract("contract", contract)
    problems = naming_problems(contract) + number_problems(contract)
    if problems:
        raise ValueError(f"contract {contract.name!r}: " + "; ".join(problems))
    terms = all_terms(contract)
    stakeholders, constraints = contract.stakeholders, contract.constraints
    params = {
        "weights": _array([s.weight for s in stakeholders]),
        "utility": _array([[float(s.utility.get(name, 0.0)) for name in terms] for s in stakeholders]),
        "thresholds": _array([c.threshold for c in constraints]),
        "levels": _array(level_values(contract)),
        "multipliers": _array([c.multiplier for c in constraints]),
    }
    learned = {name: jax.tree.map(jnp.asarray, term.params) for name, term in terms.items() if term.params is not None}
    own = {n: jnp.asarray(v) for n, v in contract.aggregate.init([s.name for s in stakeholders]).items()}
    return Reward(contract, params | own | ({"terms": learned} if learned else {}))


def term_values(term: Term, batch: Batch, params: Any = None) -> jax.Array:
    """What the term's function returns, in float32 or wider, its shape checked against its level."""
    try:
        value = term(batch, params)
    except KeyError as error:
        there = ", ".join(map(repr, batch)) or "nothing"
        raise KeyError(f"term {term.name!r}: the batch has no {error}, it has {there}") from error
    if not is_array(value):
        raise TypeError(f"term {term.name!r}: fn returned {type(value).__name__}, expected an array")
    value = jnp.asarray(value)
    if not (jnp.issubdtype(value.dtype, jnp.number) or value.dtype == jnp.bool_) or jnp.iscomplexobj(value):
        raise TypeError(f"term {term.name!r}: fn returned dtype {value.dtype}, expected a real number or a boolean")
    dims = "[B]" if term.level == "sequence" else "[B, T]"
    if value.ndim != (1 if term.level == "sequence" else 2):
        raise ValueError(f"term {term.name!r}: fn returned shape {value.shape}, level {term.level!r} means {dims}")
    floating = jnp.issubdtype(value.dtype, jnp.floating)
    return value.astype(wide(value.dtype) if floating else jnp.float32)


def _check_params(params: Any, shapes: Mapping[str, tuple[int, ...]], own: Params) -> None:
    if not isinstance(params, Mapping):
        raise TypeError(f"params: expected a dict like reward.params, got {type(params).__name__}")
    known = {*shapes, *(["terms"] if "terms" in own else [])}
    wrong = [f"{name!r} is missing" for name in sorted(known - set(params))]
    wrong += [f"{name!r} is none of {', '.join(sorted(known))}" for name in sorted(set(params) - known)]
    lists = [n for n in shapes if n in params and not is_array(params[n]) and not isinstance(params[n], (int, float))]
    wrong += [f"{name!r} is {type(params[name]).__name__}, expected an array" for name in lists]
    wrong += [
        f"{name!r} has shape {np.shape(params[name])}, expected {shape}"
        for name, shape in shapes.items()
        if name in params and name not in lists and np.shape(params[name]) != shape
    ]
    if wrong:
        raise ValueError(f"params: {'; '.join(wrong)}")


def _evaluate(contract: Contract, params: Params, batch: Batch) -> RewardOut:
    terms = all_terms(contract)
    learned = params.get("terms", {})
    raw = {name: term_values(term, batch, learned.get(name)) for name, term in terms.items()}
    dtype = wide(*(value.dtype for value in raw.values()))
    raw = {name: value.astype(dtype) for name, value in raw.items()}
    sizes = {value.shape[0] for value in raw.values()}
    if len(sizes) > 1:
        shapes = ", ".join(f"{name} {value.shape}" for name, value in raw.items())
        raise ValueError(f"terms: they disagree on the batch size B: {shapes}")
    params = {name: jnp.asarray(value).astype(dtype) for name, value in params.items() if name != "terms"}
    tokens = {name: value for name, value in raw.items() if value.ndim == 2}
    # what each token adds to its term: [B, T], rows sum to the reduced term
    paid = {name: _per_token(terms[name], value, batch) for name, value in tokens.items()}
    reduced = {name: jnp.sum(paid[name], axis=-1) if name in paid else value for name, value in raw.items()}

    names = list(terms)
    columns = []
    for k, stakeholder in enumerate(contract.stakeholders):
        used = [n for n, name in enumerate(names) if name in stakeholder.utility]
        columns.append(sum(params["utility"][k, n] * reduced[names[n]] for n in used))
    utilities = jnp.stack(columns, axis=-1)  # rows of [B] are vectors, columns of K are not
    costs = _costs(contract, params, reduced, tokens, batch)
    penalty = sum(params["multipliers"][m] * (c.cost - params["thresholds"][m]) for m, c in enumerate(costs))

    def aggregate(u: jax.Array) -> jax.Array:
        return contract.aggregate.apply(u, params["weights"], params)

    token = None
    if paid:
        welfare, pullback = jax.vjp(aggregate, utilities)
        (prices,) = pullback(jnp.ones_like(welfare))
        total = welfare - penalty
        token = _over_time(contract, params, batch["mask"], names, paid, reduced, prices, total)
    else:
        if hasattr(contract.aggregate, "of_columns"):
            total = contract.aggregate.of_columns(columns, params["weights"], params) - penalty
        else:
            total = aggregate(utilities) - penalty
    cost, violated, robustness = _together(costs, params["thresholds"], utilities)
    return RewardOut(total, token, reduced, utilities, cost, violated, robustness)


def _costs(
    contract: Contract,
    params: Params,
    reduced: Mapping[str, jax.Array],
    tokens: Mapping[str, jax.Array],
    batch: Batch,
) -> list[Cost]:
    judged = {name_of(event.term) for c in contract.constraints for event in events_in(c.of) if not _is_simple(c.of)}
    moved, present = {}, None
    if judged & set(tokens):
        moved, present = compact({name: tokens[name] for name in judged & set(tokens)}, jnp.asarray(batch["mask"]))
    trace = Trace(reduced, moved, present, {name: term.range for name, term in all_terms(contract).items()})
    levels = iter([params["levels"][i] for i in range(params["levels"].shape[0])])
    return [cost_of(c, reduced, trace, levels, params["thresholds"][m]) for m, c in enumerate(contract.constraints)]


def _is_simple(of: Any) -> bool:
    """Whether it needs the reduced terms only."""
    return not isinstance(of, Formula) and not (isinstance(of, Chance) and not isinstance(of.event, Event))


def _together(costs: list[Cost], thresholds: jax.Array, utilities: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Columns `[B]` to `[B, M]`; what a limit on a mean makes of a cost is computed for all at once."""
    if not costs:
        none = jnp.zeros((utilities.shape[0], 0), utilities.dtype)
        return none, none.astype(jnp.bool_), none
    cost = jnp.stack([c.cost for c in costs], axis=-1)
    allowed = jnp.broadcast_to(thresholds, cost.shape)
    violated, robustness = ~(cost <= allowed), allowed - cost
    for m, c in enumerate(costs):
        if c.violated is not None and c.robustness is not None:
            violated, robustness = violated.at[:, m].set(c.violated), robustness.at[:, m].set(c.robustness)
    return cost, violated, robustness


def _per_token(term: Term, value: jax.Array, batch: Batch) -> jax.Array:
    """Each token's share of the reduced term: masked values, divided by their number for a mean."""
    if not isinstance(batch, Mapping) or "mask" not in batch:
        raise ValueError(f'mask: token-level term {term.name!r} is reduced by batch["mask"] [B, T], which is missing')
    mask: Any = jnp.asarray(batch["mask"])
    if mask.shape != value.shape:
        raise ValueError(f"term {term.name!r}: shape {value.shape} disagrees with mask {mask.shape}")
    mask = mask.astype(value.dtype)
    kept = jnp.where(mask > 0, value, 0.0) * mask
    if term.reduce == "sum":
        return kept
    return kept / jnp.maximum(jnp.sum(mask, axis=-1, keepdims=True), 1.0)


def _over_time(
    contract: Contract,
    params: Params,
    mask: jax.Array,
    names: list[str],
    paid: dict[str, jax.Array],
    reduced: dict[str, jax.Array],
    prices: jax.Array,
    total: jax.Array,
) -> jax.Array:
    token = jnp.zeros_like(next(iter(paid.values())))
    rest = total
    for name, share in paid.items():
        price = sum(
            prices[:, k] * params["utility"][k, names.index(name)]
            for k, stakeholder in enumerate(contract.stakeholders)
            if name in stakeholder.utility
        )
        for m, constraint in enumerate(contract.constraints):
            if isinstance(constraint.of, Expect) and name_of(constraint.of.term) == name:
                price = price - params["multipliers"][m] * (1.0 if constraint.relation == "<=" else -1.0)
        price = jnp.broadcast_to(jnp.asarray(price, total.dtype), total.shape)
        token = token + price[:, None] * share
        rest = rest - price * reduced[name]
    positions = jnp.arange(token.shape[-1], dtype=jnp.int32)[None, :]
    if token.shape[-1] == 0:  # no room for a token, none to pay
        return token
    last = jnp.max(jnp.where(jnp.asarray(mask).astype(jnp.bool_), positions, 0), axis=-1, keepdims=True)
    return token + jnp.where(positions == last, rest[:, None], 0.0)


def _array(values: list[Any]) -> jax.Array:
    return jnp.asarray(np.asarray(values, np.float32))
