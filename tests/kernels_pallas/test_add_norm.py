"""add_norm: against float64, its gradient against jax's, and what it keeps."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from jax.test_util import check_grads

from kernels_pallas import add_norm

IMPLEMENTATIONS = ("reference", "xla")


def arguments(*shape: int, dtype: Any = jnp.float32, bias: bool = True) -> tuple[Any, ...]:
    k = jax.random.split(jax.random.key(0), 4)
    x, residual = (jax.random.normal(key, shape) * 2 + 1 for key in k[:2])
    weight, shift = (jax.random.normal(key, shape[-1:]) for key in k[2:])
    return *(a.astype(dtype) for a in (x, residual, weight)), shift.astype(dtype) if bias else None


def float64(x: Any, residual: Any, weight: Any, bias: Any, kind: str, offset: float, sign: int) -> Any:
    x, residual, weight = (np.asarray(a, np.float64) for a in (x, residual, weight))
    s = x + sign * residual
    t = s - s.mean(axis=-1, keepdims=True) if kind == "layer" else s
    out = t / np.sqrt((t * t).mean(axis=-1, keepdims=True) + 1e-6) * (weight + offset)
    return out + (0 if bias is None else np.asarray(bias, np.float64)), s


@pytest.mark.parametrize("kind", ["rms", "layer"])
@pytest.mark.parametrize(
    ("shape", "bias", "offset", "subtract"),
    [((3, 5, 33), True, 0.0, False), ((7, 64), False, 1.0, False), ((9,), True, 0.0, True)],
)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_values_are_those_of_float64(
    implementation: Any, shape: tuple[int, ...], bias: bool, offset: float, subtract: bool, kind: Any
) -> None:
    args = arguments(*shape, bias=bias)
    function = partial(add_norm, kind=kind, weight_offset=offset, subtract=subtract, implementation=implementation)
    out = jax.jit(function)(*args)
    for actual, expected in zip(out, float64(*args, kind, offset, -1 if subtract else 1), strict=True):
        assert actual.dtype == jnp.float32
        np.testing.assert_allclose(actual, expected, atol=1e-5)


@pytest.mark.parametrize("kind", ["rms", "layer"])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_half_precision_is_rounded_once(implementation: Any, kind: Any) -> None:
    x, residual, weight, bias = arguments(6, 96, dtype=jnp.bfloat16)
    out = jax.jit(partial(add_norm, kind=kind, implementation=implementation))(x, residual, weight, bias)
    assert out.normed.dtype == out.sum.dtype == jnp.bfloat16
    total = (x.astype(jnp.float32) + residual.astype(jnp.float32)).astype(jnp.bfloat16)
    np.testing.assert_array_equal(out.sum, total)
    expected = float64(total, np.zeros((6, 96)), weight, bias, kind, 0.0, 1)[0]
    np.testing.assert_allclose(np.asarray(out.normed, np.float64), expected, rtol=2**-8, atol=1e-5)


def test_a_float32_stream_takes_half_precision_blocks() -> None:
    x, residual, weight, _ = arguments(6, 96)
    residual = residual.astype(jnp.bfloat16)

    def loss(x: jax.Array, residual: jax.Array, weight: jax.Array, implementation: Any) -> jax.Array:
        out = add_norm(x, residual, weight, dtype=jnp.bfloat16, implementation=implementation)
        assert (out.normed.dtype, out.sum.dtype) == (jnp.bfloat16, jnp.float32)
        return jnp.sum(jnp.sin(out.normed.astype(jnp.float32))) + jnp.sum(jnp.cos(out.sum))

    slope = jax.jit(jax.grad(loss, (0, 1, 2)), static_argnums=3)
    actual, expected = slope(x, residual, weight, "xla"), slope(x, residual, weight, "reference")
    assert [a.dtype for a in actual] == [jnp.float32, jnp.bfloat16, jnp.float32]
    for a, e in zip(actual, expected, strict=True):
        a, e = np.asarray(a, np.float64), np.asarray(e, np.float64)
        assert np.linalg.norm(a - e) <= 5e-3 * np.linalg.norm(e)


def test_a_coupling_is_undone_with_the_norm_of_what_it_was() -> None:
    x, residual, weight, _ = arguments(4, 32)
    after = add_norm(x, residual, weight)
    before = add_norm(after.sum, residual, weight, subtract=True)
    np.testing.assert_allclose(before.sum, x, atol=1e-6)
    np.testing.assert_allclose(before.normed, add_norm(x, 0 * x, weight).normed, atol=1e-5)


@pytest.mark.parametrize("kind", ["rms", "layer"])
@pytest.mark.parametrize(("bias", "offset", "subtract"), [(True, 0.0, True), (False, 1.0, False)])
def test_gradient_is_that_of_the_reference(bias: bool, offset: float, subtract: bool, kind: Any) -> None:
    args = arguments(2, 5, 24, bias=bias)
    wanted = tuple(range(3 + bias))

    def loss(implementation: Any, *args: Any) -> jax.Array:
        options = {"kind": kind, "weight_offset": offset, "subtract": subtract, "implementation": implementation}
        out = add_norm(*args, **options)
        return jnp.sum(jnp.sin(out.normed)) + jnp.sum(jnp.cos(out.sum))

    slope = {way: jax.jit(jax.grad(partial(loss, way), wanted)) for way in IMPLEMENTATIONS}
    for a, e in zip(slope["xla"](*args), slope["reference"](*args), strict=True):
        np.testing.assert_allclose(a, e, atol=1e-5 * float(jnp.abs(e).max()))


@pytest.mark.parametrize("kind", ["rms", "layer"])
def test_gradient_is_that_of_differences(kind: Any) -> None:
    with jax.enable_x64(True):
        args = tuple(jnp.asarray(a, jnp.float64) for a in arguments(3, 8))
        check_grads(jax.jit(partial(add_norm, kind=kind)), args, order=1, modes=["rev"], eps=1e-6)


def test_a_row_of_zeros_has_a_finite_gradient() -> None:
    x, residual, weight, bias = arguments(3, 16)
    x, residual = x.at[1].set(0), residual.at[1].set(0)
    for kind in ("rms", "layer"):
        loss = jax.jit(jax.grad(lambda x, kind=kind: jnp.sum(add_norm(x, residual, weight, bias, kind=kind).normed)))
        assert bool(jnp.all(jnp.isfinite(loss(x))))
        np.testing.assert_array_equal(add_norm(x, residual, weight, kind=kind).normed[1], 0)


def test_it_is_the_same_under_transformations() -> None:
    x, residual, weight, bias = arguments(4, 3, 16)

    def loss(x: jax.Array, residual: jax.Array, weight: jax.Array) -> jax.Array:
        return jnp.sum(jnp.sin(add_norm(x, residual, weight, bias, kind="layer").normed))

    whole = jax.jit(jax.grad(loss, (0, 1, 2)))(x, residual, weight)
    slope = jax.grad(jax.checkpoint(loss), (0, 1, 2))
    mapped = jax.vmap(slope, (0, 0, None))
    for function in (mapped, lambda x, residual, weight: jax.lax.map(lambda row: slope(*row, weight), (x, residual))):
        each = jax.jit(function)(x, residual, weight)
        for a, e in zip(each[:2], whole[:2], strict=True):
            np.testing.assert_allclose(a, e, atol=1e-6)
        np.testing.assert_allclose(jnp.sum(each[2], axis=0), whole[2], atol=1e-5)


def test_the_gradient_keeps_the_sum_and_a_number_a_row() -> None:
    x, residual, weight, bias = arguments(256, 128)

    def kept(kind: Any) -> int:
        _, pull = jax.vjp(lambda *a: add_norm(*a, kind=kind), x, residual, weight, bias)
        return sum(leaf.size for leaf in jax.tree.leaves(pull) if hasattr(leaf, "size"))

    assert 256 * 128 + 256 + 128 <= kept("rms") <= 256 * 128 + 256 + 2 * 128
    assert kept("layer") == kept("rms") + 256


def test_no_rows_give_no_rows() -> None:
    out = add_norm(jnp.zeros((0, 4)), jnp.zeros((0, 4)), jnp.ones(4))
    assert out.normed.shape == out.sum.shape == (0, 4)


def test_mistakes_name_the_argument() -> None:
    x, weight = jnp.zeros((2, 4)), jnp.ones(4)
    for args, options, error, message in (
        ((x, x[1:], weight), {}, ValueError, r"residual: expected shape \(2, 4\), that of x, got \(1, 4\)"),
        ((x, x, weight[1:]), {}, ValueError, r"weight: expected shape \(4,\), one a channel of x, got \(3,\)"),
        ((x, x, weight, x), {}, ValueError, "bias: expected shape"),
        ((x, x.astype(int), weight), {}, TypeError, "residual: expected a floating dtype, got int32"),
        ((x, x, weight), {"kind": "group"}, ValueError, "kind: expected 'rms' or 'layer', got 'group'"),
        ((x, x, weight), {"eps": 0.0}, ValueError, "eps: expected a positive number, got 0.0"),
        ((x, x, weight), {"dtype": jnp.int32}, TypeError, "dtype: expected a floating dtype, got int32"),
        ((jnp.zeros(()), jnp.zeros(()), weight), {}, ValueError, r"x: expected dims \[..., D\]"),
        ((x, x, weight), {"implementation": "triton"}, NotImplementedError, "'triton' is not one of 'auto'"),
    ):
        with pytest.raises(error, match=message):
            add_norm(*args, **options)


def test_gradients_are_the_same_over_eight_devices() -> None:
    x, residual, weight, bias = arguments(16, 8)
    mesh = jax.make_mesh((8,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
    batch, all_of = PartitionSpec("batch"), PartitionSpec()

    def loss(*args: jax.Array) -> jax.Array:
        out = add_norm(*args, kind="layer")
        return jnp.sum(jnp.sin(out.normed) + jnp.cos(out.sum))

    def over_devices(*args: jax.Array) -> jax.Array:
        return jax.lax.psum(loss(*args), "batch")

    split = jax.shard_map(over_devices, mesh=mesh, in_specs=(batch, batch, all_of, all_of), out_specs=all_of)
    actual = jax.jit(jax.grad(split, (0, 1, 2, 3)))(x, residual, weight, bias)
    expected = jax.jit(jax.grad(loss, (0, 1, 2, 3)))(x, residual, weight, bias)
    for a, e in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, e, atol=1e-5 * float(jnp.abs(e).max()))


def test_what_is_fixed_is_named_when_it_is_not() -> None:
    x, residual, weight, bias = arguments(3, 8)
    for name, value, said in (
        ("eps", 1e-6, "a number of Python"),
        ("weight_offset", 1.0, "a number of Python"),
        ("subtract", True, "True or False"),
    ):
        with pytest.raises(TypeError, match=f"{name}: expected {said}, which is fixed, got"):
            jax.jit(lambda v, name=name: add_norm(x, residual, weight, bias, **{name: v}))(value)
    with pytest.raises(ValueError, match="eps: expected a finite number, got inf"):
        add_norm(x, residual, weight, eps=float("inf"))
    with pytest.raises(TypeError, match="residual: dtype float16 does not go with bfloat16 of x; cast one of them"):
        add_norm(x.astype(jnp.bfloat16), residual.astype(jnp.float16), weight)
    with pytest.raises(TypeError, match="x: expected an array, got list"):
        add_norm(x.tolist(), residual, weight)
    with pytest.raises(TypeError, match=r"config: expected a kernels_pallas.add_norm.Config, got a builtins.dict"):
        add_norm(x, residual, weight, config={})  # type: ignore[arg-type]


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_arrays_and_numbers_of_numpy_are_taken(implementation: Any) -> None:
    args = arguments(3, 8, dtype=jnp.bfloat16)
    out = add_norm(*args, eps=np.float32(1e-3), implementation=implementation)
    expected = add_norm(*args, eps=float(np.float32(1e-3)), implementation=implementation)
    assert jnp.array_equal(out.normed, expected.normed)
    wide = arguments(3, 8)
    numpy = [np.asarray(a, np.float64) for a in wide if a is not None]
    np.testing.assert_array_equal(
        add_norm(*numpy, implementation=implementation).normed, add_norm(*wide, implementation=implementation).normed
    )
