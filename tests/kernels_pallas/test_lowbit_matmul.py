"""lowbit_matmul: every implementation against float64, its gradient, and where it can be called."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from kernels_pallas import lowbit_matmul
from kernels_pallas.lowbit_matmul.reference import unpack

IMPLEMENTATIONS = ("reference", "xla")
FORMS = [(2, None), (4, None), (8, None), (2, 12), (4, 4), (8, 1), (4, 24)]
jitted = partial(jax.jit, static_argnames=("bits", "block", "implementation"))(lowbit_matmul)


def arguments(bits: int, block: int | None, lead: tuple[int, ...] = (5,), n: int = 7, k: int = 24) -> Any:
    keys = jax.random.split(jax.random.key(0), 3)
    codes = jax.random.randint(keys[0], (n, -(-k * bits // 8)), 0, 256).astype(jnp.uint8)
    scales = jax.random.uniform(keys[1], (n,) if block is None else (n, k // block), minval=0.1)
    return jax.random.normal(keys[2], (*lead, k)), codes, scales


def integers(codes: Any, bits: int, k: int) -> np.ndarray:
    """The codes one by one: bit strings of each row, least significant first."""
    stream = np.unpackbits(np.asarray(codes), axis=1, bitorder="little")[:, : k * bits].reshape(len(codes), k, bits)
    weights = np.array([2**i for i in range(bits - 1)] + [-(2 ** (bits - 1))])
    return stream.astype(np.int64) @ weights


def float64(x: Any, codes: Any, scales: Any, bits: int, block: int | None) -> np.ndarray:
    k = x.shape[-1]
    scales = np.asarray(scales, np.float64)
    spread = scales[:, None] if block is None else np.repeat(scales, block, axis=1)
    return np.asarray(x, np.float64) @ (integers(codes, bits, k) * spread).T


def relative(actual: Any, expected: np.ndarray) -> float:
    return float(np.linalg.norm(np.asarray(actual, np.float64) - expected) / np.linalg.norm(expected))


def allowed(x: Any, codes: Any, scales: Any, bits: int, block: int | None) -> float:
    """1.5 times the error of the product with the weight in x's dtype, or 2e-3."""
    weight = jnp.asarray(float64(jnp.eye(x.shape[-1]), codes, scales, bits, block).T, x.dtype)
    plain = jnp.matmul(x, weight.T, preferred_element_type=jnp.float32).astype(x.dtype)
    return max(1.5 * relative(plain, float64(x, codes, scales, bits, block)), 2e-3)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize(("bits", "block"), FORMS)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_values_are_those_of_float64(implementation: Any, bits: int, block: int | None, dtype: Any) -> None:
    x, codes, scales = arguments(bits, block, lead=(2, 3))
    x = x.astype(dtype)
    out = jitted(x, codes, scales, bits=bits, block=block, implementation=implementation)
    assert out.dtype == dtype
    assert out.shape == (2, 3, 7)
    expected = float64(x, codes, scales, bits, block)
    assert relative(out, expected) < (1e-6 if dtype == jnp.float32 else allowed(x, codes, scales, bits, block))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(("bits", "block"), [(2, None), (2, 8), (4, None), (4, 12), (4, 1), (8, None)])
def test_one_row_is_a_row_of_several(bits: int, block: int | None, dtype: Any) -> None:
    x, codes, scales = arguments(bits, block, lead=(2,), n=64)
    x = x.astype(dtype)
    one = jitted(x[:1], codes, scales, bits=bits, block=block)
    expected = float64(x[:1], codes, scales, bits, block)
    assert relative(one, expected) < (1e-6 if dtype == jnp.float32 else allowed(x[:1], codes, scales, bits, block))
    each = jax.jit(jax.vmap(partial(lowbit_matmul, bits=bits, block=block), (0, None, None)))(x, codes, scales)
    assert relative(each[:1], np.asarray(one, np.float64)) < 1e-6


@pytest.mark.parametrize(("bits", "k"), [(2, 1), (2, 7), (4, 5), (4, 1), (8, 3)])
def test_rows_padded_to_a_byte_ignore_what_is_in_the_rest(bits: int, k: int) -> None:
    x, codes, scales = arguments(bits, None, k=k)
    out = jitted(x, codes, scales, bits=bits)
    np.testing.assert_allclose(out, float64(x, codes, scales, bits, None), rtol=1e-5, atol=1e-5)
    used = k * bits % 8
    if used:
        other = codes.at[:, -1].set(codes[:, -1] ^ jnp.uint8(256 - 2**used))
        assert jnp.array_equal(out, jitted(x, other, scales, bits=bits))


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_every_code_of_a_byte_is_unpacked(bits: int) -> None:
    codes = jnp.arange(256, dtype=jnp.uint8)[:, None]
    np.testing.assert_array_equal(unpack(codes, bits, 8 // bits), integers(codes, bits, 8 // bits))


@pytest.mark.parametrize("shape", [(0,), (3, 0), ()])
def test_no_rows_and_one_row_without_a_dimension(shape: tuple[int, ...]) -> None:
    x, codes, scales = arguments(4, None, lead=shape)
    out = jitted(x, codes, scales, bits=4)
    assert out.shape == (*shape, 7)
    np.testing.assert_allclose(out, float64(x, codes, scales, 4, None), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("bits", "block"), [(2, None), (4, 12), (8, None), (8, 4)])
def test_gradient_is_that_of_the_reference_and_of_finite_differences(bits: int, block: int | None) -> None:
    x, codes, scales = arguments(bits, block)

    def total(x: jax.Array, scales: jax.Array, implementation: Any) -> jax.Array:
        return jnp.sum(jnp.sin(lowbit_matmul(x, codes, scales, bits=bits, block=block, implementation=implementation)))

    slope = jax.jit(jax.grad(total, (0, 1)), static_argnums=2)
    with jax.enable_x64(True):
        x, scales = x.astype(jnp.float64) / 2**bits, scales.astype(jnp.float64)
        actual, expected = slope(x, scales, "xla"), slope(x, scales, "reference")
        value = jax.jit(total, static_argnums=2)
        for i, (a, e) in enumerate(zip(actual, expected, strict=True)):
            np.testing.assert_allclose(a, e, rtol=1e-10, atol=1e-10)
            step = np.zeros(a.shape)
            step[..., 1] = 1e-6
            at = [x, scales]
            high, low = (value(*(v + s * step if j == i else v for j, v in enumerate(at)), "xla") for s in (1, -1))
            np.testing.assert_allclose(jnp.sum(a * step) / 1e-6, (high - low) / 2e-6, rtol=1e-6)


def test_bfloat16_gradients_are_near_those_of_float32() -> None:
    for block in (None, 12):
        x, codes, scales = arguments(4, block, lead=(64,), n=48, k=96)
        x = x.astype(jnp.bfloat16)

        def total(x: jax.Array, scales: jax.Array, block: int | None = block, codes: Any = codes) -> jax.Array:
            y = lowbit_matmul(x, codes, scales, bits=4, block=block)
            return jnp.sum(jnp.sin(jnp.arange(y.size)).reshape(y.shape) * y.astype(jnp.float32))

        slope = jax.jit(jax.grad(total, (0, 1)))
        for a, e in zip(slope(x, scales), slope(x.astype(jnp.float32), scales), strict=True):
            e = np.asarray(e, np.float64)
            assert np.linalg.norm(np.asarray(a, np.float64) - e) < 5e-3 * np.linalg.norm(e)


def test_it_is_the_same_under_jit_vmap_scan_and_checkpoint() -> None:
    x, codes, scales = arguments(4, 12, lead=(4, 6))
    way = partial(lowbit_matmul, bits=4, block=12)
    expected = way(x, codes, scales)
    mapped = jax.jit(jax.vmap(way, (0, None, None)))(x, codes, scales)
    scanned = jax.jit(lambda x: jax.lax.scan(lambda _, row: (None, way(row, codes, scales)), None, x)[1])(x)
    stacked = jax.jit(jax.vmap(way))(x, jnp.stack([codes] * 4), jnp.stack([scales] * 4))
    for actual in (jax.jit(way)(x, codes, scales), mapped, scanned, stacked):
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)
    slopes = [
        jax.jit(jax.grad(lambda s, f=f: jnp.sum(jnp.sin(f(x, codes, s)))))(scales)
        for f in (way, jax.checkpoint(way), jax.vmap(way, (0, None, None)))
    ]
    for actual in slopes[1:]:
        np.testing.assert_allclose(actual, slopes[0], rtol=1e-4, atol=1e-4)


def test_an_empty_row_that_is_not_a_number_stays_in_its_row() -> None:
    x, codes, scales = arguments(2, None)
    out = jitted(x.at[3].set(jnp.nan), codes, scales, bits=2)
    clean = jitted(x, codes, scales, bits=2)
    keep = jnp.array([0, 1, 2, 4])
    assert jnp.array_equal(out[keep], clean[keep])
    assert bool(jnp.all(jnp.isnan(out[3])))
    assert bool(jnp.all(jitted(x, codes, 0 * scales, bits=2) == 0))


def test_gradients_are_the_same_over_eight_devices() -> None:
    x, codes, scales = arguments(4, 12, lead=(16,))
    mesh = jax.make_mesh((8,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
    batch, whole = PartitionSpec("batch"), PartitionSpec()

    def loss(x: jax.Array, codes: jax.Array, scales: jax.Array) -> jax.Array:
        return jnp.sum(jnp.sin(lowbit_matmul(x, codes, scales, bits=4, block=12)))

    def over_devices(*args: jax.Array) -> jax.Array:
        return jax.lax.psum(loss(*args), "batch")

    split = jax.shard_map(over_devices, mesh=mesh, in_specs=(batch, whole, whole), out_specs=whole)
    actual = jax.jit(jax.grad(split, (0, 2)))(x, codes, scales)
    expected = jax.jit(jax.grad(loss, (0, 2)))(x, codes, scales)
    for a, e in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, e, atol=1e-5 * float(jnp.abs(e).max()))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"bits": 3}, ValueError, "bits: expected 2, 4 or 8, got 3"),
        ({"x": jnp.zeros((2, 24), jnp.int32)}, TypeError, "x: expected a floating dtype, got int32"),
        ({"x": jnp.zeros(())}, ValueError, r"x: expected dims \[..., K\], got shape \(\)"),
        ({"codes": jnp.zeros((7, 12), jnp.int8)}, TypeError, "codes: expected uint8, got int8"),
        (
            {"codes": jnp.zeros((7, 11), jnp.uint8)},
            ValueError,
            r"codes: expected dims \[N, 12\], 4 bits for each of K=24",
        ),
        ({"scales": jnp.zeros((6,))}, ValueError, r"scales: expected shape \(7,\), one a row of codes, got \(6,\)"),
        ({"block": 5}, ValueError, "block: expected a divisor of K=24, got 5"),
        ({"block": 12}, ValueError, r"scales: expected shape \(7, 2\), one a block of each row, got \(7,\)"),
        ({"implementation": "triton"}, NotImplementedError, "'triton' is not one of 'auto', 'xla', 'mosaic_gpu'"),
    ],
)
def test_mistakes_name_the_argument(change: dict[str, Any], error: type[Exception], message: str) -> None:
    x, codes, scales = arguments(4, None)
    with pytest.raises(error, match=message):
        lowbit_matmul(**({"x": x, "codes": codes, "scales": scales, "bits": 4} | change))


def test_what_is_fixed_is_named_when_it_is_not() -> None:
    x, codes, scales = arguments(4, None)
    with pytest.raises(TypeError, match="bits: expected a whole number of Python, which is fixed, got"):
        jax.jit(lambda bits: lowbit_matmul(x, codes, scales, bits=bits))(4)
    with pytest.raises(TypeError, match=r"block: expected a whole number of Python, which is fixed, got 4\.0"):
        lowbit_matmul(x, codes, scales, bits=4, block=4.0)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="codes: expected an array, got list"):
        lowbit_matmul(x, codes.tolist(), scales, bits=4)
    with pytest.raises(TypeError, match="x: expected 16 bits or more"):
        lowbit_matmul(x.astype(jnp.float8_e4m3fn), codes, scales, bits=4)
    numpy = (np.asarray(v, np.float64) if v.dtype != jnp.uint8 else np.asarray(v) for v in (x, codes, scales))
    out = lowbit_matmul(*numpy, bits=np.int64(4))  # type: ignore[arg-type]
    assert jnp.array_equal(out, lowbit_matmul(x, codes, scales, bits=4))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("block", [None, 4])
def test_scales_of_another_half_precision_are_taken(block: int | None, implementation: Any) -> None:
    x, codes, scales = arguments(4, block)
    x, scales = x.astype(jnp.bfloat16), scales.astype(jnp.float16)
    out = jitted(x, codes, scales, bits=4, block=block, implementation=implementation)
    expected = float64(x, codes, scales, 4, block)
    assert relative(out, expected) <= allowed(x, codes, scales, 4, block)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(("m", "n", "k"), [(1, 32, 0), (3, 0, 8), (0, 32, 8), (1, 0, 0)])
def test_sizes_of_zero_give_zeros_or_nothing(implementation: Any, m: int, n: int, k: int) -> None:
    x, codes = jnp.ones((m, k)), jnp.ones((n, k // 2), jnp.uint8)

    def total(x: jax.Array, scales: jax.Array, block: int | None) -> Any:
        y = lowbit_matmul(x, codes, scales, bits=4, block=block, implementation=implementation)
        return jnp.sum(y), y

    for block, shape in ((None, (n,)), (4, (n, k // 4))):
        scales = jnp.ones(shape)
        (_, y), slopes = jax.jit(jax.value_and_grad(total, (0, 1), has_aux=True), static_argnums=2)(x, scales, block)
        assert y.shape == (m, n)
        assert [s.shape for s in slopes] == [x.shape, scales.shape]
        assert k or not y.any()
