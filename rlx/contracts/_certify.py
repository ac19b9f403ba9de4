"""An anytime-valid statement about a mean cost, from samples."""

import dataclasses
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import jax
import numpy as np

from rlx._checks import check_range
from rlx._tree import tree_sha256

from ._compile import Reward
from ._contract import Contract
from ._digest import digest

# Fractions of the capital that are staked: one bettor each, equal shares at the start.
STAKES = np.concatenate([2.0 ** -np.arange(12.0, 1.0, -0.5), [0.625, 0.75, 0.875, 0.95, 1.0]])
_LOOKS = 1024  # the capital is looked at this often, evenly spaced and at the end; any looks are valid
_CHUNK = 8192


@dataclass(frozen=True)
class Certificate:
    """What n samples say about a mean cost.

    Attributes:
      upper, lower: bounds of the mean; both hold together, at every n at once, with probability >= 1 - alpha.
      rate: the samples' mean.
      n: how many samples.
      threshold, alpha: as given.
      method: how the bounds were made.
      verdict: "CERTIFIED" if upper <= threshold, "REFUTED" if lower > threshold, else "UNDECIDED".
      data_sha256: of the samples.
      contract_sha256, params_sha256, policy_sha256: what they are samples of; None where it was not said.
    """

    upper: float
    lower: float
    rate: float
    n: int
    threshold: float
    alpha: float
    method: str
    verdict: Literal["CERTIFIED", "REFUTED", "UNDECIDED"]
    data_sha256: str
    contract_sha256: str | None = None
    params_sha256: str | None = None
    policy_sha256: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Certificate":
        """From JSON values.

        Raises:
          ValueError: a field is missing or unknown.
        """
        names = {f.name for f in dataclasses.fields(cls)}
        if not isinstance(values, Mapping) or set(values) != names:
            wrong = sorted(names ^ set(values)) if isinstance(values, Mapping) else [type(values).__name__]
            raise ValueError(f"certificate: fields missing or unknown: {', '.join(map(str, wrong))}")
        return cls(**values)

    def differences(
        self, *, costs: Any = None, contract: Any = None, params: Any = None, policy: Any = None
    ) -> list[str]:
        """What the certificate is not of, among what is given: "data", "contract", "params", "policy".

        Args:
          costs, contract, params, policy: as for `certify`; None is not compared.
        """
        found = {
            "data": None if costs is None else _data_sha256(_samples(costs)),
            "contract": _contract_sha256(contract),
            "params": _tree_sha256("params", params),
            "policy": _tree_sha256("policy", policy),
        }
        return [name for name, value in found.items() if value not in (None, getattr(self, f"{name}_sha256"))]


def certify(
    costs: Any,
    threshold: float,
    alpha: float = 0.05,
    *,
    low: float = 0.0,
    high: float = 1.0,
    contract: Contract | Reward | str | None = None,
    params: Any = None,
    policy: Any = None,
) -> Certificate:
    """Certify that the mean cost is at most a threshold, from bounded samples.

    Against each candidate mean m, bettors stake a fraction f of their capital on every sample:

        K_t(m) = average over f of prod_{i <= t} (1 - f + f * x_i / m)               (the mean is above m)
        K_t(m) = average over f of prod_{i <= t} (1 - f + f * (1 - x_i) / (1 - m))   (the mean is below m)

    If the mean is m, each K is a nonnegative martingale from 1, so it ever reaches 2 / alpha with probability at
    most alpha / 2 (Ville's inequality). `lower` and `upper` end where K does, at any of the looks so far; each side has
    alpha / 2. You may look after every sample and stop when you like: sampling on until the verdict is
    decided is valid, and so is a later call with more samples after the same first ones. The samples must be fresh
    (not those that trained the model), each with the same mean given those before; they need not be 0 or 1. Costs in
    [low, high] are scaled to [0, 1] first.

    Args:
      costs: `[N]`, in [low, high], in the order they were drawn: `out.costs[:, m]`. Several constraints share alpha.
      threshold: what the mean is claimed not to exceed, in [low, high].
      alpha: probability of a wrong statement, in (0, 1).
      low, high: bounds of the cost that were known before there were samples, such as the term's range.
      contract: what the costs are of: a contract, its reward, or its digest. Its hash goes into the certificate.
      params, policy: the reward's parameters and the policy that was sampled: pytrees, or hashes of 64 hex digits.

    Returns:
      A `Certificate`. It speaks of the sampled distribution and of this cost, of nothing else.

    Raises:
      ValueError: costs are empty, not [N], not finite or outside [low, high]; alpha is not in (0, 1).
      TypeError: costs are not real numbers.

    Example:
      >>> bound = certify([0.0] * 95 + [1.0] * 5, threshold=0.2)
      >>> bound.verdict, round(bound.rate, 3), bound.lower < 0.05 < bound.upper < 0.2
      ('CERTIFIED', 0.05, True)

    References:
      Waudby-Smith and Ramdas 2024, "Estimating means of bounded random variables by betting", Theorem 3 (hedged
      capital) with bets on a grid. Deviations: the grid of fractions is geometric, not even, and the two sides are
      two tests at alpha / 2, not one hedged test.
    """
    check_range("alpha", alpha, 0.0, 1.0, open_low=True, open_high=True)
    check_range("low", low, -float("inf"), high, open_low=True, open_high=True)
    check_range("high", high, low, float("inf"), open_low=True, open_high=True)
    check_range("threshold", threshold, low, high)
    given = _samples(costs)
    if not np.all((given >= low) & (given <= high)):
        wrong = int(np.flatnonzero(~((given >= low) & (given <= high)))[0])
        raise ValueError(
            f"costs: element {wrong} is {given[wrong]}, outside [{low:g}, {high:g}]; "
            "give low= and high= if other bounds were known before"
        )
    samples = given if (low, high) == (0.0, 1.0) else np.clip((given - low) / (high - low), 0.0, 1.0)
    needed = np.log(2.0 / alpha)
    lower = low + (high - low) * _lower_bound(samples, needed)
    upper = low + (high - low) * (1.0 - _lower_bound(1.0 - samples, needed))
    verdict: Any = "CERTIFIED" if upper <= threshold else "REFUTED" if lower > threshold else "UNDECIDED"
    return Certificate(
        upper=upper,
        lower=lower,
        rate=float(np.mean(given)),
        n=given.size,
        threshold=float(threshold),
        alpha=float(alpha),
        method="betting, geometric grid of stakes, alpha/2 a side, anytime-valid",
        verdict=verdict,
        data_sha256=_data_sha256(given),
        contract_sha256=_contract_sha256(contract),
        params_sha256=_tree_sha256("params", params),
        policy_sha256=_tree_sha256("policy", policy),
    )


def _samples(costs: Any) -> np.ndarray:
    samples = np.asarray(costs)
    kinds = (np.floating, np.integer, np.bool_)
    if not any(jax.dtypes.issubdtype(samples.dtype, kind) for kind in kinds):
        raise TypeError(f"costs: expected real numbers, got dtype {samples.dtype}")
    if samples.ndim != 1 or samples.size == 0:
        raise ValueError(
            f"costs: expected [N] with N >= 1, got shape {samples.shape}; certify one constraint at a time"
        )
    return samples.astype(np.float64)


def _data_sha256(samples: np.ndarray) -> str:
    return hashlib.sha256(samples.astype("<f8").tobytes()).hexdigest()


def _contract_sha256(contract: Any) -> str | None:
    if contract is None or isinstance(contract, str):
        return _hex("contract", contract)
    return digest(contract.contract if isinstance(contract, Reward) else contract)


def _tree_sha256(name: str, tree: Any) -> str | None:
    return _hex(name, tree) if tree is None or isinstance(tree, str) else tree_sha256(tree)


def _hex(name: str, text: str | None) -> str | None:
    if text is not None and not re.fullmatch("[0-9a-f]{64}", text):
        raise ValueError(f"{name}: {text!r} is not 64 hex digits")
    return text


def _lower_bound(samples: np.ndarray, needed: float) -> float:
    """The largest mean that is rejected from below; rejection is monotone in m, so bisection finds it."""
    values, place = np.unique(samples, return_inverse=True)
    looks = np.unique(np.linspace(0, samples.size, min(samples.size, _LOOKS) + 1).astype(int)[1:])
    counts = None
    if len(values) <= 16:
        steps = np.zeros((len(looks), len(values)))
        np.add.at(steps, (np.searchsorted(looks, np.arange(samples.size), side="right"), place), 1.0)
        counts = np.cumsum(steps, axis=0)

    def rejected(m: float) -> bool:
        """Whether the bettors who say that the mean is above m ever held exp(needed)."""
        with np.errstate(divide="ignore"):
            # a bettor with nothing left stays at nothing: a finite stand-in, since -inf * 0 is not a number
            gains = np.maximum(np.log(1.0 - STAKES + STAKES * (values[:, None] / m)), -1e30)
        if counts is not None:
            return bool(np.max(_log_mean_exp(counts @ gains)) >= needed)
        carried = np.zeros(len(STAKES))
        for start in range(0, samples.size, _CHUNK):
            capital = carried + np.cumsum(gains[place[start : start + _CHUNK]], axis=0)
            carried = capital[-1]
            seen = looks[(looks > start) & (looks <= start + _CHUNK)] - start - 1
            if seen.size and np.max(_log_mean_exp(capital[seen])) >= needed:
                return True
        return False

    # the running maximum of the capital may reject means above the samples' own: a run that began high
    low, high = 1e-12, 1.0
    if not rejected(low):
        return 0.0
    if rejected(high):
        return 1.0
    while high - low > 1e-12 + 1e-9 * high:
        middle = 0.5 * (low + high)
        low, high = (middle, high) if rejected(middle) else (low, middle)
    return low


def _log_mean_exp(x: np.ndarray) -> np.ndarray:
    top = np.max(x, axis=-1, keepdims=True)
    return np.log(np.mean(np.exp(x - top), axis=-1)) + top[..., 0]
