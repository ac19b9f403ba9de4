"""A compiled contract: its value, its parameters, and that it is one pure function under every transformation."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from jax.test_util import check_grads

from rlx import contracts
from rlx.contracts import Chance, Contract, Event, Expect, MaxMin, Nash, Stakeholder, Term, WeightedSum

E = ord("e")
fluency = Term("fluency", lambda b: jnp.exp(b["ref_logp"]), level="token")
letters = Term("letters", lambda b: jnp.mean(b["tokens"] >= 97, axis=-1))
brevity = Term("brevity", lambda b: 1.0 - jnp.mean(b["mask"], axis=-1))
has_e = Term("has_e", lambda b: jnp.any((b["tokens"] == E) & b["mask"].astype(jnp.bool_), axis=-1))


def make(aggregate=None, **changes):
    people = tuple(Stakeholder(name, {name: 1.0}) for name in ("fluency", "letters", "brevity"))
    contract = Contract(
        "lipogram",
        terms=(fluency, letters, brevity),
        stakeholders=people,
        aggregate=aggregate or WeightedSum(),
        constraints=(Chance(has_e > 0.5) <= 0.1, Expect(brevity) >= 0.2),
    )
    return dataclasses.replace(contract, **changes)


def make_batch(size=16, length=8, seed=0):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, length + 1, size)
    return {
        "tokens": jnp.asarray(rng.integers(90, 110, (size, length)), jnp.int32),
        "mask": jnp.asarray(np.arange(length) < lengths[:, None]),
        "ref_logp": jnp.asarray(-3 * rng.random((size, length)), jnp.float32),
    }


def by_hand(batch, multipliers=(0.0, 0.0)):
    """The contract of `make`, written out in numpy float64."""
    tokens, mask, logp = (np.asarray(batch[n], np.float64) for n in ("tokens", "mask", "ref_logp"))
    u = np.stack([(np.exp(logp) * mask).sum(-1) / mask.sum(-1), (tokens >= 97).mean(-1), 1 - mask.mean(-1)], -1)
    costs = np.stack([((tokens == E) & (mask > 0)).any(-1).astype(float), -u[:, 2]], -1)
    penalty = (costs - np.array([0.1, -0.2])) @ np.asarray(multipliers)
    return u, costs, u.sum(-1) - penalty


RULES = [WeightedSum(), Nash(disagreement=-0.05), MaxMin(0.1)]


def test_value_is_the_contract_written_out():
    reward, batch = contracts.compile(make()), make_batch()
    params = reward.params | {"multipliers": jnp.array([0.7, 1.5])}
    out = reward(params, batch)
    u, costs, total = by_hand(batch, (0.7, 1.5))
    np.testing.assert_allclose(out.utilities, u, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(out.costs, costs, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(out.total, total, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(out.violated, costs > np.array([0.1, -0.2]))
    assert set(out.terms) == {"fluency", "letters", "brevity", "has_e"}


def test_a_satisfied_constraint_costs_nothing():
    """An earlier public system gave 0.5 instead of 1.0 for a satisfied constraint, inside jit only."""
    ok = Term("ok", lambda b: b["x"])
    free = Contract("free", terms=(ok,), stakeholders=(Stakeholder("me", {"ok": 1.0}),))
    bound = dataclasses.replace(free, constraints=(Expect(ok) <= 2.0, Chance(ok > 2.0) <= 0.1))
    batch = {"x": jnp.array([1.0, 1.0])}
    for call in (lambda r: r(r.params, batch), lambda r: jax.jit(r)(r.params, batch)):
        assert call(contracts.compile(free)).total.tolist() == [1.0, 1.0]
        assert call(contracts.compile(bound)).total.tolist() == [1.0, 1.0]
        assert not call(contracts.compile(bound)).violated.any()


def test_rules_are_not_the_same_rule():
    """An earlier public system answered 0.5 for every aggregate."""
    totals = [contracts.compile(make(rule))(contracts.compile(make(rule)).params, make_batch()).total for rule in RULES]
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert float(jnp.min(jnp.abs(totals[a] - totals[b]))) > 1e-3


def test_two_contracts_never_share_a_reward():
    """An earlier public system returned contract 1's cached reward for contract 2."""
    batch = {"x": jnp.array([0.5])}
    totals = []
    for factor in (1.0, 10.0):
        term = Term("x", lambda b, factor=factor: b["x"] * factor)
        reward = contracts.compile(Contract("same", terms=(term,), stakeholders=(Stakeholder("me", {"x": 1.0}),)))
        totals.append(float(jax.jit(reward)(reward.params, batch).total[0]))
    assert totals == [0.5, 5.0]


@pytest.mark.parametrize("rule", RULES)
def test_token_rewards_sum_to_the_total(rule):
    reward, batch = contracts.compile(make(rule)), make_batch()
    params = reward.params | {"multipliers": jnp.array([0.7, 1.5])}
    out = reward(params, batch)
    np.testing.assert_allclose(out.token.sum(-1), out.total, rtol=1e-5, atol=1e-5)
    assert jnp.all(jnp.where(batch["mask"], 0.0, out.token) == 0.0)


def test_token_rewards_are_paid_where_they_occur():
    reward, batch = contracts.compile(make()), make_batch()
    out = reward(reward.params, batch)
    mask = np.asarray(batch["mask"])
    early = mask & (np.arange(8) < mask.sum(-1, keepdims=True) - 1)
    expected = np.exp(np.asarray(batch["ref_logp"])) / mask.sum(-1, keepdims=True)
    np.testing.assert_allclose(np.asarray(out.token)[early], expected[early], rtol=1e-5)


def test_sequence_contracts_have_no_token_reward():
    contract = Contract("s", terms=(letters,), stakeholders=(Stakeholder("me", {"letters": 1.0}),))
    reward = contracts.compile(contract)
    assert reward(reward.params, {"tokens": jnp.zeros((2, 3), jnp.int32)}).token is None


@pytest.mark.parametrize("rule", RULES)
def test_padding_changes_nothing(rule):
    reward, batch = (
        contracts.compile(
            make(
                rule,
                terms=(fluency,),
                stakeholders=(Stakeholder("f", {"fluency": 1.0}),),
                constraints=(Chance(has_e > 0.5) <= 0.1,),
            )
        ),
        make_batch(),
    )
    reward = dataclasses.replace(reward)
    wild = {
        "tokens": jnp.where(batch["mask"], batch["tokens"], E),
        "mask": batch["mask"],
        "ref_logp": jnp.where(batch["mask"], batch["ref_logp"], jnp.nan),
    }
    a, b = reward(reward.params, batch), reward(reward.params, wild)
    np.testing.assert_array_equal(a.total, b.total)
    np.testing.assert_array_equal(a.token, b.token)


@pytest.mark.parametrize("rule", RULES)
def test_same_under_jit_vmap_shard_map_and_pmap(rule):
    reward, batch = contracts.compile(make(rule)), make_batch(size=32)
    params = reward.params | {"multipliers": jnp.array([0.7, 1.5])}
    plain = reward(params, batch)
    split = jax.tree.map(lambda x: x.reshape(8, 4, *x.shape[1:]), batch)

    def same(other):
        flat = jax.tree.map(lambda x: x.reshape(32, *x.shape[2:]) if x.shape[:2] == (8, 4) else x, other)
        for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(flat), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)

    same(jax.jit(reward)(params, batch))
    same(jax.vmap(reward, in_axes=(None, 0))(params, split))
    same(jax.pmap(reward, in_axes=(None, 0))(params, split))
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    data, whole = PartitionSpec("data"), PartitionSpec()
    same(jax.jit(jax.shard_map(reward, mesh=mesh, in_specs=(whole, data), out_specs=data))(params, batch))


def test_new_values_never_retrace():
    traces = []
    reward, batch = contracts.compile(make(Nash())), make_batch()

    @jax.jit
    def step(params, batch):
        traces.append(1)
        return reward(params, batch).total

    first = step(reward.params, batch)
    changed = jax.tree.map(lambda x: x + 0.25, reward.params)
    assert not jnp.allclose(first, step(changed, batch))
    assert len(traces) == 1


@pytest.mark.parametrize("rule", RULES)
def test_gradients_of_params_are_finite_differences(rule):
    with jax.enable_x64(True):
        reward, batch = contracts.compile(make(rule)), make_batch(size=4)
        batch = batch | {"ref_logp": batch["ref_logp"].astype(jnp.float64)}
        params = {n: v.astype(jnp.float64) for n, v in reward.params.items() if n not in ("levels",)}
        smooth = lambda p: jnp.mean(reward(p | {"levels": reward.params["levels"]}, batch).total)  # noqa: E731
        check_grads(smooth, (params | {"multipliers": jnp.array([0.3, 0.4])},), order=1, modes=["rev"])


def test_gradients_reach_the_inputs():
    reward, batch = contracts.compile(make()), make_batch()
    gradient = jax.grad(lambda x: jnp.sum(reward(reward.params, batch | {"ref_logp": x}).total))(batch["ref_logp"])
    mask = np.asarray(batch["mask"])
    expected = np.exp(np.asarray(batch["ref_logp"])) * mask / mask.sum(-1, keepdims=True)
    np.testing.assert_allclose(gradient, expected, rtol=1e-5)


def test_constraints_in_both_directions():
    x = Term("x", lambda b: b["x"], range=(-1.0, 1.0))
    limits = (
        Expect(x) <= 0.5,
        Expect(x) >= 0.5,
        Chance(x > 0.0) <= 0.25,
        Chance(x > 0.0) >= 0.25,
        Chance(x < 0.0) <= 0.1,
    )
    reward = contracts.compile(
        Contract("c", terms=(x,), stakeholders=(Stakeholder("me", {"x": 1.0}),), constraints=limits)
    )
    out = reward(reward.params, {"x": jnp.array([-1.0, 0.75])})
    assert out.costs.tolist() == [[-1.0, 1.0, 0.0, 1.0, 1.0], [0.75, -0.75, 1.0, 0.0, 0.0]]
    np.testing.assert_allclose(reward.params["thresholds"], [0.5, -0.5, 0.25, 0.75, 0.1])
    assert out.violated.tolist() == [[False, True, False, True, True], [True, False, True, False, False]]


def test_reduce_sum_adds_over_the_mask():
    count = Term("count", lambda b: jnp.ones(b["mask"].shape), level="token", reduce="sum")
    reward = contracts.compile(Contract("c", terms=(count,), stakeholders=(Stakeholder("me", {"count": 1.0}),)))
    mask = jnp.array([[1.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    assert reward(reward.params, {"mask": mask}).total.tolist() == [2.0, 0.0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stakeholders": (Stakeholder("me", {"nothing": 1.0}),)}, "wants 'nothing', which is not a term"),
        ({"terms": (letters, letters, fluency, brevity)}, "term 'letters' is declared twice"),
        ({"stakeholders": ()}, "no stakeholder"),
        ({"constraints": (Expect("gone") <= 1.0,)}, "uses 'gone', which is not a term"),
        ({"constraints": (Expect(Term("letters", lambda b: b["x"])) <= 1.0,)}, "another term with the name 'letters'"),
        ({"aggregate": Nash((0.0, 0.0))}, "disagreement: 2 values for 3 stakeholders"),
        ({"aggregate": Nash({"fluency": 0.0})}, "disagreement: 'brevity'"),
    ],
)
def test_bad_names_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        contracts.compile(make(**changes))


def test_wrong_shapes_are_named():
    contract = Contract("f", terms=(fluency,), stakeholders=(Stakeholder("me", {"fluency": 1.0}),))
    reward, batch = contracts.compile(contract), make_batch()
    with pytest.raises(ValueError, match=r"term 'fluency': shape \(16, 8\) disagrees with mask \(16, 7\)"):
        reward(reward.params, batch | {"mask": jnp.ones((16, 7))})
    del batch["mask"]
    with pytest.raises(ValueError, match=r'mask: token-level term .fluency. is reduced by batch\["mask"\]'):
        reward(reward.params, batch)
    wrong = Term("w", lambda b: b["tokens"])
    bad = contracts.compile(Contract("w", terms=(wrong,), stakeholders=(Stakeholder("me", {"w": 1.0}),)))
    with pytest.raises(ValueError, match=r"term 'w': fn returned shape \(16, 8\), level 'sequence' means \[B\]"):
        bad(bad.params, make_batch())


def test_chained_comparisons_are_refused():
    with pytest.raises(TypeError, match="no truth value"):
        Chance(0.0 < letters < 1.0)
    with pytest.raises(TypeError, match="no truth value"):
        0.0 <= Expect(letters) <= 1.0  # noqa: B015
    with pytest.raises(TypeError, match="expected a compared term"):
        Chance(letters)
    with pytest.raises(ValueError, match="relation"):
        Event("letters", "!=", 1.0)
