"""The paired t interval against scipy, its coverage by simulation, and the edges."""

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from rlx.stats import paired_difference


@pytest.mark.parametrize("n", [2, 5, 200])
@pytest.mark.parametrize("level", [0.9, 0.99])
def test_scipy_agrees(n, level):
    rng = np.random.default_rng(n)
    x, y = rng.normal(size=n) + 0.3, rng.normal(size=n)
    found, oracle = paired_difference(x, y, level=level), scipy.stats.ttest_rel(x, y)
    ci = oracle.confidence_interval(level)
    assert found.estimate == pytest.approx(np.mean(x - y), rel=1e-12)
    assert found.se == pytest.approx(scipy.stats.sem(x - y), rel=1e-12)
    assert found.pvalue == pytest.approx(oracle.pvalue, rel=1e-9)
    assert found.ci == pytest.approx((ci.low, ci.high), rel=1e-9)
    assert (found.n, found.level) == (n, level)


def test_student_1908():
    """Student's sleep data (Cushny and Peebles): difference 1.58 h, t = 4.0621, p = 0.00283."""
    drug_1 = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
    drug_2 = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]
    found = paired_difference(drug_2, drug_1)
    assert found.estimate == pytest.approx(1.58)
    assert found.estimate / found.se == pytest.approx(4.0621, abs=1e-4)
    assert found.pvalue == pytest.approx(0.00283, abs=1e-5)
    assert found.ci == pytest.approx((0.7001, 2.4599), abs=1e-4)


def test_coverage():
    rng = np.random.default_rng(0)
    runs, hits = 1000, 0
    for _ in range(runs):
        base = rng.normal(size=8) * 5
        ci = paired_difference(base + rng.normal(size=8) + 0.5, base, level=0.9).ci
        hits += ci[0] <= 0.5 <= ci[1]
    assert scipy.stats.binomtest(hits, runs, 0.9).pvalue > 1e-3


def test_equal_differences():
    shifted = paired_difference([1.0, 2.0, 3.0], [0.5, 1.5, 2.5])
    assert (shifted.estimate, shifted.se, shifted.ci, shifted.pvalue) == (0.5, 0.0, (0.5, 0.5), 0.0)
    assert paired_difference([1.0, 2.0], [1.0, 2.0]).pvalue == 1.0


def test_jax_arrays_and_float32():
    found = paired_difference(jnp.array([1.0, 2.0, 4.0]), jnp.array([0.0, 2.0, 1.0]))
    assert found.estimate == pytest.approx(4 / 3)
    assert isinstance(found.se, float)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        ([1.0], [1.0], "x: expected"),
        ([1.0, 2.0], [1.0, 2.0, 3.0], "y: N=3 disagrees"),
        ([1.0, float("nan")], [1.0, 2.0], "x: element 1 is not finite"),
        ([1.0, 2.0], [float("inf"), 2.0], "y: element 0 is not finite"),
        ([[1.0, 2.0]], [1.0, 2.0], "x: expected"),
    ],
)
def test_mistakes_are_named(x, y, message):
    with pytest.raises(ValueError, match=message):
        paired_difference(x, y)
    with pytest.raises(ValueError, match="level: 95"):
        paired_difference([1.0, 2.0], [0.0, 0.0], level=95)
