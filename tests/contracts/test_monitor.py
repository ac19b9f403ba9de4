"""The monitor: the bets of certify inside jit, exact counts, and no claim that is not sound."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from jax.sharding import PartitionSpec

from rlx.contracts import (
    Always,
    Chance,
    Contract,
    CVaR,
    Expect,
    Stakeholder,
    Term,
    certify,
    compile,
    monitor,
)

score = Term("score", lambda b: b["score"], range=(-1.0, 3.0))
harm = Term("harm", lambda b: b["harm"], level="token")
count = Term("count", lambda b: b["harm"], level="token", reduce="sum")
CONTRACT = Contract(
    "m",
    terms=(score,),
    stakeholders=(Stakeholder("me", {"score": 1.0}),),
    constraints=(
        Chance(score > 1.0) <= 0.25,
        Expect(score) >= 0.5,
        CVaR(score, 0.5, at=1.0) <= 2.5,
        Always(harm < 0.75),
        Expect(count) <= 3.0,
        CVaR("score", 0.9) <= 2.0,
    ),
)
REWARD = compile(CONTRACT)
TESTABLE = [True, True, True, True, False, False]


def make(size, seed=0, low=-1.0, high=3.0):
    rng = np.random.default_rng(seed)
    return {
        "score": jnp.asarray(rng.uniform(low, high, size), jnp.float32),
        "harm": jnp.asarray(rng.uniform(0, 0.8, (*np.atleast_1d(size), 4)), jnp.float32),
        "mask": jnp.ones((*np.atleast_1d(size), 4), jnp.bool_),
    }


def watch(batches, watcher=None):
    watcher = watcher or monitor(REWARD)

    def step(state, batch):
        return watcher.update(state, REWARD(REWARD.params, batch)), None

    return watcher.read(jax.jit(lambda b: jax.lax.scan(step, watcher.init(), b)[0])(batches))


def test_counts_are_those_of_all_texts():
    batches = make((20, 16))
    report = watch(batches)
    flat = jax.tree.map(lambda x: x.reshape(320, *x.shape[2:]), batches)
    out = [REWARD(REWARD.params, jax.tree.map(lambda x, i=i: x[i], batches)) for i in range(20)]
    costs = np.concatenate([np.asarray(o.costs, np.float64) for o in out])
    assert report.n.tolist() == [320] * 6
    np.testing.assert_allclose(report.mean, costs.mean(0), rtol=1e-5)
    np.testing.assert_allclose(report.violated, np.concatenate([o.violated for o in out]).mean(0), rtol=1e-6)
    np.testing.assert_allclose(report.worst, np.concatenate([o.robustness for o in out]).min(0), rtol=1e-6)
    assert report.testable.tolist() == TESTABLE
    assert report.outside.tolist() == report.missing.tolist() == [0] * 6
    assert REWARD(REWARD.params, flat).costs.shape == (320, 6)


@pytest.mark.parametrize("seed", [0, 1])
def test_evidence_is_that_of_certify(seed):
    """One text a batch: the same bettors, looked at after every text; the bound crosses when the alarm rings."""
    batches = make((300, 1), seed, high=1.8)
    report = watch(batches)
    costs = np.asarray(REWARD(REWARD.params, jax.tree.map(lambda x: x[:, 0], batches)).costs, np.float64)
    for m, (low, high) in enumerate([(0.0, 1.0), (-3.0, 1.0), (1.0, 5.0), (0.0, 0.75)]):
        bound = certify(costs[:, m], float(REWARD.params["thresholds"][m]), low=low, high=high)
        assert bool(report.alarm[m]) == (bound.verdict == "REFUTED")
        assert bool(report.kept[m]) == (bound.verdict == "CERTIFIED")


def test_evidence_by_an_independent_sum():
    """Float64, a plain loop over batches, bettors of certify."""
    stakes = np.concatenate([2.0 ** -np.arange(12.0, 1.0, -0.5), [0.625, 0.75, 0.875, 0.95, 1.0]])
    batches = make((40, 8), 3)
    costs = np.asarray([REWARD(REWARD.params, jax.tree.map(lambda x, i=i: x[i], batches)).costs for i in range(40)])
    x = (costs[:, :, 1].astype(np.float64) + 3.0) / 4.0
    m = (-0.5 + 3.0) / 4.0
    with np.errstate(divide="ignore"):
        steps = np.log1p(stakes * (x[..., None] / m - 1.0)).sum(1).cumsum(0)
    expected = np.max(np.log(np.mean(np.exp(steps), axis=1)), initial=0.0)
    np.testing.assert_allclose(watch(batches).log_e_above[1], expected, rtol=1e-4)


def test_no_callback_and_no_effect():
    watcher, batch = monitor(REWARD), make(4)
    jaxpr = jax.make_jaxpr(lambda s, b: watcher.update(s, REWARD(REWARD.params, b)))(watcher.init(), batch)
    assert not jaxpr.effects
    assert "callback" not in str(jaxpr)


def test_many_runs_at_once():
    batches = make((3, 10, 8))
    together = jax.vmap(lambda b: watch(b))(batches)
    for run in range(3):
        alone = watch(jax.tree.map(lambda x, r=run: x[r], batches))
        for a, b in zip(alone, together, strict=True):
            np.testing.assert_allclose(a, b[run], rtol=1e-4, atol=1e-5)


def test_a_batch_on_eight_devices_is_one_batch():
    watcher, batch = monitor(REWARD), make(32)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    contract = dataclasses.replace(CONTRACT, constraints=CONTRACT.constraints[:5])  # without the batch's own quantile
    reward = compile(contract)
    watcher = monitor(reward)

    def update(state, batch):
        return watcher.update(state, reward(reward.params, batch), axis_name="data")

    sharded = jax.shard_map(
        update, mesh=mesh, in_specs=(PartitionSpec(), PartitionSpec("data")), out_specs=PartitionSpec()
    )
    split = jax.jit(sharded)(watcher.init(), batch)
    whole = watcher.update(watcher.init(), reward(reward.params, batch))
    for a, b in zip(jax.tree.leaves(split), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def simulate(rate, runs, batches, size, seed):
    """How many runs ever raise the alarm, and how many are ever certified, looked at after every batch."""
    bad = Term("bad", lambda b: b["bad"])
    reward = compile(
        Contract(
            "s", terms=(bad,), stakeholders=(Stakeholder("me", {"bad": -1.0}),), constraints=(Chance(bad > 0.5) <= 0.2,)
        )
    )
    watcher = monitor(reward, alpha=0.1)

    def one(key):
        drawn = jax.random.bernoulli(key, rate, (batches, size)).astype(jnp.float32)
        state, _ = jax.lax.scan(
            lambda s, x: (watcher.update(s, reward(reward.params, {"bad": x})), None), watcher.init(), drawn
        )
        report = watcher.read(state)
        return report.alarm[0], report.kept[0]

    return [np.asarray(x) for x in jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(seed), runs))]


def test_false_alarms_at_the_threshold_are_at_most_half_alpha():
    alarm, kept = simulate(0.2, 2000, 60, 8, 0)
    most = scipy.stats.binom.ppf(0.999, 2000, 0.05)
    assert np.sum(alarm) <= most
    assert np.sum(kept) <= most


def test_what_is_so_is_found():
    alarm, kept = simulate(0.35, 200, 100, 8, 1)
    assert np.mean(alarm) > 0.95
    assert not np.any(kept)
    alarm, kept = simulate(0.08, 200, 100, 8, 2)
    assert np.mean(kept) > 0.95
    assert not np.any(alarm)


def test_a_cost_that_is_not_a_number_helps_neither_claim():
    batch = make(64, low=-1.0, high=0.9)
    good = watch(jax.tree.map(lambda x: x[None], batch))
    half = batch | {"score": jnp.where(jnp.arange(64) % 2 == 0, batch["score"], jnp.nan)}
    report = watch(jax.tree.map(lambda x: x[None], half))
    assert report.missing.tolist()[:3] == [32] * 3
    assert bool(good.kept[0])
    assert report.log_e_below[0] < good.log_e_below[0]
    nothing = batch | {"score": jnp.full(64, jnp.nan)}
    report = watch(jax.tree.map(lambda x: x[None], nothing))
    assert report.log_e_above[0] == report.log_e_below[0] == 0.0
    assert report.violated[0] == 1.0


def test_a_cost_outside_its_bounds_ends_all_claims():
    batch = make(64, low=-1.0, high=0.0)
    batch = batch | {"score": batch["score"].at[5].set(-50.0)}
    report = watch(jax.tree.map(lambda x: jnp.broadcast_to(x, (50, *x.shape)), batch))
    assert report.outside.tolist()[:3] == [0, 50, 0]
    assert not bool(report.alarm[1])
    assert jnp.isnan(report.log_e_above[1])
    assert bool(report.kept[0])


def test_ten_million_texts_keep_their_last_place():
    """Capital of size 10^6 in float32 with Kahan's sum, against float64."""
    bad = Term("bad", lambda b: b["bad"])
    reward = compile(
        Contract(
            "s", terms=(bad,), stakeholders=(Stakeholder("me", {"bad": -1.0}),), constraints=(Chance(bad > 0.5) <= 0.2,)
        )
    )
    watcher = monitor(reward)
    batch = {"bad": (jnp.arange(1000) % 4 == 0).astype(jnp.float32)}
    out = reward(reward.params, batch)
    state, _ = jax.jit(
        lambda: jax.lax.scan(lambda s, _: (watcher.update(s, out), None), watcher.init(), length=10_000)
    )()
    stakes = np.concatenate([2.0 ** -np.arange(12.0, 1.0, -0.5), [0.625, 0.75, 0.875, 0.95, 1.0]])
    expected = 1e7 * (0.25 * np.log1p(stakes[:-1] * (1 / 0.2 - 1)) + 0.75 * np.log1p(-stakes[:-1]))
    np.testing.assert_allclose(state.above[0, :-1], expected, rtol=2e-5)
    assert int(state.n[0]) == 10_000_000
    assert float(watcher.read(state).mean[0]) == pytest.approx(0.25, rel=1e-6)


def test_thresholds_are_those_of_the_given_parameters():
    strict = REWARD.params | {"thresholds": REWARD.params["thresholds"].at[0].set(0.0)}
    batches = make((10, 32), low=-1.0, high=1.2)
    assert bool(watch(batches, monitor(REWARD, params=strict)).alarm[0])
    assert not bool(watch(batches).alarm[0])


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"alpha: 1\.5"):
        monitor(REWARD, alpha=1.5)
    other = compile(Contract("o", terms=(score,), stakeholders=(Stakeholder("me", {"score": 1.0}),)))
    watcher = monitor(REWARD)
    with pytest.raises(ValueError, match=r"out: costs have shape \(4, 0\), expected \[B, 6\]"):
        watcher.update(watcher.init(), other(other.params, make(4)))
    empty = monitor(other)
    assert empty.read(empty.update(empty.init(), other(other.params, make(4)))).n.shape == (0,)
