"""Preference losses against float64, and the optimum that each is made for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from rlx.align import preference_loss

ARRAYS = np.random.default_rng(0).normal(scale=3.0, size=(4, 8)).astype(np.float32)


def test_dpo_golden():
    """TRL's dpo step-1 loss: the policy is the reference, so ln 2 (0.693147125 there, float32)."""
    same = jnp.asarray(ARRAYS[0])
    np.testing.assert_allclose(preference_loss(same, same, same, same), 0.693147125, atol=1e-7)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_dpo_equation(smoothing):
    c, r, rc, rr = ARRAYS.astype(np.float64)
    h = 0.3 * ((c - rc) - (r - rr))
    expected = (1 - smoothing) * np.log1p(np.exp(-h)) + smoothing * np.log1p(np.exp(h))
    found = preference_loss(*map(jnp.asarray, ARRAYS), beta=0.3, label_smoothing=smoothing)
    np.testing.assert_allclose(found, expected, rtol=2e-6)


def test_ipo_equation_and_minimum():
    c, r, rc, rr = ARRAYS.astype(np.float64)
    found = preference_loss(*map(jnp.asarray, ARRAYS), beta=0.5, kind="ipo")
    np.testing.assert_allclose(found, ((c - rc) - (r - rr) - 1.0) ** 2, rtol=1e-5, atol=1e-6)
    zero = jnp.zeros(1)
    assert float(preference_loss(jnp.array([5.0]), zero, zero, zero, beta=0.1, kind="ipo")[0]) == pytest.approx(0.0)


def test_dpo_does_not_overflow():
    big = jnp.array([1e4])
    zero = jnp.zeros(1)
    value, slope = jax.value_and_grad(lambda x: preference_loss(zero, x, zero, zero, beta=1.0)[0])(big)
    assert float(value) == pytest.approx(1e4)
    assert float(slope[0]) == pytest.approx(1.0)


@pytest.mark.parametrize("kind", ["dpo", "ipo"])
def test_gradients_are_finite_differences(kind):
    with jax.enable_x64(True):
        arrays = tuple(jnp.asarray(a, jnp.float64) for a in ARRAYS)
        check_grads(lambda *a: preference_loss(*a, beta=0.3, kind=kind), arrays, order=2, modes=["rev"])


def test_mixed_dtypes_are_widened():
    half = jnp.asarray(ARRAYS[0], jnp.bfloat16)
    assert preference_loss(half, *map(jnp.asarray, ARRAYS[1:])).dtype == jnp.float32


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="rejected: dim B=3 disagrees with B=2 of chosen"):
        preference_loss(jnp.ones(2), jnp.ones(3), jnp.ones(2), jnp.ones(2))
    with pytest.raises(ValueError, match="kind: 'kto'"):
        preference_loss(*[jnp.ones(2)] * 4, kind="kto")
