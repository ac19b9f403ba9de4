"""The surrogate and the KL estimates against loops in float64 and exact distributions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from rlx.align import kl_estimate, policy_loss

RNG = np.random.default_rng(0)
OLD = -RNG.random((5, 7)).astype(np.float32)
LOGP = OLD + RNG.normal(scale=0.4, size=(5, 7)).astype(np.float32)
ADVANTAGES = RNG.normal(size=5).astype(np.float32)
MASK = np.arange(7) < np.array([7, 4, 1, 0, 3])[:, None]


def loop(low, high, reduce):
    out = []
    for b in range(5):
        terms = []
        for t in range(7):
            if MASK[b, t]:
                ratio = np.exp(np.float64(LOGP[b, t]) - np.float64(OLD[b, t]))
                clipped = min(max(ratio, 1 - low), 1 + high)
                terms.append(-min(ratio * ADVANTAGES[b], clipped * ADVANTAGES[b]))
        out.append(sum(terms) / (max(len(terms), 1) if reduce == "mean" else 1))
    return np.array(out)


@pytest.mark.parametrize("reduce", ["mean", "sum"])
@pytest.mark.parametrize("high", [None, 0.28])
def test_surrogate_is_a_loop_over_tokens(reduce, high):
    found = policy_loss(*map(jnp.asarray, (LOGP, OLD, ADVANTAGES, MASK)), clip=0.2, clip_high=high, reduce=reduce)
    np.testing.assert_allclose(found, loop(0.2, high or 0.2, reduce), rtol=1e-5, atol=1e-6)


def test_both_signs_by_hand():
    """A good token stops paying above 1.2, a bad one keeps costing; a bad one stops paying below 0.8."""
    ratios = jnp.array([[0.5, 1.0, 1.5], [0.5, 1.0, 1.5]])
    advantages = jnp.array([[1.0, 1.0, 1.0], [-1.0, -1.0, -1.0]])
    found = policy_loss(jnp.log(ratios), jnp.zeros((2, 3)), advantages, jnp.ones((2, 3)), clip=0.2)
    np.testing.assert_allclose(found, [-(0.5 + 1.0 + 1.2) / 3, (0.8 + 1.0 + 1.5) / 3], rtol=1e-6)


def test_gradient_at_the_old_policy_is_the_policy_gradient():
    gradient = jax.grad(
        lambda logp: jnp.sum(policy_loss(logp, jnp.asarray(OLD), jnp.asarray(ADVANTAGES), jnp.asarray(MASK)))
    )(jnp.asarray(OLD))
    expected = -ADVANTAGES[:, None] * MASK / np.maximum(MASK.sum(1, keepdims=True), 1)
    np.testing.assert_allclose(gradient, expected, rtol=1e-6, atol=1e-7)


def test_no_gradient_where_clipping_pays():
    gradient = jax.grad(
        lambda logp: policy_loss(logp, jnp.zeros((1, 2)), jnp.ones(1), jnp.ones((1, 2)), reduce="sum")[0]
    )(jnp.log(jnp.array([[1.5, 1.1]])))
    np.testing.assert_allclose(gradient, [[0.0, -1.1]], rtol=1e-6)


def test_nothing_flows_into_the_sampler_or_the_advantages():
    gradients = jax.grad(lambda o, a: jnp.sum(policy_loss(jnp.asarray(LOGP), o, a, jnp.asarray(MASK))), argnums=(0, 1))(
        jnp.asarray(OLD), jnp.asarray(ADVANTAGES)
    )
    assert all(not jnp.any(g) for g in gradients)


@pytest.mark.parametrize("function", ["policy_loss", "k1", "k2", "k3"])
def test_padding_changes_nothing(function):
    def loss(logp, old):
        if function == "policy_loss":
            return policy_loss(logp, old, jnp.asarray(ADVANTAGES), jnp.asarray(MASK))
        return kl_estimate(logp, old, jnp.asarray(MASK), estimator=function)

    wild = jnp.where(MASK, LOGP, jnp.inf), jnp.where(MASK, OLD, -jnp.inf)
    np.testing.assert_array_equal(loss(*wild), loss(jnp.asarray(LOGP), jnp.asarray(OLD)))
    gradient = jax.grad(lambda logp: jnp.sum(loss(logp, wild[1])))(wild[0])
    assert jnp.all(jnp.isfinite(gradient))
    assert not jnp.any(jnp.where(MASK, 0.0, gradient))


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_kl_estimates_are_unbiased(estimator):
    """Expectation over all tokens of a small vocabulary, weighted by the policy: the KL itself."""
    p = np.random.default_rng(1).dirichlet(np.ones(6))
    q = np.random.default_rng(2).dirichlet(np.ones(6))
    logp, logq = (jnp.asarray(np.log(x), jnp.float32)[:, None] for x in (p, q))
    found = kl_estimate(logp, logq, jnp.ones((6, 1)), estimator=estimator)
    assert float(np.sum(p * np.asarray(found))) == pytest.approx(float(np.sum(p * np.log(p / q))), rel=1e-5)


def test_k2_has_the_gradient_of_the_kl():
    q = jnp.asarray(np.random.default_rng(2).dirichlet(np.ones(6)), jnp.float32)
    logits = jnp.asarray(np.random.default_rng(3).normal(size=6), jnp.float32)
    frozen = jax.nn.softmax(logits)

    def sampled(logits):
        logp = jax.nn.log_softmax(logits)
        return jnp.sum(frozen * kl_estimate(logp[:, None], jnp.log(q)[:, None], jnp.ones((6, 1)), estimator="k2"))

    def exact(logits):
        p = jax.nn.softmax(logits)
        return jnp.sum(p * (jnp.log(p) - jnp.log(q)))

    np.testing.assert_allclose(jax.grad(sampled)(logits), jax.grad(exact)(logits), rtol=1e-4, atol=1e-6)


def test_k3_is_never_negative_and_sums():
    arrays = tuple(map(jnp.asarray, (LOGP, OLD, MASK)))
    mean, total = (kl_estimate(*arrays, reduce=reduce) for reduce in ("mean", "sum"))
    assert jnp.all(total >= 0)
    np.testing.assert_allclose(total, mean * MASK.sum(1).astype(np.float32), rtol=1e-6)


def test_gradients_are_finite_differences():
    with jax.enable_x64(True):
        logp, old, advantages = (jnp.asarray(x, jnp.float64) for x in (LOGP, OLD, ADVANTAGES))
        mask = jnp.asarray(MASK)
        check_grads(lambda x: policy_loss(x, old, advantages, mask), (logp,), order=1)
        for estimator in ("k1", "k2", "k3"):
            check_grads(lambda x, e=estimator: kl_estimate(x, old, mask, estimator=e), (logp,), order=1)


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="mask: dim T=6 disagrees with T=7 of logp"):
        policy_loss(jnp.ones((5, 7)), jnp.ones((5, 7)), jnp.ones(5), jnp.ones((5, 6)))
    with pytest.raises(ValueError, match="estimator: 'k4'"):
        kl_estimate(jnp.ones((5, 7)), jnp.ones((5, 7)), jnp.ones((5, 7)), estimator="k4")
    with pytest.raises(ValueError, match="reduce: 'max'"):
        policy_loss(jnp.ones((5, 7)), jnp.ones((5, 7)), jnp.ones(5), jnp.ones((5, 7)), reduce="max")
