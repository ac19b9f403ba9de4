"""What constraints cost, what parameters are, and the traps that an earlier public system fell into."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from jax.test_util import check_grads

import rlx.contracts
from rlx.contracts import (
    Always,
    Chance,
    Contract,
    CVaR,
    Eventually,
    Expect,
    Nash,
    Stakeholder,
    Term,
    Until,
    compile,
)

x = Term("x", lambda b: b["x"], range=(-1.0, 1.0))
y = Term("y", lambda b: b["y"], level="token", range=(-1.0, 1.0))
PEOPLE = (Stakeholder("me", {"x": 1.0}),)


def reward_of(*constraints, **changes):
    return compile(Contract("c", terms=(x,), stakeholders=PEOPLE, constraints=constraints, **changes))


def make(size=16, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "x": jnp.asarray(rng.uniform(-1, 1, size), jnp.float32),
        "y": jnp.asarray(rng.uniform(-1, 1, (size, 6)), jnp.float32),
        "mask": jnp.asarray(np.arange(6) < rng.integers(1, 7, (size, 1))),
    }


def tail_mean(values, level):
    """The mean of the worst 1 - level of the sample, a value at the edge counted in part (Acerbi and Tasche 2002)."""
    ranked = np.sort(np.asarray(values, np.float64))[::-1]
    room, total = (1 - level) * len(ranked), 0.0
    for i, value in enumerate(ranked):
        total += value * np.clip(room - i, 0.0, 1.0)
    return total / room


@pytest.mark.parametrize("level", [0.0, 0.3, 0.5, 0.77, 0.9, 0.99])
@pytest.mark.parametrize("size", [1, 7, 10, 64])
def test_the_mean_cost_is_the_cvar_of_the_batch(level, size):
    batch = make(size)
    for constraint, sign in ((CVaR(x, level) <= 0.5, 1.0), (CVaR(x, level) >= -0.5, -1.0)):
        reward = reward_of(constraint)
        cost = float(jnp.mean(reward(reward.params, batch).costs))
        assert cost == pytest.approx(tail_mean(sign * np.asarray(batch["x"]), level), rel=2e-5, abs=2e-6)


def test_a_given_eta_bounds_the_cvar_and_is_tight_at_the_quantile():
    batch = make(50)
    exact = tail_mean(batch["x"], 0.8)
    reward = reward_of(CVaR(x, 0.8, at=0.0) <= 0.5)
    found = []
    for at in np.sort(np.asarray(batch["x"])):
        params = reward.params | {"levels": jnp.array([0.8, float(at)])}
        found.append(float(jnp.mean(reward(params, batch).costs)))
    assert min(found) == pytest.approx(exact, rel=1e-5)
    assert all(value >= exact - 1e-5 for value in found)
    # each text's own: another text changes nothing
    other = batch | {"x": batch["x"].at[1:].set(0.9)}
    assert float(reward(reward.params, batch).costs[0, 0]) == float(reward(reward.params, other).costs[0, 0])


def test_the_slope_of_the_cvar_is_that_of_its_tail():
    """Finite differences of the definition; the text at the quantile counts in part."""
    with jax.enable_x64(True):
        reward = reward_of(CVaR(x, 0.7) <= 0.5)
        values = jnp.asarray(np.random.default_rng(1).uniform(-1, 1, 9), jnp.float64)
        check_grads(
            lambda v: jnp.mean(reward(reward.params, {"x": v}).costs), (values,), order=1, modes=["rev"], eps=1e-6
        )
        slope = jax.grad(lambda v: jnp.mean(reward(reward.params, {"x": v}).costs))(values)
    worst = np.argsort(np.asarray(values))[::-1]
    np.testing.assert_allclose(np.asarray(slope)[worst], [1 / 2.7, 1 / 2.7, 0.7 / 2.7, *[0.0] * 6], atol=1e-6)


def test_robustness_is_positive_where_a_text_meets_the_constraint():
    batch = make(64)
    reward = reward_of(Expect(x) <= 0.2, Chance(x > 0.5) <= 0.3, Always(y < 0.9), CVaR(x, 0.5, at=0.1) >= -0.3)
    out = reward(reward.params, batch)
    np.testing.assert_array_equal(out.robustness < 0, out.violated)
    np.testing.assert_allclose(out.robustness[:, 0], 0.2 - batch["x"], atol=1e-6)


def test_what_was_not_measured_is_violated():
    batch = make(4)
    batch = batch | {"x": batch["x"].at[2].set(jnp.nan)}
    reward = reward_of(Expect(x) <= 9.0, Expect(x) >= -9.0, Chance(x > 2.0) <= 0.5, CVaR(x, 0.5, at=0.0) <= 9.0)
    out = reward(reward.params, batch)
    assert out.violated.tolist() == [[False] * 4, [False] * 4, [True] * 4, [False] * 4]
    assert np.isnan(np.asarray(out.costs[2])).all()


def test_learned_terms_have_parameters_and_gradients():
    learned = Term(
        "net", lambda p, b: jnp.tanh(b["x"] * p["w"] + p["b"]), params={"w": jnp.ones(()), "b": jnp.zeros(())}
    )
    contract = Contract("l", terms=(learned,), stakeholders=(Stakeholder("me", {"net": 1.0}),))
    reward, batch = compile(contract), make()
    gradient = jax.grad(lambda p: jnp.mean(reward(p, batch).total))(reward.params)
    expected = jnp.mean((1 - jnp.tanh(batch["x"]) ** 2) * batch["x"])
    np.testing.assert_allclose(gradient["terms"]["net"]["w"], expected, rtol=1e-5)
    traces = []
    step = jax.jit(lambda p: (traces.append(1), reward(p, batch).total)[1])
    step(reward.params)
    changed = step(reward.params | {"terms": {"net": {"w": jnp.float32(2.0), "b": jnp.float32(0.5)}}})
    np.testing.assert_allclose(changed, jnp.tanh(2 * batch["x"] + 0.5), rtol=1e-5)
    assert len(traces) == 1
    other = dataclasses.replace(
        contract, terms=(dataclasses.replace(learned, params={"w": jnp.ones(()), "b": jnp.ones(())}),)
    )
    assert rlx.contracts.digest(contract) != rlx.contracts.digest(other)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": None}, "params: 'weights' is missing"),
        ({"wieghts": jnp.ones(1)}, "params: 'wieghts' is none of levels, multipliers"),
        ({"thresholds": jnp.ones(3)}, r"params: 'thresholds' has shape \(3,\), expected \(1,\)"),
    ],
)
def test_wrong_parameters_are_named(change, message):
    reward = reward_of(Expect(x) <= 0.5)
    params = {n: v for n, v in (reward.params | change).items() if v is not None}
    with pytest.raises(ValueError, match=message):
        reward(params, make())
    with pytest.raises(TypeError, match="params: expected a dict"):
        reward(None, make())


def test_what_is_no_array_is_named():
    reward = reward_of()
    with pytest.raises(TypeError, match="batch: 'prompt' is list, expected an array; leave it out"):
        reward(reward.params, make() | {"prompt": ["a"] * 16})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stakeholders": (Stakeholder("me", {"x": 1.0}, weight=-1.0),)}, r"weight -1\.0"),
        ({"stakeholders": (Stakeholder("me", {"x": 1.0}, weight=float("nan")),)}, "weight nan"),
        ({"stakeholders": (Stakeholder("me", {"x": float("inf")}),)}, "coefficient inf of 'x'"),
        ({"stakeholders": (Stakeholder("me", {"x": 1.0}, weight=0.0),)}, "nobody counts"),
        ({"constraints": (Chance(x > 0.5) <= 2.0,)}, r"limits a probability by 2\.0"),
        ({"constraints": (dataclasses.replace(Expect(x) <= 0.5, multiplier=-1.0),)}, r"multiplier -1\.0, below 0"),
        ({"constraints": (Expect(x) <= 0.5, Expect(x) <= 0.5)}, "is declared twice"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(changes, message):
    contract = Contract("c", terms=(x,), stakeholders=PEOPLE)
    with pytest.raises(ValueError, match=message):
        compile(dataclasses.replace(contract, **changes))


def test_limits_that_make_no_sense_are_refused():
    for make_one in (lambda: Expect(x) <= float("nan"), lambda: Chance(x > 0.5) <= float("inf")):
        with pytest.raises(ValueError, match="limit: "):
            make_one()
    with pytest.raises(ValueError, match="relation: '<' is not one of"):
        rlx.contracts.Constraint(Expect(x), "<", 0.5)


def test_every_kind_on_eight_devices_is_bit_equal():
    """shard_map and pmap against jit of each device's own rows."""
    kinds = (Expect(x) <= 0.1, Chance(x > 0.5) <= 0.2, CVaR(x, 0.75, at=0.3) <= 0.4, Expect(y) >= -0.2)
    kinds += (Always(y < 0.9, 0, 2), Until(y < 0.95, y > 0.0), Chance(~Eventually(y > 0.7)) >= 0.5)
    contract = Contract(
        "all",
        terms=(x, y),
        stakeholders=(*PEOPLE, Stakeholder("you", {"y": 1.0, "x": -0.5}, 2.0)),
        aggregate=Nash(-2.0),
        constraints=kinds,
    )
    reward, batch = compile(contract), make(32)
    params = reward.params | {"multipliers": jnp.linspace(0.1, 0.7, 7)}
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    data, whole = PartitionSpec("data"), PartitionSpec()
    sharded = jax.jit(jax.shard_map(reward, mesh=mesh, in_specs=(whole, data), out_specs=data))(params, batch)
    split = jax.tree.map(lambda v: v.reshape(8, 4, *v.shape[1:]), batch)
    mapped = jax.pmap(reward, in_axes=(None, 0))(params, split)
    for device in range(8):
        alone = reward(params, jax.tree.map(lambda v, d=device: v[d], split))
        for a, b, c in zip(*(jax.tree.leaves(out) for out in (alone, sharded, mapped)), strict=True):
            np.testing.assert_array_equal(a, b[4 * device : 4 * device + 4])
            np.testing.assert_array_equal(a, c[device])


def test_an_error_inside_jit_is_an_error():
    """An earlier public system caught everything around a constraint, so a tracer in an `if` became a penalty."""
    broken = Term("broken", lambda b: b["x"] if b["x"][0] > 0 else -b["x"])
    reward = compile(Contract("b", terms=(x,), stakeholders=PEOPLE, constraints=(Expect(broken) <= 1.0,)))
    with pytest.raises(jax.errors.TracerBoolConversionError):
        reward(reward.params, make())


def test_no_handler_catches_everything():
    root = Path(rlx.contracts.__file__).parent
    for path in root.rglob("*.py"):
        text = path.read_text()
        for broad in ("except:", "except Exception", "except BaseException"):
            assert broad not in text, path


def test_numbers_of_other_contracts_are_not_remembered():
    """An earlier public system cached rewards by a hash that left out code, shapes and dtypes."""
    rewards = [
        compile(Contract("same", terms=(Term("x", lambda b, f=f: f * b["x"]),), stakeholders=PEOPLE))
        for f in (1.0, 10.0)
    ]
    batch = {"x": jnp.array([0.5])}
    assert [float(r(r.params, batch).total[0]) for r in rewards] == [0.5, 5.0]
    assert [float(r(r.params, {"x": jnp.array([0.5, 0.25])}).total[1]) for r in rewards] == [0.25, 2.5]


def test_empty_batches_and_texts_without_room():
    kinds = (Expect(x) <= 0.5, CVaR(x, 0.5) <= 0.5, Always(y < 0.5), Eventually(y < 0.5))
    reward = reward_of(*kinds)
    out = reward(reward.params, {"x": jnp.zeros(0), "y": jnp.zeros((0, 3)), "mask": jnp.zeros((0, 3))})
    assert (out.total.shape, out.costs.shape) == ((0,), (0, 4))
    out = reward(reward.params, {"x": jnp.zeros(2), "y": jnp.zeros((2, 0)), "mask": jnp.zeros((2, 0))})
    assert out.violated.tolist() == [[False, False, False, True]] * 2


def test_arguments_of_another_kind_are_named():
    reward = reward_of(Expect(x) <= 0.5)
    with pytest.raises(TypeError, match="batch: expected a dict of arrays by signal name, got list"):
        reward(reward.params, [1])
    with pytest.raises(KeyError, match="term 'x': the batch has no 'x', it has 'q'"):
        reward(reward.params, {"q": jnp.zeros(2)})
    with pytest.raises(ValueError, match="params: 'multipliers' is list, expected an array"):
        reward(reward.params | {"multipliers": [0.5]}, make())
    with pytest.raises(TypeError, match="utility: expected coefficients by term name of 'm', got list"):
        Stakeholder("m", ["x"])
    for call, name in (
        (compile, "contract"),
        (rlx.contracts.verify, "contract"),
        (rlx.contracts.digest, "contract"),
        (rlx.contracts.card, "contract"),
        (lambda value: rlx.contracts.diff(value, value), "old"),
        (rlx.contracts.monitor, "reward"),
        (rlx.contracts.loads, "text"),
    ):
        with pytest.raises(TypeError, match=f"{name}: expected"):
            call(None)
    with pytest.raises(ValueError, match="says something that is not JSON: unsupported type"):
        rlx.contracts.digest(Contract("c", terms=(x,), stakeholders=PEOPLE, provenance={"a": object()}))
