"""Quantised weights: packing, products as the phone computes them, rows, gradients, stacks."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlx import quantize, weights
from rlx.weights._lowbit import dynamic_int8, pack, unpack

BITS = (2, 4, 8)


def matrix(out: int = 24, inputs: int = 37) -> jax.Array:
    return jax.random.normal(jax.random.key(0), (out, inputs))


@pytest.mark.parametrize("inputs", [1, 3, 4, 37])
@pytest.mark.parametrize("bits", BITS)
def test_packing_is_undone_for_every_code(bits: int, inputs: int) -> None:
    low = -(2 ** (bits - 1))
    codes = np.arange(2**bits * inputs).reshape(-1, inputs) % 2**bits + low
    packed = pack(jnp.asarray(codes, jnp.int8), bits)
    assert packed.shape == (2**bits, -(-inputs * bits // 8))
    assert packed.dtype == jnp.uint8
    assert np.array_equal(unpack(packed, bits, inputs), codes)


def test_packing_puts_the_lowest_bits_first() -> None:
    """Written out by hand: 1, -2, 0, -1 are 01, 10, 00, 11; 7, -3 are 0111, 1101."""
    assert pack(jnp.array([1, -2, 0, -1], jnp.int8), 2).tolist() == [0b11001001]
    assert pack(jnp.array([7, -3, 1], jnp.int8), 4).tolist() == [0b11010111, 0b00000001]
    assert pack(jnp.array([-127], jnp.int8), 8).tolist() == [0b10000001]


def delegate(x: np.ndarray, codes: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """XNNPACK's qd8-f32-qc8w product in NumPy: its range, zero point and rounding, and int64 sums.

    `tests/export/test_tflite.py` compares with LiteRT itself.
    """
    rows = []
    for row in x.astype(np.float32):
        low, high = min(row.min(), np.float32(0)), max(row.max(), np.float32(0))
        m = np.float32(1) if low == high else np.float32(255) / (high - low)
        from_low, from_high = np.float32(-128) + low * m, np.float32(127) + high * m
        zero = np.float32(-128) - low * m if from_low + from_high > 0 else np.float32(127) - high * m
        zero = int(np.rint(np.clip(zero, -128, 127)))
        q = np.clip(np.rint(row * m).astype(np.int64) + zero, -128, 127)
        rows.append((((q - zero) @ codes.astype(np.int64).T).astype(np.float32) * (np.float32(1) / m)) * scale)
    return np.stack(rows)


def activations() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "normal": rng.standard_normal((50, 37)),
        "pixels": rng.integers(0, 256, (50, 37)) / 255,
        "on a grid": np.round(rng.standard_normal((50, 37)) * 16) / 16,
        "negative": -rng.uniform(0, 1, (50, 37)),
        "zeros": np.zeros((2, 37)),
        "ones": np.ones((2, 37)),
    }


@pytest.mark.parametrize("name", activations())
@pytest.mark.parametrize("bits", BITS)
def test_a_product_is_that_of_the_integer_kernel_to_the_last_bit(bits: Any, name: str) -> None:
    q = quantize.quantize(matrix(), bits)
    x = activations()[name].astype(np.float32)
    expected = delegate(x, np.asarray(q.integers()), np.asarray(q.scale))
    for product in (weights.matmul, jax.jit(weights.matmul)):
        assert np.array_equal(product(jnp.asarray(x), q), expected)


@pytest.mark.parametrize("block", [None, 8])
@pytest.mark.parametrize("bits", BITS)
def test_float_activations_multiply_by_the_dense_array(bits: Any, block: int | None) -> None:
    q = quantize.quantize(matrix(24, 40), bits, block=block, activations="float")
    x = jax.random.normal(jax.random.key(1), (3, 5, 40))
    expected = np.asarray(x, np.float64) @ np.asarray(q.dense(), np.float64).T
    np.testing.assert_allclose(weights.matmul(x, q), expected, atol=1e-5)


def test_blocks_have_scales_of_their_own_under_int8_activations() -> None:
    q = quantize.quantize(matrix(24, 40), 4, block=8)
    x = jax.random.normal(jax.random.key(1), (5, 40))
    rows, step = dynamic_int8(x)
    expected = np.asarray(rows * step, np.float64) @ np.asarray(q.dense(), np.float64).T
    np.testing.assert_allclose(weights.matmul(x, q), expected, atol=1e-5)
    np.testing.assert_allclose(
        q.dense(), np.asarray(q.integers()) * np.repeat(np.asarray(q.scale), 8, axis=1), atol=1e-7
    )


@pytest.mark.parametrize("mode", ["dynamic_int8", "float"])
def test_gradients_pass_straight_to_the_activations_and_exactly_to_the_scales(mode: Any) -> None:
    q = quantize.quantize(matrix(), 4, activations=mode)
    x = jax.random.normal(jax.random.key(1), (3, 37))
    gradient = jax.grad(lambda x: jnp.sum(weights.matmul(x, q)))(x)
    np.testing.assert_allclose(gradient, jnp.broadcast_to(q.dense().sum(axis=0), x.shape), rtol=1e-5, atol=1e-5)

    def loss(w: weights.QuantizedWeight) -> jax.Array:
        return jnp.sum(jnp.sin(weights.matmul(x, w)))

    moved = jax.grad(loss, allow_int=True)(q)
    assert moved.codes.dtype == jax.dtypes.float0
    pre = weights.matmul(x, q)  # linear in the scale, so d loss / d scale = cos(y) y / scale, summed over rows
    np.testing.assert_allclose(moved.scale, jnp.sum(jnp.cos(pre) * pre, axis=0) / q.scale, rtol=1e-4)


def test_a_nan_in_a_row_is_seen_and_stays_in_its_row() -> None:
    y = weights.matmul(matrix(3).at[1, 5].set(jnp.nan), quantize.quantize(matrix(), 8))
    assert bool(jnp.all(jnp.isnan(y[1])))
    assert bool(jnp.all(jnp.isfinite(y[jnp.array([0, 2])])))


def test_vmap_is_a_loop_over_examples() -> None:
    q = quantize.quantize(matrix(), 4)
    x = jax.random.normal(jax.random.key(1), (3, 5, 37))
    assert jnp.array_equal(jax.vmap(lambda x: weights.matmul(x, q))(x), weights.matmul(x, q))


def test_lora_over_a_low_bit_base_trains() -> None:
    base = quantize.quantize(matrix(), 4)

    def loss(delta: Any) -> jax.Array:
        w = weights.LoRA(base=base, a=delta["a"], b=delta["b"], scale=jnp.array(1.0))
        return jnp.sum(jnp.square(weights.matmul(jnp.ones((2, 37)), w)))

    delta = {"a": jnp.ones((2, 37)), "b": jnp.full((24, 2), 0.01)}
    gradient = jax.grad(loss)(delta)
    moved = jax.tree.map(lambda d, g: d - 1e-5 * g, delta, gradient)
    assert float(loss(moved)) < float(loss(delta))


@pytest.mark.parametrize("block", [None, 8])
@pytest.mark.parametrize("bits", BITS)
def test_rows_are_those_of_the_dense_array_and_an_id_outside_is_nan(bits: Any, block: int | None) -> None:
    q = quantize.quantize(matrix(24, 40), bits, block=block)
    ids = jnp.array([[0, 5], [23, 5]])
    assert jnp.array_equal(weights.take(q, ids), q.dense()[ids])
    assert bool(jnp.all(jnp.isnan(weights.take(q, jnp.array([24, -1])))))


@pytest.mark.parametrize("block", [None, 4])
@pytest.mark.parametrize("bits", BITS)
def test_stacked_layers_are_sliced_by_scan(bits: Any, block: int | None) -> None:
    stacked = quantize.quantize(jax.random.normal(jax.random.key(0), (3, 8, 8)), bits, block=block)
    assert stacked.shape == (3, 8, 8)
    x = jnp.ones((2, 8))
    scanned, _ = jax.lax.scan(lambda x, w: (jnp.tanh(weights.matmul(x, w)), None), x, stacked)
    for layer in range(3):
        one = jax.tree.map(lambda leaf, i=layer: leaf[i], stacked)
        assert one.shape == (8, 8)
        assert jnp.array_equal(one.dense(), stacked.dense()[layer])
        x = jnp.tanh(weights.matmul(x, one))
    np.testing.assert_allclose(scanned, x, atol=1e-6)


def test_it_has_the_dtype_of_what_it_stands_for_and_products_that_of_x() -> None:
    q = quantize.quantize(matrix().astype(jnp.bfloat16), 8)
    assert isinstance(q, weights.Representation)
    assert q.dtype == weights.dense(q).dtype == weights.take(q, jnp.array([1])).dtype == jnp.bfloat16
    x = jax.random.normal(jax.random.key(1), (3, 37))
    for dtype in (jnp.float32, jnp.bfloat16):
        y = weights.matmul(x.astype(dtype), q)
        assert y.dtype == dtype
        wide = weights.matmul(x.astype(dtype).astype(jnp.float32), q)
        assert jnp.array_equal(y, wide.astype(dtype))


def test_zeros_stay_zeros() -> None:
    q = quantize.quantize(jnp.zeros((2, 4)), 8)
    assert jnp.array_equal(q.dense(), jnp.zeros((2, 4)))
    rows, step = dynamic_int8(jnp.zeros((2, 4)))
    assert jnp.array_equal(rows, jnp.zeros((2, 4)))
    assert jnp.array_equal(step, jnp.ones((2, 1)))


def test_a_wrong_width_names_the_argument() -> None:
    with pytest.raises(ValueError, match=re.escape("x: its last dim must be the weight's 37 inputs")):
        weights.matmul(jnp.ones((2, 36)), quantize.quantize(matrix(), 2))
