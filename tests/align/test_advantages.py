"""Group advantages against goldens of Tunix and the equations in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from rlx.align import group_advantages

REWARDS = np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32)


def test_rloo_golden():
    """Tunix: RLOO([1..6], G=3) = [-1.5, 0, 1.5, -1.5, 0, 1.5]."""
    found = group_advantages(jnp.arange(1.0, 7.0).reshape(2, 3), kind="rloo")
    np.testing.assert_allclose(found, [[-1.5, 0.0, 1.5]] * 2, atol=1e-6)


def test_grpo_golden():
    """Tunix: grpo([1, 0, 0, 1], 2) with eps 1e-6 and ddof 1."""
    found = group_advantages(jnp.array([[1.0, 0.0], [0.0, 1.0]]), kind="grpo")
    np.testing.assert_allclose(found, [[0.7071058, -0.7071058], [-0.7071058, 0.7071058]], atol=1e-7)


def test_equations():
    r = REWARDS.astype(np.float64)
    others = np.stack([np.delete(r, i, axis=1).mean(1) for i in range(5)], axis=1)
    expected = {
        "grpo": (r - r.mean(1, keepdims=True)) / (r.std(1, ddof=1, keepdims=True) + 1e-6),
        "rloo": r - others,
        "drgrpo": r - r.mean(1, keepdims=True),
    }
    for kind, value in expected.items():
        np.testing.assert_allclose(group_advantages(jnp.asarray(REWARDS), kind=kind), value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["grpo", "rloo", "drgrpo"])
def test_equal_rewards_teach_nothing(kind):
    value, slope = jax.value_and_grad(lambda r: jnp.sum(group_advantages(r, kind=kind) * jnp.arange(4.0)[None]))(
        jnp.full((1, 4), 0.25)
    )
    assert float(value) == 0.0
    assert jnp.all(jnp.isfinite(slope))


@pytest.mark.parametrize("kind", ["grpo", "rloo", "drgrpo"])
def test_gradients_are_finite_differences(kind):
    with jax.enable_x64(True):
        check_grads(lambda r: group_advantages(r, kind=kind), (jnp.asarray(REWARDS, jnp.float64),), order=1)


def test_small_floats_are_widened():
    assert group_advantages(jnp.asarray(REWARDS, jnp.bfloat16)).dtype == jnp.float32


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="rewards: G=1"):
        group_advantages(jnp.ones((4, 1)))
    with pytest.raises(ValueError, match="kind: 'gae'"):
        group_advantages(jnp.ones((4, 2)), kind="gae")
    with pytest.raises(ValueError, match=r"rewards: expected dims \[B, G\]"):
        group_advantages(jnp.ones(4))
