"""What can be proved of a contract before it is used."""

import itertools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Jaxpr

from . import _interval as iv
from ._bounds import bounds
from ._canonical import subjaxprs
from ._compile import term_values
from ._consistency import Check, consistency
from ._contract import Contract, all_terms, check_contract, naming_problems
from ._interval import Interval, Unsupported
from ._terms import Term
from ._trace import Spec, Untraceable, declared_spec, term_spec

_DRAWS = 24
_CALLBACKS = {"pure_callback", "io_callback", "debug_callback", "debug_print", "host_callback", "outside_call"}


def verify(contract: Contract, batch: Mapping[str, Any] | None = None, *, seed: int = 0) -> list[Check]:
    """Try to prove, and to refute, what a contract claims of itself.

    names: every name exists once. shape: each term returns what its level says. pure: no effect and no callback, so
    that the same batch gives the same reward. range: each term stays in its declared range for every batch whose
    signals stay in theirs, by interval arithmetic over the jaxpr with outward rounding; if that does not prove it,
    batches are drawn (corners and random ones) to refute it. weights: none is negative. monotone: more utility for
    one stakeholder never lowers the aggregate. disagreement: (Nash) nobody is below the disagreement point.
    limits: each limit can be met inside the declared ranges, and so can those on the same term together, and all
    formulas together. units: no utility adds two units, and no rule that compares people adds theirs. test: each of
    the contract's own examples.

    The proof is about IEEE arithmetic in the traced dtypes and shapes, sums in any order, multiply-adds fused or not,
    a quotient by a constant as a product; a device that multiplies matrices in TF32 or bfloat16 needs
    `precision="highest"` for it. exp, log and the like are taken as monotone, accurate to 8 (tanh, logistic, erf: 16)
    units in the last place, exact at 0 (log at 1, sqrt at both) and inside their mathematical range. A signal without
    a declared range may be anything that its dtype holds, NaN included. Sampling proves nothing: without a proof or a
    counterexample the verdict is "UNKNOWN".

    Args:
      contract: what to check.
      batch: arrays or `jax.ShapeDtypeStruct` by signal name; None takes the declared signals (B=4, T=32) and guesses
        the rest from what terms read.
      seed: of the drawn batches.

    Returns:
      A list of `Check`.

    Example:
      >>> import jax.numpy as jnp
      >>> from rlx.contracts import Contract, Signal, Stakeholder, Term
      >>> signals = {"logp": Signal("BT", "float32", range=(-50.0, 0.0))}
      >>> good = Term("fluent", lambda batch: jnp.exp(jnp.min(batch["logp"], axis=-1)))
      >>> bad = Term("loose", lambda batch: 1.5 + jnp.min(batch["logp"], axis=-1))
      >>> contract = Contract("demo", terms=(good, bad), stakeholders=(Stakeholder("me", {"fluent": 1.0}),),
      ...                     signals=signals)
      >>> [(check.name, check.verdict) for check in verify(contract) if check.name.startswith("range")]
      [('range:fluent', 'PROVED'), ('range:loose', 'REFUTED')]

    References:
      Moore, Kearfott and Cloud 2009, "Introduction to Interval Analysis", chapters 2 and 5.
    """
    check_contract("contract", contract)
    problems = naming_problems(contract)
    checks = [Check("names", "REFUTED" if problems else "PROVED", "; ".join(problems) or "every name exists once")]
    given = None if batch is None else {n: jax.ShapeDtypeStruct(np.shape(v), v.dtype) for n, v in batch.items()}
    if given is not None:
        missing = [name for name in contract.signals if name not in given]
        wrong = [
            f"{name} has dtype {given[name].dtype}, declared {signal.dtype}"
            for name, signal in contract.signals.items()
            if name in given and given[name].dtype != np.dtype(signal.dtype)
        ]
        told = [*(f"{name} is declared and not in the batch" for name in missing), *wrong]
        checks.append(Check("signals", "REFUTED" if told else "PROVED", "; ".join(told) or "all are in the batch"))
    for term in all_terms(contract).values():
        checks += _check_term(contract, term, given, seed)
    if not problems:
        checks += consistency(contract, seed)
    return checks


def _check_term(contract: Contract, term: Term, given: Spec | None, seed: int) -> list[Check]:
    name = term.name
    try:
        spec = dict(given) if given is not None else term_spec(term, declared_spec(contract))
        closed = jax.make_jaxpr(lambda batch: term_values(term, batch))(spec)
    except Untraceable as error:
        # with signals that nobody declared, the guesses may be at fault
        return [Check(f"shape:{name}", "UNKNOWN" if error.guessed else "REFUTED", str(error))]
    except (TypeError, ValueError, IndexError, KeyError, AttributeError, NotImplementedError) as error:
        reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        return [Check(f"shape:{name}", "REFUTED", f"it cannot be traced, {reason}", given)]
    out = closed.out_avals[0]
    sizes = {spec[n].shape[0] for n in spec if spec[n].shape}
    fits = len(sizes) != 1 or out.shape[0] in sizes
    told = f"returns {out.dtype}{list(out.shape)} for level {term.level!r}"
    shape = Check(f"shape:{name}", "PROVED" if fits else "REFUTED", told if fits else f"{told}, batch size {sizes}")
    impure = sorted(_impurities(closed.jaxpr))
    pure = Check(
        f"pure:{name}",
        "REFUTED" if impure else "PROVED",
        f"it calls {', '.join(impure)}" if impure else "no effect and no callback in its jaxpr",
    )
    return [shape, pure, _check_range(contract, term, spec, closed, seed, sample=not impure)]


def _impurities(jaxpr: Jaxpr) -> set[str]:
    found = {type(effect).__name__ for effect in jaxpr.effects}
    for equation in jaxpr.eqns:
        if equation.primitive.name in _CALLBACKS or "callback" in equation.primitive.name:
            found.add(equation.primitive.name)
        for inner in subjaxprs(equation):
            found |= _impurities(inner)
    return found


def _check_range(contract: Contract, term: Term, spec: Spec, closed: Any, seed: int, *, sample: bool) -> Check:
    label, dtype = f"range:{term.name}", closed.out_avals[0].dtype
    low, high = (float(np.asarray(end, dtype)) for end in term.range)
    try:
        inputs = [_signal_interval(contract, name, spec[name]) for name in sorted(spec)]
        found = bounds(closed, inputs)[0]
        least, most = float(np.min(found.low, initial=np.inf)), float(np.max(found.high, initial=-np.inf))
        told = f"interval [{least:.9g}, {most:.9g}]{' or NaN' if found.nan else ''}, declared [{low:g}, {high:g}]"
        if low <= least and most <= high and not found.nan:
            return Check(label, "PROVED", told)
    except Unsupported as error:
        told = f"no interval rule for {error}, declared [{low:g}, {high:g}]"
    if not sample:
        return Check(label, "UNKNOWN", f"{told}; not sampled, since it is not pure")

    compiled = jax.jit(lambda batch: term_values(term, batch))
    drawn = f"{_DRAWS} drawn batches stayed inside"
    for batch in _draws(contract, spec, seed):
        jitted = np.asarray(compiled(batch))
        if _inside(jitted, low, high):
            continue
        values = np.asarray(term_values(term, batch))  # a counterexample must reproduce outside jit
        if not _inside(values, low, high):
            worst = _farthest(values, low, high)
            return Check(label, "REFUTED", f"a batch gives {worst:.9g}, declared [{low:g}, {high:g}]", batch)
        drawn = f"a drawn batch gives {_farthest(jitted, low, high):.9g}, under jit only"
    return Check(label, "UNKNOWN", f"{told}; {drawn}")


def _farthest(values: np.ndarray, low: float, high: float) -> float:
    excess = np.maximum(low - values, values - high)
    return float(values.flat[np.argmax(np.where(np.isnan(values), np.inf, excess))])


def _inside(values: np.ndarray, low: float, high: float) -> bool:
    return bool(np.all((values >= low) & (values <= high)))


def _signal_interval(contract: Contract, name: str, spec: jax.ShapeDtypeStruct) -> Interval:
    declared = contract.signals[name].range if name in contract.signals else None
    if declared is None:
        return iv.everything(spec.shape, spec.dtype)
    low, high = declared
    return iv.settle(np.full(spec.shape, float(low)), np.full(spec.shape, float(high)), spec.dtype)


def _draws(contract: Contract, spec: Spec, seed: int) -> Any:
    """Batches inside the declared ranges: all low, all high, elements at either end, one spike, anything between."""
    rng = np.random.default_rng(seed)
    ways = itertools.cycle(("low", "high", "ends", "between", "spike", "row"))
    for _, way in zip(range(_DRAWS), ways, strict=False):
        yield {
            name: jnp.asarray(_draw(rng, _sampled_range(contract, name, s.dtype), s, way)) for name, s in spec.items()
        }


def _sampled_range(contract: Contract, name: str, dtype: Any) -> tuple[float, float]:
    declared = contract.signals[name].range if name in contract.signals else None
    low, high = declared if declared is not None else iv.dtype_range(dtype)
    # of an unbounded signal, ordinary numbers
    return max(float(low), -1e3) if np.isinf(low) else float(low), min(float(high), 1e3) if np.isinf(high) else float(
        high
    )


def _draw(rng: np.random.Generator, ends: tuple[float, float], spec: jax.ShapeDtypeStruct, way: str) -> np.ndarray:
    low, high = ends
    shape, dtype = spec.shape, np.dtype(spec.dtype)
    match way:
        case "low" | "high":
            values = np.full(shape, low if way == "low" else high)
        case "ends":
            values = np.where(rng.random(shape) < rng.random(), low, high)
        case "spike":
            values = np.full(shape, low if rng.random() < 0.5 else high)
            values.flat[rng.integers(values.size)] = rng.uniform(low, high)
        case "row":
            values = np.broadcast_to(rng.uniform(low, high, shape[:1] + (1,) * (len(shape) - 1)), shape)
        case _:
            values = rng.uniform(low, high, shape)
    values = np.clip(np.round(values), low, high) if not iv.is_float(dtype) else values
    return np.clip(values.astype(dtype), np.asarray(low, dtype), np.asarray(high, dtype))
