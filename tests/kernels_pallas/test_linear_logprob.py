"""linear_logprob: every implementation against float64, its gradient, and the memory that it is for."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from kernels_pallas import linear_logprob
from kernels_pallas.add_norm import Config as NormConfig

IMPLEMENTATIONS = ("reference", "xla")


def arguments(n: int = 37, d: int = 12, v: int = 50, dtype: Any = jnp.float32) -> tuple[jax.Array, ...]:
    k = jax.random.split(jax.random.key(0), 3)
    hidden, weight = jax.random.normal(k[0], (n, d)), 2 * jax.random.normal(k[1], (v, d))
    return hidden.astype(dtype), weight.astype(dtype), jax.random.randint(k[2], (n,), 0, v)


def float64(hidden: jax.Array, weight: jax.Array, targets: jax.Array) -> tuple[np.ndarray, ...]:
    z = np.asarray(hidden, np.float64) @ np.asarray(weight, np.float64).T
    top = z.max(axis=1, keepdims=True)
    lse = np.log(np.exp(z - top).sum(axis=1)) + top[:, 0]
    p = np.exp(z - lse[:, None])
    return z[np.arange(len(z)), np.asarray(targets)] - lse, lse - (p * z).sum(axis=1), lse


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(("rows", "columns"), [(1, 50), (8, 1), (37, 7), (1000, 1000), (5, 49)])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_values_are_those_of_float64(implementation: Any, rows: int, columns: int, dtype: Any) -> None:
    args = arguments(dtype=dtype)
    out = jax.jit(partial(linear_logprob, implementation=implementation, rows=rows, columns=columns))(*args)
    for actual, expected in zip(out, float64(*args), strict=True):
        assert actual.dtype == jnp.float32
        np.testing.assert_allclose(actual, expected, atol=2e-5)


@pytest.mark.parametrize(("rows", "columns"), [(8, 50), (37, 7), (1000, 1000)])
@pytest.mark.parametrize("output", range(3))
def test_gradient_is_that_of_the_reference(output: int, rows: int, columns: int) -> None:
    hidden, weight, targets = arguments()
    targets = targets.at[5].set(-1)  # outside: NaN by itself, and no slope from its logp

    def total(h: jax.Array, w: jax.Array, implementation: Any) -> jax.Array:
        out = linear_logprob(h, w, targets, implementation=implementation, rows=rows, columns=columns)[output]
        return jnp.sum(jnp.sin(jnp.where(targets >= 0, out, 0)))

    slope = jax.jit(jax.grad(total, (0, 1)), static_argnums=2)
    actual, expected = slope(hidden, weight, "xla"), slope(hidden, weight, "reference")
    for a, e in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, e, atol=1e-5 * float(jnp.abs(e).max()) + 1e-6)


def test_no_array_of_all_logits_exists() -> None:
    n, d, v = 4096, 16, 1000
    shapes = [jax.ShapeDtypeStruct(s, t) for s, t in (((n, d), jnp.float32), ((v, d), jnp.float32), ((n,), jnp.int32))]

    def bytes_of(implementation: Any) -> int:
        def loss(h: jax.Array, w: jax.Array, t: jax.Array) -> jax.Array:
            return -jnp.mean(linear_logprob(h, w, t, implementation=implementation, rows=256, columns=128).logp)

        return jax.jit(jax.grad(loss, (0, 1))).lower(*shapes).compile().memory_analysis().temp_size_in_bytes

    assert bytes_of("reference") >= n * v * 4
    assert bytes_of("xla") < n * v * 4 / 20


def test_large_logits_stay_finite_and_a_target_outside_is_nan() -> None:
    hidden, weight, targets = arguments()
    out = linear_logprob(1e4 * hidden, weight, targets.at[0].set(50).at[1].set(-1))
    assert bool(jnp.all(jnp.isnan(out.logp[:2])))
    assert bool(jnp.all(jnp.isfinite(out.logp[2:])))
    assert bool(jnp.all(jnp.isfinite(out.entropy)))


def test_small_integer_targets_do_not_wrap_in_a_large_vocabulary() -> None:
    hidden, weight, _ = arguments(v=300)
    targets = jnp.arange(37) + 5
    expected = linear_logprob(hidden, weight, targets).logp
    for dtype in (jnp.uint8, jnp.int8, jnp.int16):
        assert jnp.array_equal(linear_logprob(hidden, weight, targets.astype(dtype)).logp, expected)


def test_mistakes_name_the_argument() -> None:
    hidden, weight, targets = arguments()
    with pytest.raises(ValueError, match="weight: dim D=11 disagrees with D=12 of hidden"):
        linear_logprob(hidden, weight[:, 1:], targets)
    with pytest.raises(ValueError, match="targets: expected shape"):
        linear_logprob(hidden, weight, targets[1:])
    with pytest.raises(TypeError, match="targets: expected an integer dtype"):
        linear_logprob(hidden, weight, targets.astype(jnp.float32))
    with pytest.raises(NotImplementedError, match="'triton' is not one of 'auto', 'xla', 'mosaic_gpu', 'reference'"):
        linear_logprob(hidden, weight, targets, implementation="triton")  # type: ignore[arg-type]


def test_gradients_are_the_same_over_eight_devices() -> None:
    hidden, weight, targets = arguments(n=40)
    mesh = jax.make_mesh((8,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
    batch, whole = PartitionSpec("batch"), PartitionSpec()

    def loss(h: jax.Array, w: jax.Array, t: jax.Array) -> jax.Array:
        out = linear_logprob(h, w, t, rows=4, columns=20)
        return jnp.sum(jnp.sin(out.logp) + out.entropy)

    def over_devices(h: jax.Array, w: jax.Array, t: jax.Array) -> jax.Array:
        return jax.lax.psum(loss(h, w, t), "batch")

    split = jax.shard_map(over_devices, mesh=mesh, in_specs=(batch, whole, batch), out_specs=whole)
    actual = jax.jit(jax.grad(split, (0, 1)))(hidden, weight, targets)
    expected = jax.jit(jax.grad(loss, (0, 1)))(hidden, weight, targets)
    for a, e in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, e, atol=1e-5 * float(jnp.abs(e).max()))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_target_outside_is_nan_in_every_integer_dtype(implementation: Any) -> None:
    hidden, weight, _ = arguments(n=4, v=300)
    function = jax.jit(partial(linear_logprob, implementation=implementation))
    expected = function(hidden, weight, jnp.array([50, 100, 127, 9])).logp
    small = function(hidden, weight, jnp.array([50, 100, 127, -1], jnp.int8)).logp
    np.testing.assert_allclose(small, [*expected[:3], np.nan], rtol=1e-6)  # 300 is none of int8
    for outside in (np.array([2**32 + 50, -(2**32)]), np.array([2**32 - 1, 2**31 + 1], np.uint32)):
        targets = np.array([50, 100, *outside], outside.dtype)
        out = linear_logprob(hidden, weight, targets, implementation=implementation).logp
        np.testing.assert_allclose(out, [*expected[:2], np.nan, np.nan], rtol=1e-6)


def test_arrays_of_numpy_are_taken_and_other_things_are_named() -> None:
    hidden, weight, targets = (np.asarray(x) for x in arguments())
    out = linear_logprob(hidden.astype(np.float64), weight.astype(np.float64), targets.astype(np.int64))
    expected = linear_logprob(*arguments())
    assert out.logp.dtype == jnp.float32
    np.testing.assert_array_equal(out.logp, expected.logp)
    for change, error, message in (
        ({"hidden": [[1.0] * 12]}, TypeError, "hidden: expected an array, got list"),
        ({"weight": weight[:0]}, ValueError, "weight: expected dims .V, D. with a word or more, got shape"),
        (
            {"hidden": jnp.asarray(hidden, jnp.bfloat16), "weight": jnp.asarray(weight, jnp.float16)},
            TypeError,
            "weight: dtype float16 does not go with bfloat16 of hidden",
        ),
        ({"hidden": jnp.asarray(hidden, jnp.float8_e4m3fn)}, TypeError, "hidden: expected 16 bits or more"),
        ({"rows": 2.5}, TypeError, "rows: expected a whole number of Python, which is fixed, got 2.5"),
        ({"columns": 0}, ValueError, "columns: expected at least 1, got 0"),
        (
            {"config": NormConfig()},
            TypeError,
            "config: expected a kernels_pallas.linear_logprob.Config, got a kernels_p",
        ),
    ):
        with pytest.raises(error, match=message):
            linear_logprob(**({"hidden": hidden, "weight": weight, "targets": targets} | change))
    with pytest.raises(TypeError, match="rows: expected a whole number of Python, which is fixed, got"):
        jax.jit(lambda rows: linear_logprob(*arguments(), rows=rows))(8)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(("n", "d"), [(3, 0), (0, 4), (0, 0)])
def test_no_row_or_no_channel_is_no_error(implementation: Any, n: int, d: int) -> None:
    def total(hidden: jax.Array) -> Any:
        out = linear_logprob(
            hidden, jnp.ones((5, d)), jnp.zeros(n, jnp.int32), implementation=implementation, rows=2, columns=2
        )
        return jnp.sum(out.logp), out.logsumexp

    slope, total_of = jax.jit(jax.grad(total, has_aux=True))(jnp.ones((n, d)))
    np.testing.assert_allclose(total_of, np.full(n, np.log(5) + d), rtol=1e-6)
    assert slope.shape == (n, d)
