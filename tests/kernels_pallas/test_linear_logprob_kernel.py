"""The Mosaic kernel of linear_logprob: interpreted it has the reference's values and no race; it lowers to CUDA."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels_pallas import linear_logprob
from kernels_pallas.linear_logprob.config import Config, default_config
from kernels_pallas.linear_logprob.mosaic_gpu import forward, join
from kernels_pallas.linear_logprob.reference import reference

from .mosaic import interpreter, lowered

SMALL = Config(rows=64, words=32, depth=64, stages=2, splits=2)


def arguments(n: int, d: int, v: int, scale: float = 0.3) -> tuple[jax.Array, jax.Array, jax.Array]:
    k = jax.random.split(jax.random.key(0), 3)
    hidden = jax.random.normal(k[0], (n, d)).astype(jnp.bfloat16)
    weight = (jax.random.normal(k[1], (v, d)) * scale).astype(jnp.bfloat16)
    return hidden, weight, jax.random.randint(k[2], (n,), 0, v)


@pytest.mark.timeout(120)
@pytest.mark.parametrize(("n", "v", "splits"), [(64, 256, 2), (70, 200, 1), (3, 336, 3)])
def test_interpreted_it_is_the_reference_without_a_race(n: int, v: int, splits: int) -> None:
    config = Config(rows=64, words=32, depth=64, stages=2, splits=splits)
    args = arguments(n, 128, v)
    assert config.check(n, 128, v, jnp.bfloat16) is None
    actual = jax.jit(lambda *a: forward(*a, config, interpret=interpreter()))(*args)
    for a, e in zip(actual, jax.jit(reference)(*args), strict=True):
        np.testing.assert_allclose(a, e, atol=2e-5)


@pytest.mark.timeout(120)
def test_interpreted_it_holds_far_from_zero_too() -> None:
    hidden, weight, targets = arguments(64, 64, 128)
    hidden = jnp.abs(hidden)
    weight = (-jnp.abs(weight) * 16).astype(jnp.bfloat16)  # log-sum-exp far below -100
    actual = jax.jit(lambda *a: forward(*a, SMALL, interpret=interpreter()))(hidden, weight, targets)
    expected = jax.jit(reference)(hidden, weight, targets)
    assert float(expected.logsumexp.max()) < -100
    for a, e in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, e, rtol=2e-6, atol=2e-5)


@pytest.mark.parametrize(
    ("n", "d", "v"), [(8192, 4096, 131_072), (1, 2304, 256_000), (1000, 4096, 151_936), (4096, 64, 256)]
)
def test_the_config_of_a_shape_lowers_to_cuda(n: int, d: int, v: int) -> None:
    config = default_config(n, v)
    assert config.check(n, d, v, jnp.bfloat16) is None
    shapes = [
        jax.ShapeDtypeStruct(shape, dtype)
        for shape, dtype in (((n, d), jnp.bfloat16), ((v, d), jnp.bfloat16), ((n,), jnp.int32))
    ]
    text = lowered(lambda *a: forward(*a, config), *shapes)
    assert "mosaic_gpu" in text
    assert f"tensor<{n}x{v}x" not in text


def test_parts_join_to_the_whole() -> None:
    z = np.asarray(jax.random.normal(jax.random.key(0), (5, 12)) * 4, np.float64)
    target = np.array([0, 11, 5, 6, 3])
    parts = []
    for start in (0, 5, 9):
        own = z[:, start : {0: 5, 5: 9, 9: 12}[start]]
        most = own.max(axis=1)
        under = own - most[:, None]
        local = target - start
        inside = (local >= 0) & (local < own.shape[1])
        chosen = np.where(inside, own[np.arange(5), np.clip(local, 0, own.shape[1] - 1)], 0)
        parts.append([most, np.exp(under).sum(1), (np.exp(under) * under).sum(1), chosen])
    logsumexp = np.log(np.exp(z).sum(axis=1))
    p = np.exp(z - logsumexp[:, None])
    expected = z[np.arange(5), target] - logsumexp, logsumexp - (p * z).sum(axis=1), logsumexp
    for a, e in zip(join(jnp.asarray(parts, jnp.float32)), expected, strict=True):
        np.testing.assert_allclose(a, e, atol=1e-5)


@pytest.mark.parametrize(
    ("config", "shape", "dtype", "message"),
    [
        (Config(), (128, 64, 250), jnp.bfloat16, "256 words or more"),
        (Config(), (128, 64, 50_257), jnp.bfloat16, "multiples of 8, got 50257"),
        (Config(), (128, 100, 1024), jnp.bfloat16, "depth in multiples of 64"),
        (Config(), (128, 64, 1024), jnp.float32, "bfloat16 or float16, got float32"),
        (Config(stages=8), (128, 64, 1024), jnp.bfloat16, "bytes of shared memory"),
        (Config(words=260), (128, 64, 1024), jnp.bfloat16, "at most 256"),
        (Config(depth=0), (128, 64, 1024), jnp.bfloat16, "all positive"),
    ],
)
def test_a_config_says_why_it_cannot_run(config: Config, shape: tuple[int, int, int], dtype: Any, message: str) -> None:
    assert message in str(config.check(*shape, dtype))


def test_asked_for_without_a_gpu_it_says_so_and_is_not_replaced() -> None:
    if jax.default_backend() == "gpu":
        pytest.skip("there is a GPU")
    with pytest.raises(NotImplementedError, match="needs a Hopper GPU, the backend is cpu; use 'xla'"):
        linear_logprob(*arguments(128, 64, 256), implementation="mosaic_gpu")
