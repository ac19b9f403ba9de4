"""lora_matmul: every implementation against float64, its gradient, and where it can be called."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from kernels_pallas import lora_matmul
from kernels_pallas.add_norm import Config as NormConfig
from kernels_pallas.lora_matmul.xla import folded, low_rank

N, K, R, E = 7, 12, 3, 4
jitted = jax.jit(lora_matmul, static_argnames=("implementation", "trains"))


def arguments(bank: bool, lead: tuple[int, ...] = (5,), dtype: Any = jnp.float32) -> tuple[Any, ...]:
    keys = jax.random.split(jax.random.key(0), 5)
    first = (E,) if bank else ()
    shapes = ((*lead, K), (N, K), (*first, R, K), (*first, N, R))
    arrays = [jax.random.normal(key, shape).astype(dtype) for key, shape in zip(keys, shapes, strict=False)]
    scale = jnp.arange(1.0, 1 + E).astype(dtype) if bank else jnp.asarray(1.5, dtype)
    return *arrays, scale, jax.random.randint(keys[4], lead, -1, E + 1) if bank else None


def float64(x: Any, w: Any, a: Any, b: Any, scale: Any, ids: Any) -> np.ndarray:
    x, w, a, b, scale = (np.asarray(v, np.float64) for v in (x, w, a, b, scale))
    if ids is None:
        return x @ (w + scale * b @ a).T
    out = x @ w.T
    scale = np.broadcast_to(scale, len(a))
    for at in np.ndindex(ids.shape):
        if 0 <= (i := int(ids[at])) < len(a):
            out[at] += scale[i] * b[i] @ (a[i] @ x[at])
    return out


def relative(actual: Any, expected: Any) -> float:
    expected = np.asarray(expected, np.float64)
    return float(np.linalg.norm(np.asarray(actual, np.float64) - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("bank", [False, True])
@pytest.mark.parametrize("implementation", ["reference", "xla"])
def test_values_are_those_of_float64(implementation: Any, bank: bool, dtype: Any) -> None:
    args = arguments(bank, (2, 40), dtype)
    out = jitted(*args, implementation=implementation)
    assert out.shape == (2, 40, N)
    assert out.dtype == dtype
    assert relative(out, float64(*args)) < (1e-6 if dtype == jnp.float32 else allowed())


def allowed() -> float:
    """1.5 times the error of the formula as it stands in bfloat16, or 2e-3."""
    x, w, a, b, scale, _ = args = arguments(False, (2, 40), jnp.bfloat16)
    return max(1.5 * relative(x @ w.T + scale * (x @ a.T) @ b.T, float64(*args)), 2e-3)


def test_one_product_of_both_sides_is_the_same() -> None:
    for bank in (False, True):
        args = arguments(bank)
        out = jax.jit(lambda *a: low_rank(*a, "adapter", folded))(*args)
        np.testing.assert_allclose(out, float64(*args), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("trains", ["adapter", "all"])
@pytest.mark.parametrize("bank", [False, True])
def test_gradient_is_that_of_the_reference_and_of_finite_differences(bank: bool, trains: Any) -> None:
    with jax.enable_x64(True):
        *arrays, ids = arguments(bank)
        arrays = [v.astype(jnp.float64) / 4 for v in arrays]

        def total(arrays: list[jax.Array], implementation: Any) -> jax.Array:
            return jnp.sum(jnp.sin(lora_matmul(*arrays, ids, trains=trains, implementation=implementation)))

        slope, value = jax.jit(jax.grad(total), static_argnums=1), jax.jit(total, static_argnums=1)
        actual, expected = slope(arrays, "xla"), slope(arrays, "reference")
        for i, (a, e) in enumerate(zip(actual, expected, strict=True)):
            np.testing.assert_allclose(a, e, rtol=1e-10, atol=1e-10)
            if i == 1 and trains == "adapter":
                assert not np.any(a)
                continue
            step = np.random.default_rng(i).normal(size=a.shape) * 1e-6
            high, low = (value([v + s * step if j == i else v for j, v in enumerate(arrays)], "xla") for s in (1, -1))
            np.testing.assert_allclose(np.sum(a * step), (high - low) / 2, rtol=1e-6, atol=1e-14)


def test_bfloat16_gradients_are_near_those_of_float32() -> None:
    for bank in (False, True):
        *arrays, ids = arguments(bank, (64,))

        def total(arrays: list[jax.Array], ids: Any = ids) -> jax.Array:
            y = lora_matmul(*arrays, ids, trains="all").astype(jnp.float32)
            return jnp.sum(jnp.square(y))  # whose slope for the scale, one sum over all, has no cancellation

        half = [v.astype(jnp.bfloat16) for v in arrays]
        slope = jax.jit(jax.grad(total))
        for a, e in zip(slope(half), slope([v.astype(jnp.float32) for v in half]), strict=True):
            assert relative(a, e) < 5e-3


def test_the_weight_has_no_gradient_product_unless_asked() -> None:
    args = arguments(False, (64,))

    def products(trains: Any) -> int:
        slope = jax.grad(lambda *a: jnp.sum(lora_matmul(*a, trains=trains)), (0, 1, 2, 3))
        return jax.jit(slope).lower(*args).as_text().count("dot_general")

    assert products("all") == products("adapter") + 1


def test_a_row_outside_the_bank_is_the_weight_alone_and_other_rows_do_not_matter() -> None:
    x, w, a, b, scale, _ = arguments(True, (E + 2,))
    ids = jnp.array([-1, E, 0, 1, 2, 3])
    out = jitted(x, w, a, b, scale, ids)
    np.testing.assert_allclose(out[:2], x[:2] @ w.T, rtol=1e-5, atol=1e-5)
    poisoned = jitted(x.at[3].set(jnp.nan), w, a, b, scale, ids)
    keep = jnp.array([0, 1, 2, 4, 5])
    np.testing.assert_allclose(poisoned[keep], out[keep], rtol=1e-6)
    assert bool(jnp.all(jnp.isnan(poisoned[3])))
    for dtype in (jnp.uint8, jnp.int8):
        np.testing.assert_array_equal(jitted(x, w, a, b, scale, ids.astype(dtype)), out)


def test_a_number_as_scale_and_one_adapter_of_a_bank_are_what_they_say() -> None:
    x, w, a, b, scale, _ = arguments(True)
    for i in range(E):
        one = jitted(x, w, a[i], b[i], scale[i])
        np.testing.assert_allclose(jitted(x, w, a, b, scale, jnp.full((5,), i)), one, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(lora_matmul(x, w, a[1], b[1], 2), lora_matmul(x, w, a[1], b[1], jnp.asarray(2.0)))


@pytest.mark.parametrize("shape", [(0,), (3, 0), ()])
def test_no_rows_and_one_row_without_a_dimension(shape: tuple[int, ...]) -> None:
    for bank in (False, True):
        args = arguments(bank, shape)
        out = jitted(*args)
        assert out.shape == (*shape, N)
        np.testing.assert_allclose(out, float64(*args), rtol=1e-5, atol=1e-5)


def test_it_is_the_same_under_jit_vmap_scan_and_checkpoint() -> None:
    x, w, a, b, scale, ids = arguments(True, (4, 6))
    expected = lora_matmul(x, w, a, b, scale, ids)
    rows = (0, None, None, None, None, 0)
    scanned = jax.lax.scan(lambda _, row: (None, lora_matmul(row[0], w, a, b, scale, row[1])), None, (x, ids))[1]
    for actual in (
        jitted(x, w, a, b, scale, ids),
        jax.jit(jax.vmap(lora_matmul, rows))(x, w, a, b, scale, ids),
        scanned,
    ):
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)
    each = jax.jit(jax.vmap(lora_matmul, (0, None, 0, 0, 0)))(x, w, a, b, scale)
    own = jitted(x, w, a, b, scale, jnp.broadcast_to(jnp.arange(4)[:, None], (4, 6)))
    np.testing.assert_allclose(each, own, rtol=1e-5, atol=1e-5)
    slopes = [
        jax.jit(jax.grad(lambda b, f=f: jnp.sum(jnp.sin(f(x, w, a, b, scale, ids)))))(b)
        for f in (lora_matmul, jax.checkpoint(lora_matmul), jax.vmap(lora_matmul, rows))
    ]
    for actual in slopes[1:]:
        np.testing.assert_allclose(actual, slopes[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bank", [False, True])
def test_gradients_are_the_same_over_eight_devices(bank: bool) -> None:
    *arrays, ids = arguments(bank, (16,))
    mesh = jax.make_mesh((8,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
    batch, whole = PartitionSpec("batch"), PartitionSpec()

    def loss(arrays: list[jax.Array], ids: Any) -> jax.Array:
        return jnp.sum(jnp.sin(lora_matmul(*arrays, ids, trains="all")))

    def over_devices(arrays: list[jax.Array], ids: Any) -> jax.Array:
        return jax.lax.psum(loss(arrays, ids), "batch")

    specs = ([batch, whole, whole, whole, whole], batch if bank else whole)
    split = jax.shard_map(over_devices, mesh=mesh, in_specs=specs, out_specs=whole)
    actual, expected = jax.jit(jax.grad(split))(arrays, ids), jax.jit(jax.grad(loss))(arrays, ids)
    for a, e in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, e, atol=1e-5 * float(jnp.abs(e).max()))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": jnp.zeros((5, K), jnp.int32)}, TypeError, "x: expected a floating dtype, got int32"),
        ({"x": jnp.zeros(())}, ValueError, r"x: expected dims \[..., K\], got shape \(\)"),
        (
            {"weight": jnp.zeros((N, 11))},
            ValueError,
            r"weight: expected dims \[N, K=12\] for K of x, got shape \(7, 11\)",
        ),
        ({"a": jnp.zeros((R, 11))}, ValueError, r"a: expected dims \[r, K=12\] for K of x"),
        ({"b": jnp.zeros((N, 2))}, ValueError, r"b: expected shape \(7, 3\) for weight and a, got \(7, 2\)"),
        ({"scale": jnp.ones((2,))}, ValueError, r"scale: expected shape \(\) or \(\), got \(2,\)"),
        ({"ids": jnp.zeros((5,), jnp.int32)}, ValueError, r"a: expected dims \[E, r, K=12\] for K of x"),
        ({"trains": "weight"}, ValueError, "trains: expected 'adapter' or 'all', got 'weight'"),
        ({"implementation": "triton"}, NotImplementedError, "'triton' is not one of 'auto', 'xla', 'mosaic_gpu'"),
    ],
)
def test_mistakes_name_the_argument(change: dict[str, Any], error: type[Exception], message: str) -> None:
    names = ("x", "weight", "a", "b", "scale", "ids")
    with pytest.raises(error, match=message):
        lora_matmul(**(dict(zip(names, arguments(False), strict=True)) | change))


def test_mistakes_of_ids_name_them() -> None:
    x, w, a, b, scale, ids = arguments(True)
    with pytest.raises(TypeError, match="ids: expected an integer dtype, got float32"):
        lora_matmul(x, w, a, b, scale, ids.astype(jnp.float32))
    with pytest.raises(ValueError, match=r"ids: expected shape \(5,\), one a row of x, got \(4,\)"):
        lora_matmul(x, w, a, b, scale, ids[1:])


@pytest.mark.parametrize("implementation", ["reference", "xla"])
def test_ids_of_every_integer_dtype_mean_the_same(implementation: Any) -> None:
    x, w, _, _, scale, _ = arguments(True, (4,))
    keys = jax.random.split(jax.random.key(1), 2)
    a, b, scale = jax.random.normal(keys[0], (300, R, K)), jax.random.normal(keys[1], (300, N, R)), jnp.ones(300)

    def by(ids: Any) -> jax.Array:
        return jitted(x, w, a, b, scale, ids, implementation=implementation)

    expected = by(jnp.array([40, 44, 127, -1], jnp.int32))
    assert jnp.array_equal(by(jnp.array([40, 44, 127, -1], jnp.int8)), expected)
    assert jnp.array_equal(by(np.array([40, 44, 127, 2**32 - 1], np.uint32)), expected)
    wrapped = lora_matmul(x, w, a, b, scale, np.array([40, 44, 127, 2**32 + 1]), implementation=implementation)
    np.testing.assert_allclose(wrapped, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("implementation", ["reference", "xla"])
def test_no_adapter_at_all_is_the_weight_alone(implementation: Any) -> None:
    x, w, a, b, _, ids = arguments(True)
    out = jitted(x, w, a[:0], b[:0], 1.0, ids, implementation=implementation)
    np.testing.assert_allclose(out, x @ w.T, rtol=1e-5, atol=1e-5)


def test_a_number_as_scale_is_not_rounded_to_half_precision() -> None:
    x, w, a, b, _, _ = arguments(False, (40,), jnp.bfloat16)
    w = jnp.zeros_like(w)
    exact = relative(jitted(x, w, a, b, jnp.float32(0.3)), float64(x, w, a, b, 0.3, None))
    assert relative(jitted(x, w, a, b, 0.3), float64(x, w, a, b, 0.3, None)) == exact
    assert bool(jnp.isfinite(jitted(*(v.astype(jnp.float16) for v in (x, w, a * 1e-3, b * 1e-3)), 1e5)).all())


def test_a_config_of_another_operation_is_named() -> None:
    with pytest.raises(
        TypeError, match=r"config: expected a kernels_pallas.lora_matmul.Config, got a kernels_pallas.add_"
    ):
        lora_matmul(*arguments(False), config=NormConfig())  # type: ignore[arg-type]


@pytest.mark.parametrize("implementation", ["reference", "xla"])
@pytest.mark.parametrize(("n", "k", "r", "count"), [(0, 4, 2, 3), (5, 0, 2, 3), (5, 4, 0, 3), (5, 4, 2, 0)])
def test_sizes_of_zero_have_gradients(implementation: Any, n: int, k: int, r: int, count: int) -> None:
    x, w, a, b = jnp.ones((3, k)), jnp.ones((n, k)), jnp.ones((count, r, k)), jnp.ones((count, n, r))

    def total(*args: Any) -> Any:
        return jnp.sum(lora_matmul(*args, 1.0, jnp.arange(3), trains="all", implementation=implementation))

    slopes = jax.jit(jax.grad(total, (0, 1, 2, 3)))(x, w, a, b)
    assert [s.shape for s in slopes] == [x.shape, w.shape, a.shape, b.shape]
    np.testing.assert_allclose(slopes[0], np.full((3, k), n + (n * r if count else 0)))
