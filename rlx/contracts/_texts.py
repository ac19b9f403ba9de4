"""A compiled contract applied to texts: encode on the host, evaluate under jit, numpy back."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import jax
import numpy as np

from rlx._checks import is_array

from ._compile import Params, Reward
from ._constraints import CVaR, name_of, terms_in
from ._contract import Contract, all_terms
from ._encode import Columns, Encode, encode_bytes, padded_rows, power_of_two, texts_of
from ._terms import Signal

Score = Callable[[list[str], list[str], Columns], "Scores"]
ParamsOf = Params | Callable[[], Params]
POLICY = ("assistant",)  # whose words in a conversation are scored


@dataclass(frozen=True)
class Scores:
    """What a contract says of B texts, on the host.

    Attributes:
      total: `[B]`.
      named: `[B]` by "term/<name>", "utility/<stakeholder>", "cost/<term>" and "violated/<term>" (1.0 where the text's
        own cost is above the threshold), where <term> is the first that the constraint measures. A term with two
        constraints has "cost/<term>" and "cost/<term>.2".
    """

    total: np.ndarray
    named: dict[str, np.ndarray]

    def check_finite(self, rows: np.ndarray | None = None) -> None:
        """Raise a ValueError that names the first of these rows whose total is NaN or infinite, and its term."""
        bad = ~np.isfinite(self.total) if rows is None else ~np.isfinite(self.total) & rows
        if not bad.any():
            return
        row = int(bad.argmax())
        for name, values in self.named.items():
            if not np.isfinite(values[row]):
                cause = f"{name} is {values[row]}"
                break
        else:
            cause = "its terms and costs are finite, so look at params: weights, multipliers, the aggregate"
        raise ValueError(f"completions[{row}]: the contract's total is {self.total[row]} ({cause})")


def scorer(
    reward: Reward,
    *,
    encode: Encode | None = None,
    params: ParamsOf | None = None,
    pad_batch: bool = False,
) -> Score:
    """The function texts -> `Scores` that all trainers share; traced once for each shape of the encoded batch."""
    if not isinstance(reward, Reward):
        raise TypeError(f"reward: expected what rlx.contracts.compile returns, got {type(reward).__name__}")
    if pad_batch and compares_rows(reward.contract):
        raise ValueError("pad_batch: texts are compared with each other, and padded rows would join them")
    to_batch = encode_bytes if encode is None else encode
    names = row_names(reward.contract)
    terms = list(all_terms(reward.contract))

    @jax.jit
    def evaluate(params: Params, batch: dict[str, Any]) -> tuple[jax.Array, list[jax.Array]]:
        out = reward(params, batch)
        violated = out.violated.astype(out.total.dtype)
        columns = [of[:, i] for of in (out.utilities, out.costs, violated) for i in range(of.shape[1])]
        return out.total, [out.terms[name] for name in terms] + columns

    def score(prompts: list[str], completions: list[str], columns: Columns) -> Scores:
        size = len(completions)
        if len(prompts) != size:
            raise ValueError(f"prompts: {len(prompts)} rows disagree with {size} completions")
        if not size:
            return Scores(np.zeros(0, np.float32), {})
        batch = _checked(reward.contract, dict(to_batch(prompts, completions, columns)), columns, size)
        if pad_batch:
            batch = {name: padded_rows(np.asarray(array), power_of_two(size)) for name, array in batch.items()}
        current = reward.params if params is None else params() if callable(params) else params
        try:
            total, values = jax.device_get(evaluate(current, batch))
        except KeyError as error:
            error.add_note(f"the batch holds {', '.join(batch)}; dataset columns that are numbers join it, see encode=")
            raise
        return Scores(total[:size], {name: value[:size] for name, value in zip(names, values, strict=True)})

    return score


def finite_scores(score: Score, prompts: Any, completions: Any, columns: Columns) -> Scores:
    """Scores of texts or conversations, each of them finite."""
    scores = score(texts_of("prompts", prompts), texts_of("completions", completions, roles=POLICY), columns)
    scores.check_finite()
    return scores


def compares_rows(contract: Contract) -> bool:
    """Whether the reward of a text depends on other texts: of its group, or of the batch that a quantile is of."""
    quantile = any(isinstance(c.of, CVaR) and c.of.at is None for c in contract.constraints)
    rule = contract.aggregate
    return quantile or getattr(rule, "across_texts", False) or getattr(rule, "group", None) is not None


def check_alone(reward: Reward, adapter: str, why: str) -> None:
    """Check that texts can be scored one at a time."""
    if compares_rows(reward.contract):
        raise ValueError(f"{adapter}: contract {reward.contract.name!r} compares texts with each other, and {why}")


def label_of(reward: Reward, name: str | None) -> str:
    """What a trainer's log calls the contract."""
    return reward.contract.name if name is None else name


def named(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    """The function, with the name that trainers log it by."""
    function.__name__ = function.__qualname__ = name
    return function


def imported(module: str, adapter: str, package: str) -> Any:
    """A module of an optional package."""
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise ImportError(f"{adapter}: {module} cannot be imported ({error}); pip install {package}") from error


def row_names(contract: Contract) -> list[str]:
    """The names of terms, utilities, costs and violations of one text."""
    measured = [name_of(terms_in(constraint.of)[0]) for constraint in contract.constraints]
    counts = [measured[: i + 1].count(name) for i, name in enumerate(measured)]
    labels = [name if count == 1 else f"{name}.{count}" for name, count in zip(measured, counts, strict=True)]
    names = [f"term/{name}" for name in all_terms(contract)]
    names += [f"utility/{stakeholder.name}" for stakeholder in contract.stakeholders]
    return names + [f"{kind}/{label}" for kind in ("cost", "violated") for label in labels]


def _checked(contract: Contract, batch: dict[str, Any], columns: Columns, size: int) -> dict[str, Any]:
    for name, value in batch.items():
        if not is_array(value) or not value.shape or value.shape[0] != size:
            what = f"shape {value.shape}" if is_array(value) else type(value).__name__
            raise ValueError(f"encode: {name!r} has to be an array of {size} rows, got {what}")
    for name, signal in contract.signals.items():
        if name not in batch:
            raise ValueError(_missing(contract, name, batch, columns))
        if batch[name].ndim != len(signal.dims):
            raise ValueError(f"signal {name!r}: dims {signal.dims} are declared, got shape {batch[name].shape}")
        batch[name] = _cast(name, signal, batch[name])
    return batch


def _missing(contract: Contract, name: str, batch: dict[str, Any], columns: Columns) -> str:
    there = ", ".join(batch) or "nothing"
    if name in columns:
        return f"signal {name!r}: the column {name!r} does not hold numbers (int32 or float32); pass an encode= for it"
    return (
        f"signal {name!r}: contract {contract.name!r} declares it and the batch holds only {there}; "
        f"add a dataset column {name!r} or pass an encode= that makes it"
    )


def _cast(name: str, signal: Signal, value: Any) -> Any:
    """The array in the declared dtype, so that 1 and 1.0 in a dataset are the same trace; never another value."""
    wanted = np.dtype(signal.dtype)
    if value.dtype == wanted:
        return value
    cast = np.asarray(value).astype(wanted)
    same_kind = np.can_cast(value.dtype, wanted, "same_kind")
    if not same_kind and not np.array_equal(cast.astype(value.dtype), np.asarray(value)):
        raise ValueError(f"signal {name!r}: dtype {signal.dtype} is declared and values of {value.dtype} do not fit")
    return cast
