"""Rounding to codes: the nearest, within the range, by the scale asked for; and rules over trees."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlx import quantize, weights

BITS = (2, 4, 8)
RANGES = {8: (-127, 127), 4: (-7, 7), 2: (-2, 1)}


def matrix(out: int = 24, inputs: int = 40) -> jax.Array:
    return jax.random.normal(jax.random.key(0), (out, inputs))


@pytest.mark.parametrize("block", [None, 8])
@pytest.mark.parametrize("bits", BITS)
def test_minmax_rounds_to_the_nearest_code_and_clips_nothing(bits: Any, block: int | None) -> None:
    w = matrix()
    q = quantize.quantize(w, bits, block=block)
    low, high = RANGES[bits]
    codes = np.asarray(q.integers())
    assert codes.min() >= low
    assert codes.max() <= high
    groups = w.shape[-1] if block is None else block
    scale = np.repeat(np.asarray(q.scale).reshape(24, -1), groups, axis=1)
    assert np.all(np.abs(np.asarray(q.dense()) - np.asarray(w)) <= scale * 0.5001)
    touched = ((codes == low) | (codes == high)).reshape(24, -1, groups).any(axis=-1)
    assert touched.all()  # a smaller scale would clip
    assert q.scale.shape == ((24,) if block is None else (24, 5))
    assert q.codes.nbytes == w.size * bits // 8


@pytest.mark.parametrize("bits", BITS)
def test_mse_is_the_best_scale_that_a_finer_search_finds(bits: Any) -> None:
    """The oracle: 4,000 scales a row, each tried in float64."""
    w = np.asarray(matrix(8, 64))
    q = quantize.quantize(jnp.asarray(w), bits, scale="mse")
    low, high = RANGES[bits]
    actual = np.square(np.asarray(q.dense(), np.float64) - w).sum(axis=1)
    plain = np.square(np.asarray(quantize.quantize(jnp.asarray(w), bits).dense(), np.float64) - w).sum(axis=1)
    assert np.all(actual <= plain * (1 + 1e-6))
    for row, error in zip(w.astype(np.float64), actual, strict=True):
        full = max(row.max() / high, row.min() / low)
        tried = full * np.linspace(0.02, 1.0, 4000)[:, None]
        best = np.square(np.clip(np.rint(row / tried), low, high) * tried - row).sum(axis=1).min()
        assert error <= best * 1.03
    if bits == 2:
        assert actual.sum() < 0.6 * plain.sum()


@pytest.mark.parametrize("options", [{}, {"scale": "mse"}, {"block": 8}])
@pytest.mark.parametrize("bits", BITS)
def test_fake_quant_is_quantize_with_a_straight_gradient(bits: Any, options: Any) -> None:
    w = matrix()
    expected = quantize.dequantize(quantize.quantize(w, bits, **options))
    assert jnp.array_equal(quantize.fake_quant(w, bits, **options), expected)
    gradient = jax.grad(lambda w: jnp.sum(3 * quantize.fake_quant(w, bits, **options)))(w)
    assert jnp.array_equal(gradient, jnp.full_like(w, 3))


def test_quantising_again_changes_nothing() -> None:
    for bits in BITS:
        once = quantize.quantize(matrix(), bits)
        again = quantize.quantize(once.dense(), bits)
        np.testing.assert_allclose(again.dense(), once.dense(), rtol=1e-6)


def test_it_works_under_jit_and_in_half_precision() -> None:
    w = matrix().astype(jnp.bfloat16)
    q = jax.jit(lambda w: quantize.quantize(w, 4, scale="mse"))(w)
    assert q.dtype == jnp.bfloat16
    assert q.scale.dtype == jnp.float32
    assert quantize.fake_quant(w, 4).dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda w: quantize.quantize(w, 3), ValueError, "bits: 3 is not one of 2, 4, 8"),
        (lambda w: quantize.quantize(w, 8, axis=1), ValueError, "axis: 1 is not one of 0"),
        (lambda w: quantize.quantize(w, 8, block=7), ValueError, "block: 7 does not divide the 40 inputs of w"),
        (lambda w: quantize.quantize(w, 8, scale="max"), ValueError, "scale: 'max' is not one of 'minmax', 'mse'"),
        (lambda w: quantize.quantize(w, 8, activations="int8"), ValueError, "activations: 'int8' is not one of"),
        (lambda w: quantize.quantize(w[0], 8), ValueError, "w: expected dims [..., out, in], got shape (40,)"),
        (lambda w: quantize.quantize(w.astype(jnp.int32), 8), TypeError, "w: expected a floating dtype"),
        (lambda w: quantize.fake_quant(w, 5), ValueError, "bits: 5 is not one of 2, 4, 8"),
        (lambda w: quantize.quantize_tree({"w": w}, {"gone": 8}), ValueError, "rule: 'gone' matches no weight"),
        (lambda w: quantize.quantize_tree({"b": w[0]}, {"b": 8}), ValueError, "rule: 'b' matches no weight"),
        (lambda w: quantize.quantize_tree({}, 8), ValueError, "the tree has none that could be quantised"),
        (lambda w: quantize.sizes({"w": quantize.quantize(w, 8)}), ValueError, "not quantised already"),
    ],
)
def test_mistakes_name_the_argument(call: Any, error: type, message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        call(matrix())


def test_the_first_pattern_that_matches_counts() -> None:
    tree = {"a": {"weight": matrix()}, "b": {"weight": matrix(), "bias": matrix()}, "norm": {"weight": matrix()}}
    small = quantize.quantize_tree(tree, {r"^a\.": 2, "weight": 8}, scale="mse")
    assert (small["a"]["weight"].bits, small["b"]["weight"].bits) == (2, 8)
    assert small["norm"]["weight"] is tree["norm"]["weight"]
    assert small["b"]["bias"] is tree["b"]["bias"]
    assert jnp.array_equal(small["a"]["weight"].dense(), quantize.quantize(matrix(), 2, scale="mse").dense())


def test_what_is_quantised_already_stays_and_a_base_under_an_adapter_is_a_weight() -> None:
    stacked = quantize.quantize(jnp.ones((3, 8, 8)), 4)  # its scales [3, 8] look like a matrix
    adapted = weights.LoRA(base=matrix(), a=jnp.ones((2, 40)), b=jnp.ones((24, 2)), scale=jnp.array(1.0))
    small = quantize.quantize_tree({"q": {"weight": stacked}, "k": {"weight": adapted}}, {r"\.base$": 4})
    assert small["q"]["weight"] is stacked
    assert small["k"]["weight"].base.bits == 4
    assert small["k"]["weight"].a is adapted.a


def test_a_number_that_is_not_finite_is_seen_in_its_row() -> None:
    w = jnp.ones((3, 4)).at[0, 0].set(jnp.nan).at[1, 0].set(jnp.inf)
    finite = jnp.isfinite(quantize.dequantize(quantize.quantize(w, 8)))
    assert jnp.all(finite, axis=1).tolist() == [False, False, True]


TREE = {"up": {"weight": jnp.ones((4, 8))}}


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda w: quantize.quantize(w, 4.0), TypeError, "bits: expected a whole number, got 4.0"),
        (lambda w: quantize.quantize(w, jnp.array(4)), ValueError, "bits: "),
        (lambda w: quantize.quantize_tree(TREE, {"up": np.array([4, 2])}), ValueError, "rule['up']: "),
        (lambda w: quantize.quantize_tree(TREE, {}), ValueError, "rule: is empty"),
        (lambda w: quantize.qat({}).init(TREE), ValueError, "rule: is empty"),
        (lambda w: quantize.quantize_tree(TREE, 4, block=0), ValueError, "block: 0 is outside"),
        (lambda w: quantize.quantize_tree(TREE, 4, block="2"), TypeError, "block: expected a whole number"),
        (lambda w: quantize.qat(4, block=0), ValueError, "block: 0 is outside"),
        (lambda w: quantize.weight_bytes((4, 4), 4, block=2.0), TypeError, "block: expected a whole number"),
        (lambda w: quantize.weight_bytes((2.5, 4), 4), TypeError, "shape: expected a whole number"),
        (lambda w: quantize.quantize_tree(TREE, 4, moments={"up": jnp.eye(8)}), ValueError, "moments: up is no weight"),
        (lambda w: quantize.quantize_tree(TREE, 4, moments=[jnp.eye(8)]), TypeError, "moments: expected"),
        (lambda w: quantize.gptq(w[0], jnp.eye(40), 4), ValueError, "w: expected dims [..., out, in], got shape (40,)"),
        (lambda w: quantize.dequantize(w), TypeError, "q: expected a QuantizedWeight"),
        (lambda w: quantize.qat(4).attach(TREE, {"up.weight": [1.0] * 4}), TypeError, "scales['up.weight']: expected"),
        (lambda w: quantize.sensitivity(lambda p: p["up"]["weight"], TREE), ValueError, "loss: expected a number"),
        (lambda w: quantize.sensitivity(lambda p: 0.0, TREE, choices=4), TypeError, "choices: expected some of"),
    ],
)
def test_odd_arguments_are_named_too(call: Any, error: type, message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        call(matrix())


def test_calibration_without_rows_and_without_numbers_is_refused() -> None:
    def apply(params: Any, x: jax.Array) -> jax.Array:
        return weights.matmul(x, params["up"]["weight"])

    with pytest.raises(ValueError, match="batches: no weight was multiplied by anything but zeros"):
        quantize.calibrate(apply, TREE, [jnp.zeros((0, 8))])
    with pytest.raises(ValueError, match="apply: its result has no floating array"):
        quantize.calibrate(lambda params, x: 1.0, TREE, [jnp.ones((1, 8))])


def test_a_row_too_narrow_for_eight_bits_is_zeros_as_on_the_device_and_a_nan_stays() -> None:
    q = quantize.quantize(jnp.eye(4), 8)
    rows = jnp.array([[1e-37, 0, 0, 1e-37], [1e-30, 0, 0, 0], [jnp.nan, 0, 0, 0]])
    y = jax.jit(weights.matmul)(rows, q)
    assert y[0].tolist() == [0.0] * 4
    assert float(y[1, 0]) == pytest.approx(1e-30, rel=1e-5)
    assert jnp.isnan(y[2]).all()
