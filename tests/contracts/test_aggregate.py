"""Each rule against its equation, the axioms that name it, and finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from rlx.contracts import aggregate

UTILITIES = np.random.default_rng(0).uniform(0.05, 1.0, (32, 3)).astype(np.float32)
WEIGHTS = jnp.array([0.5, 1.0, 2.0])
RULES = {
    "weighted_sum": lambda u, w: aggregate.weighted_sum(u, w),
    "nash": lambda u, w: aggregate.nash(u, w, jnp.zeros(3)),
    "max_min": lambda u, w: aggregate.max_min(u, w, temperature=0.1),
    "max_min hard": lambda u, w: aggregate.max_min(u, w, temperature=0.0),
}


@pytest.mark.parametrize("name", RULES)
def test_more_for_one_never_lowers_the_whole(name):
    """Strong Pareto for the strictly increasing rules, weak Pareto for the minimum."""
    before = RULES[name](jnp.asarray(UTILITIES), WEIGHTS)
    for k in range(3):
        more = UTILITIES.copy()
        more[:, k] += 0.1
        after = RULES[name](jnp.asarray(more), WEIGHTS)
        assert jnp.all(after >= before) if name.startswith("max_min") else jnp.all(after > before)
    assert jnp.all(RULES[name](jnp.asarray(UTILITIES + 0.1), WEIGHTS) > before)


@pytest.mark.parametrize("name", RULES)
def test_equal_weights_are_symmetric(name):
    whole = RULES[name](jnp.asarray(UTILITIES), jnp.ones(3))
    mixed = RULES[name](jnp.asarray(UTILITIES[:, [2, 0, 1]]), jnp.ones(3))
    np.testing.assert_allclose(whole, mixed, rtol=1e-5, atol=1e-6)


def test_weighted_sum_is_its_equation():
    expected = UTILITIES.astype(np.float64) @ np.array([0.5, 1.0, 2.0])
    np.testing.assert_allclose(aggregate.weighted_sum(jnp.asarray(UTILITIES), WEIGHTS), expected, rtol=1e-6)


def test_nash_is_the_log_of_the_product_of_gains_not_an_average():
    d = np.array([0.0, 0.02, 0.04], np.float32)
    gains = UTILITIES.astype(np.float64) - d
    expected = np.log(np.prod(gains ** np.array([0.5, 1.0, 2.0]), axis=-1))
    found = aggregate.nash(jnp.asarray(UTILITIES), WEIGHTS, jnp.asarray(d))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    # what an average cannot see: (0.1, 0.9) and (0.5, 0.5) have the same mean
    unequal, equal = aggregate.nash(jnp.array([[0.1, 0.9], [0.5, 0.5]]), jnp.ones(2))
    assert equal > unequal + 1.0


def test_nash_choice_does_not_depend_on_anyones_scale():
    """Independence of utility units: the best of many outcomes stays the best when gains are rescaled."""
    d = jnp.array([0.1, 0.0, 0.02])
    gains = jnp.asarray(UTILITIES) + 0.05
    scaled = gains * jnp.array([[5.0, 0.2, 30.0]])
    plain = aggregate.nash(gains + d[None], WEIGHTS, d)
    rescaled = aggregate.nash(scaled + d[None], WEIGHTS, d)
    shift = float(jnp.sum(WEIGHTS * jnp.log(jnp.array([5.0, 0.2, 30.0]))))
    np.testing.assert_allclose(rescaled - plain, shift, rtol=2e-5, atol=2e-5)
    assert int(jnp.argmax(plain)) == int(jnp.argmax(rescaled))


def test_nash_of_a_pie_is_the_weighted_split():
    """Dividing 1 between two with powers a and b gives a / (a + b): Nash 1950, weighted."""
    share = jnp.linspace(0.01, 0.99, 981)
    value = aggregate.nash(jnp.stack([share, 1.0 - share], axis=-1), jnp.array([3.0, 1.0]))
    assert float(share[jnp.argmax(value)]) == pytest.approx(0.75, abs=2e-3)


def test_nash_is_smooth_and_finite_at_and_below_disagreement():
    floor = 1e-2
    u = jnp.array([-2.0, -1e-6, 0.0, 1e-6, floor - 1e-7, floor, floor + 1e-7, 0.5])[:, None]
    value, slope = jax.vmap(jax.value_and_grad(lambda x: aggregate.nash(x, jnp.ones(1), jnp.zeros(1), floor=floor)))(u)
    assert jnp.all(jnp.isfinite(value))
    assert jnp.all(jnp.diff(value) > 0)
    np.testing.assert_allclose(slope[:6, 0], 1 / floor, rtol=1e-4)
    assert float(slope[-1, 0]) == pytest.approx(2.0)
    assert float(value[0]) == pytest.approx(np.log(floor) + (-2.0 - floor) / floor, rel=1e-5)


def test_max_min_goes_to_the_least_and_ignores_weight_zero():
    u = jnp.array([[0.7, 0.2, 0.4], [0.1, 0.9, 0.3]])
    np.testing.assert_allclose(aggregate.max_min(u, jnp.ones(3), temperature=0.0), [0.2, 0.1])
    np.testing.assert_allclose(aggregate.max_min(u, jnp.ones(3), temperature=1e-3), [0.2, 0.1], atol=2e-3)
    np.testing.assert_allclose(aggregate.max_min(u, jnp.array([1.0, 0.0, 1.0]), temperature=0.0), [0.4, 0.1])
    away = aggregate.max_min(jnp.array([[0.5, -1e4]]), jnp.array([1.0, 0.0]), temperature=0.1)
    np.testing.assert_allclose(away, [0.5])


def test_max_min_is_its_equation():
    share = np.array([0.5, 1.0, 2.0]) / 3.5
    expected = -0.1 * np.log(np.exp(-UTILITIES.astype(np.float64) / 0.1) @ share)
    found = aggregate.max_min(jnp.asarray(UTILITIES), WEIGHTS, temperature=0.1)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("temperature", [0.0, 0.1])
def test_max_min_temperature_is_an_array_with_finite_gradients(temperature):
    gradient = jax.grad(lambda u, w, t: jnp.sum(aggregate.max_min(u, w, temperature=t)), argnums=(0, 1, 2))(
        jnp.asarray(UTILITIES), WEIGHTS, jnp.asarray(temperature)
    )
    assert all(bool(jnp.all(jnp.isfinite(g))) for g in gradient)


@pytest.mark.parametrize("name", ["weighted_sum", "nash", "max_min"])
def test_gradients_are_finite_differences(name):
    with jax.enable_x64(True):
        u, w = jnp.asarray(UTILITIES[:4] + 0.5, jnp.float64), WEIGHTS.astype(jnp.float64)
        rules = RULES | {"nash": lambda u, w: aggregate.nash(u, w, jnp.zeros(3, jnp.float64))}
        check_grads(rules[name], (u, w), order=2, modes=["fwd", "rev"])


def test_wrong_shapes_name_the_argument():
    with pytest.raises(ValueError, match=r"weights: dim K=2 disagrees with K=3 of utilities"):
        aggregate.nash(jnp.ones((4, 3)), jnp.ones(2), jnp.zeros(3))
