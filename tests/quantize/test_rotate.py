"""Rotation leaves the model as it is, at every width, and spreads outliers."""

import re
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlx import adapters, quantize, weights
from rlx.weights._hadamard import factors, rotated, signs

WIDTHS = (1, 2, 3, 5, 6, 7, 8, 12, 20, 28, 36, 37, 40, 52, 64, 68, 96, 100, 104, 320, 344, 768, 1100, 11008, 14336)


@pytest.mark.parametrize("width", WIDTHS)
def test_every_width_has_orthogonal_factors_of_flat_entries(width: int) -> None:
    found = factors(width)
    assert np.prod([len(f) for f in found]) == width
    for f in found:
        np.testing.assert_allclose(f @ f.T, np.eye(len(f)), atol=1e-12)
    assert np.prod([np.abs(f).max() for f in found]) <= np.sqrt(2 / width) + 1e-12
    assert max((len(f) for f in found), default=1) <= (275 if width == 1100 else 256)  # 1100 = 275 * 4


@pytest.mark.parametrize("width", [12, 20, 28, 36, 44, 60, 68, 104, 768, 14336])
def test_where_a_hadamard_matrix_is_known_all_entries_are_of_one_size(width: int) -> None:
    """12, 20, 44, 60, 68, 104 are Paley's first construction, 28 and 36 his second."""
    for f in factors(width):
        np.testing.assert_allclose(np.abs(f), 1 / np.sqrt(len(f)))


def test_it_is_the_kronecker_product_with_signs() -> None:
    x = np.random.default_rng(0).standard_normal((3, 96)).astype(np.float32)
    whole = np.eye(1)
    for f in factors(96):
        whole = np.kron(whole, f)
    expected = (x * signs(96, 5)) @ whole
    np.testing.assert_allclose(jax.jit(lambda x: rotated(x, 5))(x), expected, atol=1e-5)
    np.testing.assert_allclose(jax.jit(lambda x: rotated(rotated(x, 5), 5, back=True))(x), x, atol=1e-5)
    assert not np.array_equal(signs(96, 5), signs(96, 6))
    assert signs(16, 0).tolist() == [1, 1, -1, -1, -1, 1, 1, 1, -1, -1, 1, -1, -1, -1, 1, -1]  # a saved model keeps it


@pytest.mark.parametrize("width", [5, 8, 12, 37, 96])
def test_the_float_model_stays_the_same_function(width: int) -> None:
    k = jax.random.split(jax.random.key(0), 3)
    params = {
        "a": {"weight": jax.random.normal(k[0], (6, width))},
        "b": {"weight": jax.random.normal(k[1], (width, 6))},
    }

    def apply(params: Any, x: jax.Array) -> tuple[jax.Array, ...]:
        hidden = jnp.tanh(weights.matmul(x, params["a"]["weight"]))
        rows = weights.take(params["a"]["weight"], jnp.array([0, 5, 2]))
        return weights.matmul(hidden, params["b"]["weight"]), rows, weights.dense(params["b"]["weight"])

    @jax.jit
    def both(params: Any, x: jax.Array) -> tuple[Any, Any]:
        turned = quantize.rotate_tree(params, seed=3)
        return apply(params, x), apply(turned, x)

    plain, turned = both(params, jax.random.normal(k[2], (4, width)))
    for a, b in zip(plain, turned, strict=True):
        np.testing.assert_allclose(b, a, atol=5e-6 * width**0.5)
    with jax.enable_x64(True):  # and exactly so: float64 agrees to float64
        double = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), params)
        plain, turned = both(double, jax.random.normal(k[2], (4, width), jnp.float64))
        for a, b in zip(plain, turned, strict=True):
            np.testing.assert_allclose(b, a, atol=1e-12)


def test_it_helps_where_a_few_numbers_stand_out_and_costs_a_little_where_none_does() -> None:
    rng = np.random.default_rng(0)
    columns = np.where(np.arange(64) % 16 == 3, 8.0, 1.0)
    kinds = {
        "heavy": rng.standard_t(3, (32, 64)),
        "columns": rng.standard_normal((32, 64)) * columns,
        "normal": rng.standard_normal((32, 64)),
    }

    @partial(jax.jit, static_argnums=1)
    def errors(w: jax.Array, bits: Any) -> tuple[jax.Array, jax.Array]:
        turned = weights.Hadamard(base=quantize.quantize(quantize.rotate(w).base, bits, scale="mse"))
        plain = quantize.quantize(w, bits, scale="mse").dense()
        return jnp.sum(jnp.square(turned.dense() - w)), jnp.sum(jnp.square(plain - w))

    for name, w in kinds.items():
        for bits in (2, 4):
            turned, plain = errors(jnp.asarray(w, jnp.float32), bits)
            most = 1.1 if name == "normal" else 0.75 if bits == 2 else 0.33
            assert float(turned) < most * float(plain), (name, bits)


def test_the_int8_rounding_of_activations_with_outliers_becomes_finer() -> None:
    rng = np.random.default_rng(0)
    w, x = rng.standard_normal((32, 64)).astype(np.float32), rng.standard_normal((50, 64)).astype(np.float32)
    x[:, 5] *= 100
    w[:, 5] *= 0.01

    def error(q: Any) -> float:
        return float(np.linalg.norm(np.asarray(weights.matmul(x, q)) - x @ w.T))

    turned = weights.Hadamard(base=quantize.quantize(quantize.rotate(w).base, 8))
    assert error(turned) < 0.7 * error(quantize.quantize(w, 8))


def test_it_composes_with_moments_low_bits_adapters_and_scans() -> None:
    params = {"layers": {"weight": jax.random.normal(jax.random.key(0), (3, 8, 8))}}
    turned = quantize.rotate_tree(params, seed=1)

    def apply(params: Any, x: jax.Array) -> jax.Array:
        return jax.lax.scan(lambda x, w: (jnp.tanh(weights.matmul(x, w)), None), x, params["layers"]["weight"])[0]

    x = jax.random.normal(jax.random.key(1), (20, 8))
    moments = quantize.calibrate(apply, turned, [x])
    first = rotated(x, 1)
    np.testing.assert_allclose(moments["layers.weight.base"][0], first.T @ first, rtol=1e-4, atol=1e-3)
    small = quantize.quantize_tree(turned, {r"weight\.base": 8}, moments=moments, activations="float")
    assert small["layers"]["weight"].base.bits == 8
    assert small["layers"]["weight"].shape == (3, 8, 8)
    scanned = jax.jit(apply)
    np.testing.assert_allclose(scanned(small, x), scanned(params, x), atol=0.1)
    lora = weights.LoRA(
        base=small["layers"]["weight"], a=jnp.ones((3, 1, 8)), b=jnp.zeros((3, 8, 1)), scale=jnp.ones(3)
    )
    np.testing.assert_allclose(scanned({"layers": {"weight": lora}}, x), scanned(small, x), atol=1e-6)
    back = adapters.detach({"layers": {"weight": lora}})
    assert back["layers"]["weight"] is small["layers"]["weight"]  # a rotation is no adapter
    written = quantize.merge(small, params)
    np.testing.assert_allclose(scanned(written, x), scanned(small, x), atol=1e-5)


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda: quantize.rotate(jnp.ones(4)), ValueError, "w: expected dims [..., out, in]"),
        (lambda: quantize.rotate(jnp.ones((0, 4))), ValueError, "w: expected dims [..., out, in], none of them 0"),
        (lambda: quantize.rotate(jnp.ones((4, 4), int)), TypeError, "w: expected a floating dtype"),
        (lambda: quantize.rotate(jnp.ones((4, 4)), seed=0.5), TypeError, "seed: expected a whole number"),
        (lambda: quantize.rotate_tree({"a": jnp.ones((4, 4))}, where="b"), ValueError, "where: 'b' matches no weight"),
        (lambda: quantize.rotate_tree({"a": jnp.ones((4, 4))}, where="("), ValueError, "where: '(' is no regular"),
        (lambda: quantize.rotate_tree({"kernel": jnp.ones((4, 4))}), ValueError, "where: kernel are kernels of flax"),
    ],
)
def test_mistakes_name_the_argument(call: Any, kind: type, message: str) -> None:
    with pytest.raises(kind, match=re.escape(message)):
        call()


@pytest.mark.slow
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_it_is_exported_with_its_codes(bits: Any, tmp_path: Path) -> None:
    pytest.importorskip("tensorflow")
    from rlx import export

    turned = quantize.rotate(jax.random.normal(jax.random.key(0), (64, 96)))
    w = weights.Hadamard(base=quantize.quantize(turned.base, bits, scale="mse"))
    x = np.asarray(jax.random.normal(jax.random.key(1), (3, 96)))
    spec = [jax.ShapeDtypeStruct((3, 96), jnp.float32)]
    report = export.to_tflite({"f": (lambda x: weights.matmul(x, w), spec)}, tmp_path / "m.tflite")
    (actual,) = export.run_tflite(report.path, "f", x)
    assert report.quantized == {"quantized0_64x96": bits}
    # Rotated activations are sums in another order there: one that is rounded the other way moves an output by 1e-2.
    expected = np.asarray(weights.matmul(x, w))
    assert np.linalg.norm(actual - expected) < 2e-3 * np.linalg.norm(expected)
