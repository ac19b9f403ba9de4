"""A contract as one pure function of its parameters and a batch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rlx._checks import is_array
from rlx._numerics import wide

from ._contract import RELATIONS, Batch, Chance, Constraint, Contract, Term, all_terms, name_of, naming_problems

Params = dict[str, jax.Array]


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
      violated: `[B, M]`, whether the text's own cost is above the threshold.
    """

    total: jax.Array
    token: jax.Array | None
    terms: dict[str, jax.Array]
    utilities: jax.Array
    costs: jax.Array
    violated: jax.Array


@dataclass(frozen=True, eq=False)
class Reward:
    """A compiled contract: `reward(params, batch) -> RewardOut`; `reward.params` are the contract's own values.

    Attributes:
      contract: what was compiled.
      params: `weights [K]`, `utility [K, N]` (coefficients), `thresholds [M]`, `levels [M]` (the c of
        `Chance(term > c)`), `multipliers [M]`, and what the aggregate adds (`disagreement [K]`, `floor []`,
        `temperature []`). A new value never retraces.
    """

    contract: Contract
    params: Params

    def __call__(self, params: Params, batch: Batch) -> RewardOut:
        """Evaluate the contract on a batch."""
        return _evaluate(self.contract, params, batch)


def compile(contract: Contract) -> Reward:
    """The contract as a pure function.

    total = W(u) - sum_m multiplier_m * (cost_m - threshold_m),   u_k = sum_n coefficient_kn * term_n

    A constraint whose multiplier is 0 adds exactly 0 to the reward of every text, satisfied or not. One whose
    multiplier is positive adds the same constant, multiplier * threshold, to all texts: it moves no advantage, and
    makes the mean of `total` the Lagrangian.

    Args:
      contract: what to compile.

    Returns:
      A `Reward`; call it as `reward(params, batch)` under jit, vmap, grad, shard_map or pmap.

    Raises:
      ValueError: a name is missing, used twice or ambiguous. When called: a term's shape is not what its level
        says, or a token-level term meets a batch without "mask".
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
    problems = naming_problems(contract)
    if problems:
        raise ValueError(f"contract {contract.name!r}: " + "; ".join(problems))
    names = list(all_terms(contract))
    stakeholders, constraints = contract.stakeholders, contract.constraints
    utility = [[float(s.utility.get(name, 0.0)) for name in names] for s in stakeholders]
    chances = [c.of.event.value if isinstance(c.of, Chance) else 0.0 for c in constraints]
    params = {
        "weights": _array([s.weight for s in stakeholders]),
        "utility": _array(utility),
        "thresholds": _array([c.threshold for c in constraints]),
        "levels": _array(chances),
        "multipliers": _array([c.multiplier for c in constraints]),
    }
    return Reward(contract, params | contract.aggregate.init([s.name for s in stakeholders]))


def term_values(term: Term, batch: Batch) -> jax.Array:
    """What the term's function returns, in float32 or wider, its shape checked against its level."""
    value = term.fn(batch)
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


def _evaluate(contract: Contract, params: Params, batch: Batch) -> RewardOut:
    terms = all_terms(contract)
    raw = {name: term_values(term, batch) for name, term in terms.items()}
    dtype = wide(*(value.dtype for value in raw.values()))
    raw = {name: value.astype(dtype) for name, value in raw.items()}
    sizes = {value.shape[0] for value in raw.values()}
    if len(sizes) > 1:
        shapes = ", ".join(f"{name} {value.shape}" for name, value in raw.items())
        raise ValueError(f"terms: they disagree on the batch size B: {shapes}")
    params = {name: jnp.asarray(value).astype(dtype) for name, value in params.items()}
    # what each token adds to its term: [B, T], rows sum to the reduced term
    paid = {name: _per_token(terms[name], value, batch) for name, value in raw.items() if value.ndim == 2}
    reduced = {name: jnp.sum(paid[name], axis=-1) if name in paid else value for name, value in raw.items()}

    names = list(terms)
    columns = []
    for k, stakeholder in enumerate(contract.stakeholders):
        used = [n for n, name in enumerate(names) if name in stakeholder.utility]
        columns.append(sum(params["utility"][k, n] * reduced[names[n]] for n in used))
    utilities = jnp.stack(columns).T  # rows of [B] are vectors, columns of K are not
    batch_size = utilities.shape[0]
    costs = [_cost(c, reduced[name_of(c.term)], params["levels"][m]) for m, c in enumerate(contract.constraints)]
    costs = jnp.stack(costs).T if costs else jnp.zeros((batch_size, 0), dtype)
    thresholds = jnp.broadcast_to(params["thresholds"], costs.shape)

    def aggregate(u: jax.Array) -> jax.Array:
        return contract.aggregate.apply(u, params["weights"], params)

    penalty = jnp.sum(jnp.broadcast_to(params["multipliers"], costs.shape) * (costs - thresholds), axis=-1)
    token = None
    if paid:
        welfare, pullback = jax.vjp(aggregate, utilities)
        (prices,) = pullback(jnp.ones_like(welfare))
        total = welfare - penalty
        token = _over_time(contract, params, batch["mask"], names, paid, reduced, prices, total)
    else:
        total = aggregate(utilities) - penalty
    return RewardOut(total, token, reduced, utilities, costs, costs > thresholds)


def _cost(constraint: Constraint, value: jax.Array, level: jax.Array) -> jax.Array:
    if isinstance(constraint.of, Chance):
        happens = RELATIONS[constraint.of.event.relation](value, level)
        cost = (happens if constraint.relation == "<=" else ~happens).astype(value.dtype)
        return jnp.where(jnp.isnan(value), jnp.nan, cost)  # what was not measured is not satisfied
    return value if constraint.relation == "<=" else -value


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
            if name_of(constraint.term) == name and not isinstance(constraint.of, Chance):
                price = price - params["multipliers"][m] * (1.0 if constraint.relation == "<=" else -1.0)
        price = jnp.broadcast_to(jnp.asarray(price, total.dtype), total.shape)
        token = token + price[:, None] * share
        rest = rest - price * reduced[name]
    positions = jnp.arange(token.shape[-1], dtype=jnp.int32)[None, :]
    last = jnp.max(jnp.where(jnp.asarray(mask).astype(jnp.bool_), positions, 0), axis=-1, keepdims=True)
    return token + jnp.where(positions == last, rest[:, None], 0.0)


def _array(values: list[Any]) -> jax.Array:
    return jnp.asarray(np.asarray(values, np.float32))
