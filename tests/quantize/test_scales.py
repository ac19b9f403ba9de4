"""The scale of the least squared error beside a search over every breakpoint in float64."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlx import quantize

RANGES = {8: (-127, 127), 4: (-7, 7), 2: (-2, 1)}


def least(row: np.ndarray, bits: int) -> float:
    """The least |row - s c|^2: the codes change at known scales only, and between two the best s is a quotient."""
    low, high = RANGES[bits]
    points = [abs(x) / (k - 0.5) for x in row for k in range(1, (high if x > 0 else -low) + 1) if x]
    points = np.sort(np.unique(points))
    middles = np.concatenate([points[:1] / 2, (points[1:] + points[:-1]) / 2])
    codes = np.clip(np.rint(row / middles[:, None]), low, high)
    gain = np.square(codes @ row) / np.square(codes).sum(axis=1)
    return float(row @ row - gain.max())


rounded = jax.jit(
    lambda w, bits, block: quantize.quantize(w, bits, block=block, scale="mse").dense(),
    static_argnames=("bits", "block"),
)


@pytest.mark.parametrize("shape", ["normal", "heavy", "one-sided", "few"])
@pytest.mark.parametrize("bits", [2, 4])
def test_mse_is_exact_at_2_and_4_bits(bits: Any, shape: str) -> None:
    rng = np.random.default_rng(0)
    w = {
        "normal": rng.standard_normal((6, 48)),
        "heavy": rng.standard_t(1.5, (6, 48)),
        "one-sided": -rng.uniform(0, 1, (6, 48)),
        "few": rng.integers(-2, 3, (6, 48)) * 0.7,
    }[shape].astype(np.float32)
    error = np.square(np.asarray(rounded(w, bits, None), np.float64) - w).sum(axis=1)
    best = [least(row.astype(np.float64), bits) for row in w]
    np.testing.assert_allclose(error, best, rtol=1e-4, atol=1e-9)


def test_mse_is_near_the_exact_one_at_8_bits() -> None:
    w = np.random.default_rng(0).standard_normal((6, 256)).astype(np.float32)
    error = np.square(np.asarray(rounded(w, 8, None), np.float64) - w).sum(axis=1)
    best = np.array([least(row.astype(np.float64), 8) for row in w])
    assert np.all(error >= best * (1 - 1e-4))
    assert np.all(error <= best * 1.03)


def test_each_block_has_the_exact_scale_and_large_arrays_go_row_by_row(monkeypatch: pytest.MonkeyPatch) -> None:
    w = np.random.default_rng(1).standard_normal((6, 48)).astype(np.float32)
    error = np.square(np.asarray(rounded(w, 2, 16), np.float64) - w).reshape(18, 16).sum(axis=1)
    np.testing.assert_allclose(error, [least(r.astype(np.float64), 2) for r in w.reshape(18, 16)], rtol=1e-4)
    whole = np.asarray(rounded(w, 4, None))
    monkeypatch.setattr("rlx.quantize._scales._AT_ONCE", 700)  # two rows of 48 weights with 7 breakpoints
    jax.clear_caches()
    assert np.array_equal(rounded(w, 4, None), whole)


def test_zeros_and_what_is_not_finite() -> None:
    w = jnp.ones((4, 8)).at[0].set(0).at[1, 3].set(jnp.nan).at[2, 3].set(jnp.inf)
    for bits in (2, 4, 8):
        finite = jnp.isfinite(rounded(w, bits, None)).all(axis=1)
        assert finite.tolist() == [True, False, False, True]
        assert jnp.array_equal(rounded(w, bits, None)[0], jnp.zeros(8))
