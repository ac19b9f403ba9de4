"""Quantised weights: packing, rounding, products as the phone computes them, gradients."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlx import quantize, weights
from rlx.weights._quantized import dynamic_int8, pack, unpack

BITS = (2, 4, 8)


def matrix(out: int = 24, inputs: int = 37) -> jax.Array:
    return jax.random.normal(jax.random.key(0), (out, inputs))


@pytest.mark.parametrize("inputs", [1, 3, 4, 37])
@pytest.mark.parametrize("bits", BITS)
def test_packing_is_undone_for_every_code(bits: int, inputs: int) -> None:
    low = -(2 ** (bits - 1))
    codes = np.arange(5 * inputs).reshape(5, inputs) % 2**bits + low
    packed = pack(jnp.asarray(codes, jnp.int8), bits)
    assert packed.shape == (5, -(-inputs * bits // 8))
    assert packed.dtype == jnp.uint8
    assert np.array_equal(unpack(packed, bits, inputs), codes)


@pytest.mark.parametrize("bits", BITS)
def test_rounding_is_to_the_nearest_code_within_the_range(bits: Any) -> None:
    w = matrix()
    q = quantize.quantize(w, bits)
    low, high = {8: (-127, 127), 4: (-7, 7), 2: (-2, 1)}[bits]
    assert int(q.integers().min()) >= low
    assert int(q.integers().max()) <= high
    assert bool(jnp.all(jnp.abs(q.dense() - w) <= q.scale[:, None] * 0.5001))
    touched = jnp.any((q.integers() == low) | (q.integers() == high), axis=1)
    assert bool(jnp.all(touched))
    assert q.codes.nbytes <= w.nbytes * bits / 32 + 24


@pytest.mark.parametrize("bits", BITS)
def test_fake_quant_is_quantize_with_a_straight_gradient(bits: Any) -> None:
    w = matrix()
    np.testing.assert_allclose(quantize.fake_quant(w, bits), quantize.dequantize(quantize.quantize(w, bits)), atol=1e-6)
    assert jnp.array_equal(jax.grad(lambda w: jnp.sum(3 * quantize.fake_quant(w, bits)))(w), jnp.full_like(w, 3))


def int8_kernel(x: np.ndarray, codes: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """The integer arithmetic itself (Jacob et al. 2018, equation 7): int32 accumulators, then one float multiply."""
    rows = []
    for row in x.astype(np.float32):
        low, high = min(row.min(), 0), max(row.max(), 0)
        step = np.float32((high - low) / np.float32(255)) or np.float32(1)
        zero = int(np.clip(np.rint(-128 - low / step), -128, 127))
        q = np.clip(np.rint(row / step).astype(np.int64) + zero, -128, 127)
        rows.append(((q - zero) @ codes.astype(np.int64).T) * (step * scale.astype(np.float64)))
    return np.stack(rows)


@pytest.mark.parametrize("bits", BITS)
def test_a_product_is_that_of_the_integer_kernel(bits: Any) -> None:
    q = quantize.quantize(matrix(), bits)
    x = jnp.concatenate([jax.random.normal(jax.random.key(1), (6, 37)), jnp.zeros((1, 37)), jnp.ones((1, 37))])
    expected = int8_kernel(np.asarray(x), np.asarray(q.integers()), np.asarray(q.scale))
    np.testing.assert_allclose(weights.matmul(x, q), expected, atol=2e-5)
    exact = quantize.quantize(matrix(), bits, activations="float")
    np.testing.assert_allclose(weights.matmul(x, exact), x @ q.dense().T, atol=1e-5)


def test_the_gradient_passes_straight_to_the_activations() -> None:
    q = quantize.quantize(matrix(), 4)
    x = jax.random.normal(jax.random.key(1), (3, 37))
    gradient = jax.grad(lambda x: jnp.sum(weights.matmul(x, q)))(x)
    np.testing.assert_allclose(gradient, jnp.broadcast_to(q.dense().sum(axis=0), x.shape), rtol=1e-5, atol=1e-5)


def test_lora_over_a_low_bit_base_trains() -> None:
    base = quantize.quantize(matrix(), 4)

    def loss(delta: Any) -> jax.Array:
        w = weights.LoRA(base=base, a=delta["a"], b=delta["b"], scale=jnp.array(1.0))
        return jnp.sum(jnp.square(weights.matmul(jnp.ones((2, 37)), w)))

    delta = {"a": jnp.ones((2, 37)), "b": jnp.full((24, 2), 0.01)}
    gradient = jax.grad(loss)(delta)
    moved = jax.tree.map(lambda d, g: d - 1e-5 * g, delta, gradient)
    assert float(loss(moved)) < float(loss(delta))


def test_rows_are_those_of_the_dense_array_and_an_id_outside_is_nan() -> None:
    q = quantize.quantize(matrix(), 4)
    ids = jnp.array([[0, 5], [23, 5]])
    np.testing.assert_allclose(weights.take(q, ids), q.dense()[ids], atol=1e-6)
    assert bool(jnp.all(jnp.isnan(weights.take(q, jnp.array([24])))))


def test_stacked_layers_are_sliced_by_scan() -> None:
    stacked = quantize.quantize(jax.random.normal(jax.random.key(0), (3, 8, 8)), 4)
    assert stacked.shape == (3, 8, 8)
    x = jnp.ones((2, 8))
    scanned, _ = jax.lax.scan(lambda x, w: (jnp.tanh(weights.matmul(x, w)), None), x, stacked)
    for layer in range(3):
        x = jnp.tanh(weights.matmul(x, jax.tree.map(lambda leaf, i=layer: leaf[i], stacked)))
    np.testing.assert_allclose(scanned, x, atol=1e-6)


def test_zeros_stay_zeros() -> None:
    q = quantize.quantize(jnp.zeros((2, 4)), 8)
    assert jnp.array_equal(q.dense(), jnp.zeros((2, 4)))
    assert jnp.array_equal(dynamic_int8(jnp.zeros((2, 4))), jnp.zeros((2, 4)))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda w: quantize.quantize(w, 3), ValueError, "bits: 3 is not one of 2, 4, 8"),
        (lambda w: quantize.quantize(w, 8, axis=1), ValueError, "axis: 1 is not one of 0"),
        (lambda w: quantize.quantize(w[0], 8), ValueError, "w: expected dims [..., out, in], got shape (37,)"),
        (lambda w: quantize.quantize(w.astype(jnp.int32), 8), TypeError, "w: expected a floating dtype"),
        (lambda w: quantize.quantize_tree({"w": w}, {"gone": 8}), ValueError, "rule: 'gone' matches no weight"),
    ],
)
def test_mistakes_name_the_argument(call: Any, error: type, message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        call(matrix())


def test_the_first_pattern_that_matches_counts() -> None:
    tree = {"a": {"weight": matrix()}, "b": {"weight": matrix()}, "norm": {"weight": matrix()}}
    small = quantize.quantize_tree(tree, {r"^a\.": 2, "weight": 8})
    assert (small["a"]["weight"].bits, small["b"]["weight"].bits) == (2, 8)
    assert small["norm"]["weight"] is tree["norm"]["weight"]
