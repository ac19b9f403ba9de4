"""Anytime-valid bounds: coverage under continuous looking, width, hand cases."""

import dataclasses
import json
import time

import numpy as np
import pytest
import scipy.stats

from rlx.contracts import Certificate, Contract, Stakeholder, Term, certify, compile, digest


@pytest.mark.parametrize("kind", ["bernoulli 0.1", "bernoulli 0.5", "beta", "three values"])
def test_miscoverage_under_continuous_looking_is_at_most_alpha(kind):
    """The bounds use the running maximum of the capital, so one call at the end has looked at every sample."""
    rng = np.random.default_rng(7)
    draw, mean = {
        "bernoulli 0.1": (lambda: (rng.random(256) < 0.1).astype(float), 0.1),
        "bernoulli 0.5": (lambda: (rng.random(256) < 0.5).astype(float), 0.5),
        "beta": (lambda: rng.beta(0.5, 4.5, 256), 0.1),
        "three values": (lambda: rng.choice([0.0, 0.25, 1.0], 256, p=[0.5, 0.4, 0.1]), 0.2),
    }[kind]
    runs, alpha = 200, 0.2
    wrong = 0
    for _ in range(runs):
        bound = certify(draw(), 0.5, alpha=alpha)
        wrong += not bound.lower <= mean <= bound.upper
    assert wrong <= scipy.stats.binom.ppf(0.999, runs, alpha)


def test_peeking_never_widens_what_was_known():
    """Prefixes of one stream: the bounds at any time hold all earlier ones too (one capital process)."""
    samples = (np.random.default_rng(3).random(600) < 0.3).astype(float)
    bounds = [certify(samples[:n], 0.5) for n in range(20, 601, 20)]
    uppers, lowers = np.array([b.upper for b in bounds]), np.array([b.lower for b in bounds])
    assert np.all(np.diff(uppers) <= 1e-9)
    assert np.all(np.diff(lowers) >= -1e-9)


@pytest.mark.parametrize("rate", [0.01, 0.07, 0.1, 0.5])
def test_width_is_at_most_twice_clopper_pearson_for_4096(rate):
    n, hits = 4096, round(4096 * rate)
    samples = np.zeros(n)
    samples[np.random.default_rng(0).permutation(n)[:hits]] = 1.0
    bound = certify(samples, 0.1)
    exact = scipy.stats.binomtest(hits, n).proportion_ci(0.95)
    assert bound.lower <= exact.low
    assert exact.high <= bound.upper
    assert bound.upper - bound.lower <= 2.0 * (exact.high - exact.low)


def test_verdicts():
    rng = np.random.default_rng(1)
    low, near, high = ((rng.random(4096) < rate).astype(float) for rate in (0.05, 0.099, 0.3))
    assert certify(low, 0.1).verdict == "CERTIFIED"
    assert certify(near, 0.1).verdict == "UNDECIDED"
    assert certify(high, 0.1).verdict == "REFUTED"
    bound = certify(high, 0.1)
    assert bound.lower > 0.1
    assert (bound.n, bound.alpha, bound.threshold) == (4096, 0.05, 0.1)


def test_all_zeros_by_hand():
    """The bettor who stakes everything has (1 - m)^-n, one of J equal shares; J = 27 stakes, alpha / 2 = 0.025."""
    bound = certify(np.zeros(100), 0.1)
    assert bound.lower == 0.0
    alone = 1.0 - (0.025 / 27) ** (1 / 100)
    exact = scipy.stats.binomtest(0, 100).proportion_ci(0.95).high
    assert exact < bound.upper <= alone
    assert certify(np.ones(100), 0.1).lower == pytest.approx(1.0 - bound.upper, abs=1e-9)


def test_one_sample_says_little():
    bound = certify([1.0], 0.5)
    assert bound.verdict == "UNDECIDED"
    assert 0.0 <= bound.lower < 0.05
    assert bound.upper == 1.0


def test_bounds_by_an_independent_sum():
    """The same capital written out as a plain loop, against the bound: just outside is rejected, just inside is not."""
    samples = np.random.default_rng(5).beta(1.0, 3.0, 80)
    bound = certify(samples, 0.5)
    stakes = [2.0**-e for e in np.arange(12.0, 1.0, -0.5)] + [0.625, 0.75, 0.875, 0.95, 1.0]

    def most_capital(m):
        shares, best = [1.0 / len(stakes)] * len(stakes), 0.0
        for x in samples:
            shares = [s * (1.0 - f + f * (1.0 - x) / (1.0 - m)) for s, f in zip(shares, stakes, strict=True)]
            best = max(best, sum(shares))
        return best

    assert most_capital(bound.upper + 1e-6) >= 2.0 / 0.05
    assert most_capital(bound.upper - 1e-6) < 2.0 / 0.05


def test_more_certain_is_wider():
    samples = (np.random.default_rng(0).random(500) < 0.2).astype(float)
    widths = [b.upper - b.lower for b in (certify(samples, 0.1, alpha=a) for a in (0.2, 0.05, 0.001))]
    assert widths[0] < widths[1] < widths[2]


def test_fast_enough():
    samples = np.random.default_rng(0).random(4096)
    start = time.perf_counter()
    certify(samples, 0.1)
    assert time.perf_counter() - start < 2.0  # 0.08 s on an idle core


@pytest.mark.parametrize("dtype", [bool, np.float32, np.int32])
def test_any_real_dtype(dtype):
    samples = np.arange(100) % 4 == 0
    assert certify(samples.astype(dtype), 0.5) == certify(samples.astype(float), 0.5)


@pytest.mark.parametrize("costs", [[], [0.5, float("nan")], [0.5, 1.5], [-0.1], [[0.5]], 0.5, [float("inf")]])
def test_bad_costs_name_the_argument(costs):
    with pytest.raises(ValueError, match="costs: "):
        certify(costs, 0.1)


def test_bad_levels_name_the_argument():
    with pytest.raises(ValueError, match="alpha: 0"):
        certify([0.5], 0.1, alpha=0.0)
    with pytest.raises(ValueError, match="threshold: nan"):
        certify([0.5], float("nan"))
    with pytest.raises(ValueError, match="threshold: 2 is outside"):
        certify([0.5], 2)
    with pytest.raises(ValueError, match=r"low: 1\.0 is outside"):
        certify([0.5], 0.5, low=1.0, high=0.0)


@pytest.mark.parametrize("costs", [["0.5"], [0.5 + 0j], [None], np.array([{}])])
def test_what_is_no_number_is_refused(costs):
    with pytest.raises(TypeError, match="costs: expected real numbers"):
        certify(costs, 0.5)


def test_known_bounds_scale():
    samples = np.random.default_rng(0).random(300)
    plain, scaled = certify(samples, 0.6), certify(10.0 * samples - 5.0, 1.0, low=-5.0, high=5.0)
    assert scaled.verdict == plain.verdict
    assert scaled.upper == pytest.approx(10 * plain.upper - 5, rel=1e-9)
    assert scaled.lower == pytest.approx(10 * plain.lower - 5, rel=1e-9)
    with pytest.raises(ValueError, match=r"element 0 is 3\.0, outside \[-2, 2\]"):
        certify([3.0], 0.0, low=-2.0, high=2.0)


def test_nothing_in_three_thousand():
    """The bettor who stakes all has (1 - m)^-3000, one of 27 shares: m = 1 - (0.025 / 27)^(1 / 3000) = 0.00233."""
    bound = certify(np.zeros(3000), 0.0037)
    assert bound.verdict == "CERTIFIED"
    assert bound.upper <= 1.0 - (0.025 / 27) ** (1 / 3000) <= 0.0037


def test_a_certificate_is_of_its_contract_parameters_policy_and_data():
    term = Term("x", lambda b: b["x"])
    contract = Contract("c", terms=(term,), stakeholders=(Stakeholder("me", {"x": 1.0}),))
    reward, policy = compile(contract), {"w": np.arange(3.0)}
    costs = np.zeros(50)
    bound = certify(costs, 0.5, contract=reward, params=reward.params, policy=policy)
    assert bound.contract_sha256 == digest(contract)
    again = {"costs": np.zeros(50, np.float32), "contract": contract, "params": reward.params, "policy": policy}
    assert bound.differences(**again) == []
    assert Certificate.from_dict(json.loads(json.dumps(bound.to_dict()))) == bound
    other = {
        "costs": np.append(costs[1:], 1.0),
        "contract": dataclasses.replace(contract, version="2"),
        "params": reward.params | {"weights": np.array([2.0], np.float32)},
        "policy": {"w": np.arange(3.0) + 1},
    }
    for name, what in (("costs", "data"), ("contract", "contract"), ("params", "params"), ("policy", "policy")):
        assert bound.differences(**(again | {name: other[name]})) == [what]
    assert certify(costs, 0.5).differences(contract=contract) == ["contract"]  # it does not say of which
    with pytest.raises(ValueError, match="policy: 'abc' is not 64 hex digits"):
        certify(costs, 0.5, policy="abc")
    with pytest.raises(ValueError, match="certificate: fields missing or unknown: alpha"):
        Certificate.from_dict({k: v for k, v in bound.to_dict().items() if k != "alpha"})
