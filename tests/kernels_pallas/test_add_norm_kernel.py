"""The Mosaic kernels of add_norm: interpreted they have the values of XLA and no race; they lower to CUDA."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels_pallas import add_norm
from kernels_pallas.add_norm import api, mosaic_gpu, xla
from kernels_pallas.add_norm.bench import configs
from kernels_pallas.add_norm.config import Config, default_config
from kernels_pallas.add_norm.reference import AddNorm

from .mosaic import interpreter, lowered


def options(kind: Any, dtype: Any, subtract: bool = False) -> xla.Options:
    return xla.Options(kind, 1e-6, 0.5, subtract, np.dtype(dtype))


def arguments(n: int, d: int, dtype: Any) -> tuple[jax.Array, ...]:
    k = jax.random.split(jax.random.key(0), 4)
    x, residual = (jax.random.normal(key, (n, d)).astype(dtype) for key in k[:2])
    weight, bias = (jax.random.normal(key, (d,)).astype(dtype) for key in k[2:])
    return x, residual, weight, bias


def close(actual: Any, expected: Any, bound: float) -> None:
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert a.shape == e.shape
        a, e = np.asarray(a, np.float64), np.asarray(e, np.float64)
        assert np.linalg.norm(a - e) <= bound * np.linalg.norm(e)


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("n", "d", "kind", "dtype", "subtract"),
    [(11, 256, "layer", jnp.bfloat16, False), (3, 128, "rms", jnp.float32, True)],
)
def test_interpreted_they_are_xla_without_a_race(n: int, d: int, kind: Any, dtype: Any, subtract: bool) -> None:
    how, config = options(kind, dtype, subtract), Config(programs=2, stages=2)
    assert config.check(n, d, dtype) is None
    x, residual, weight, bias = arguments(n, d, dtype)
    expected = jax.jit(lambda *a: xla.forward(*a, how))(x, residual, weight, bias)
    actual = jax.jit(lambda *a: mosaic_gpu.forward(*a, how, config, interpret=interpreter()))(x, residual, weight, bias)
    close(actual, expected, 2e-3 if dtype == jnp.bfloat16 else 1e-6)
    slopes, (_, total, mean, rstd) = AddNorm(residual, x), expected
    before = (slopes, total, mean, rstd, weight)
    expected = jax.jit(lambda *a: xla.backward(*a, how))(*before)
    actual = jax.jit(lambda *a: mosaic_gpu.backward(*a, how, config, interpret=interpreter()))(*before)
    close(actual, expected, 5e-3 if dtype == jnp.bfloat16 else 1e-6)


def lower(config: Config, n: int, d: int, kind: Any, dtype: Any) -> None:
    how = options(kind, dtype)
    rows, channels = jax.ShapeDtypeStruct((n, d), dtype), jax.ShapeDtypeStruct((d,), dtype)
    numbers = jax.ShapeDtypeStruct((n,), jnp.float32)
    text = lowered(lambda *a: mosaic_gpu.forward(*a, how, config), rows, rows, channels, channels)
    assert "mosaic_gpu" in text
    if kind == "layer":
        text = lowered(
            lambda y, s, t, m, r, w: mosaic_gpu.backward(AddNorm(y, s), t, m, r, w, how, config),
            *(rows, rows, rows, numbers, numbers, channels),
        )
    else:
        text = lowered(
            lambda y, s, t, r, w: mosaic_gpu.backward(AddNorm(y, s), t, None, r, w, how, config),
            *(rows, rows, rows, numbers, channels),
        )
    assert "mosaic_gpu" in text


@pytest.mark.parametrize("kind", ["rms", "layer"])
@pytest.mark.parametrize(
    ("n", "d", "dtype"),
    [
        (8192, 4096, jnp.bfloat16),
        (1, 768, jnp.bfloat16),
        (1000, 2304, jnp.float16),
        (4096, 8192, jnp.bfloat16),
        (4096, 2048, jnp.float32),
    ],
)
def test_the_config_of_a_shape_lowers_to_cuda(n: int, d: int, dtype: Any, kind: Any) -> None:
    config = default_config(n, d, jnp.dtype(dtype).itemsize)
    assert config.check(n, d, dtype) is None
    lower(config, n, d, kind, dtype)


@pytest.mark.parametrize("config", list(configs(8192, 4096, jnp.bfloat16))[::4])
def test_what_the_tuner_tries_lowers_to_cuda(config: Config) -> None:
    lower(config, 8192, 4096, "rms", jnp.bfloat16)


@pytest.mark.parametrize(
    ("config", "shape", "dtype", "others", "message"),
    [
        (Config(), (8, 100), jnp.bfloat16, (), "channels in multiples of 128 up to 8192, got 8 of 100"),
        (Config(), (8, 16_384), jnp.bfloat16, (), "up to 8192, got 8 of 16384"),
        (Config(), (0, 128), jnp.bfloat16, (), "a row or more"),
        (Config(), (8, 128), jnp.int8, (), "bfloat16, float16 or float32, got int8"),
        (Config(), (8, 128), jnp.float32, (jnp.bfloat16,), "one dtype, got float32, bfloat16"),
        (Config(stages=9), (8, 8192), jnp.bfloat16, (), "bytes of shared memory"),
        (Config(stages=0), (8, 128), jnp.bfloat16, (), "all are positive"),
    ],
)
def test_a_config_says_why_it_cannot_run(
    config: Config, shape: tuple[int, int], dtype: Any, others: tuple[Any, ...], message: str
) -> None:
    assert message in str(config.check(*shape, dtype, others))


def test_asked_for_without_a_gpu_it_says_so_and_is_not_replaced() -> None:
    if jax.default_backend() == "gpu":
        pytest.skip("there is a GPU")
    with pytest.raises(NotImplementedError, match="needs a Hopper GPU, the backend is cpu; use 'xla'"):
        add_norm(*arguments(8, 128, jnp.bfloat16), implementation="mosaic_gpu")


def test_the_public_function_lowers_with_its_gradient_and_over_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "needs_hopper", lambda: None)

    def loss(x: jax.Array, residual: jax.Array, weight: jax.Array, bias: jax.Array) -> jax.Array:
        out = add_norm(x, residual, weight, bias, kind="layer", weight_offset=1.0, implementation="mosaic_gpu")
        return jnp.sum(out.normed.astype(jnp.float32)) + jnp.sum(out.sum.astype(jnp.float32))

    shapes = [jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in ((3, 40, 256), (3, 40, 256), (256,), (256,))]
    for function in (jax.grad(loss, (0, 1, 2, 3)), jax.vmap(jax.grad(loss, (0, 1, 2, 3)), (0, 0, None, None))):
        assert lowered(function, *shapes).count("mosaic_gpu_v2") == 2
