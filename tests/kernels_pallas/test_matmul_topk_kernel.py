"""The Mosaic kernel of matmul_topk: interpreted it has the reference's values and no race; it lowers to CUDA."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels_pallas import group_max, matmul_topk
from kernels_pallas.matmul_topk import api, xla
from kernels_pallas.matmul_topk.bench import configs
from kernels_pallas.matmul_topk.config import Config, default_config
from kernels_pallas.matmul_topk.mosaic_gpu import maxima
from kernels_pallas.matmul_topk.reference import reference, reference_group_max

from .mosaic import interpreter, lowered

SMALL = Config(rows=64, columns=32, depth=64, stages=2, splits=2)


def arguments(q: int, d: int, n: int) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Small integers, whose sums are exact."""
    rng = np.random.default_rng(0)
    queries, keys = (jnp.asarray(rng.integers(-3, 4, shape), jnp.bfloat16) for shape in ((q, d), (n, d)))
    bias = jnp.asarray(np.where(rng.random(n) < 0.2, -np.inf, rng.integers(-9, 9, n)), jnp.float32)
    return queries, keys, bias, jnp.asarray(rng.integers(0, n + 1, q))


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("q", "d", "n", "group", "splits", "masked"),
    [(64, 128, 256, 16, 2, True), (70, 64, 216, 16, 1, False), (3, 64, 336, 32, 4, True)],
)
def test_interpreted_it_is_the_reference_without_a_race(
    q: int, d: int, n: int, group: int, splits: int, masked: bool
) -> None:
    config = Config(rows=64, columns=32, depth=64, stages=2, splits=splits)
    queries, keys, bias, lengths = arguments(q, d, n)
    keys = keys.at[5].set(jnp.nan)
    args = (queries, keys, bias, lengths) if masked else (queries, keys, None, None)
    assert config.check(q, n, d, group, jnp.bfloat16) is None
    kernel = partial(maxima, config=config, interpret=interpreter())
    actual = jax.jit(lambda *a: xla.maxima(*a, group, 0, kernel).T)(*args)
    np.testing.assert_array_equal(actual, jax.jit(lambda *a: reference_group_max(*a, group))(*args))


@pytest.mark.timeout(120)
def test_interpreted_it_finds_what_the_reference_finds() -> None:
    queries, keys, bias, lengths = arguments(6, 64, 700)
    kernel = partial(maxima, config=SMALL, interpret=interpreter())
    find = partial(xla.find, k=5, group=8, columns=64, kernel=kernel)
    actual = jax.jit(find)(queries, keys, bias, lengths)
    expected = jax.jit(reference, static_argnums=4)(queries, keys, bias, lengths, 5)
    np.testing.assert_array_equal(actual.indices, expected.indices)
    np.testing.assert_array_equal(actual.scores, expected.scores)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    ("q", "d", "n"), [(1024, 768, 10_000_000), (1, 768, 1_000_040), (64, 4096, 65_536), (300, 64, 256)]
)
def test_the_config_of_a_shape_lowers_to_cuda(q: int, d: int, n: int, masked: bool) -> None:
    config = default_config(q, n)
    assert config.check(q, n, d, 64, jnp.bfloat16) is None
    assert "mosaic_gpu" in lower(config, q, d, n, masked)


@pytest.mark.parametrize("config", list(configs(1024, 100_000, 128, 32, jnp.bfloat16))[::5])
def test_what_the_tuner_tries_lowers_to_cuda(config: Config) -> None:
    assert "mosaic_gpu" in lower(config, 1024, 128, 100_000, masked=True)


def lower(config: Config, q: int, d: int, n: int, masked: bool) -> str:
    shapes = [jax.ShapeDtypeStruct((size, d), jnp.bfloat16) for size in (q, n)]
    if masked:
        shapes += [jax.ShapeDtypeStruct((n,), jnp.float32), jax.ShapeDtypeStruct((q,), jnp.int32)]
        return lowered(lambda *a: maxima(*a, 32, config), *shapes)
    return lowered(lambda *a: maxima(*a, None, None, 64, config), *shapes)


@pytest.mark.parametrize(
    ("config", "shape", "group", "dtype", "message"),
    [
        (Config(), (128, 200, 64), 64, jnp.bfloat16, "256 keys or more, in multiples of 8"),
        (Config(), (128, 1003, 64), 64, jnp.bfloat16, "got 1003"),
        (Config(), (128, 1024, 100), 64, jnp.bfloat16, "depth in multiples of 64, got 128 of 100"),
        (Config(), (0, 1024, 64), 64, jnp.bfloat16, "a query or more"),
        (Config(), (128, 1024, 64), 64, jnp.float32, "bfloat16 or float16, got float32"),
        (Config(), (128, 1024, 64), 60, jnp.bfloat16, "a group in multiples of 8 that divides 128 keys, got 60"),
        (Config(stages=8), (128, 1024, 64), 64, jnp.bfloat16, "bytes of shared memory"),
        (Config(columns=256), (128, 1024, 64), 64, jnp.bfloat16, "that registers hold, 16384, got 128 x 256"),
        (Config(depth=0), (128, 1024, 64), 64, jnp.bfloat16, "all positive"),
    ],
)
def test_a_config_says_why_it_cannot_run(
    config: Config, shape: tuple[int, int, int], group: int, dtype: Any, message: str
) -> None:
    assert message in str(config.check(*shape, group, dtype))


def test_asked_for_without_a_gpu_it_says_so_and_is_not_replaced() -> None:
    if jax.default_backend() == "gpu":
        pytest.skip("there is a GPU")
    queries, keys = arguments(128, 64, 256)[:2]
    with pytest.raises(NotImplementedError, match="needs a Hopper GPU, the backend is cpu; use 'xla'"):
        matmul_topk(queries, keys, 3, implementation="mosaic_gpu")
    with pytest.raises(NotImplementedError, match="needs a Hopper GPU, the backend is cpu; use 'xla'"):
        group_max(queries, keys, implementation="mosaic_gpu")


def test_the_public_functions_lower_with_their_gradient_and_over_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "needs_hopper", lambda: None)

    def loss(queries: jax.Array, keys: jax.Array, valid: jax.Array, lengths: jax.Array) -> jax.Array:
        options = {"valid": valid, "lengths": lengths, "implementation": "mosaic_gpu"}
        found = matmul_topk(queries, keys, 3, metric="l2", **options).scores
        return jnp.sum(found) + jnp.sum(group_max(queries, keys, **options))

    shapes = [
        jax.ShapeDtypeStruct(shape, dtype)
        for shape, dtype in (
            *(((2, 70, 64), jnp.bfloat16), ((2, 10_000, 64), jnp.bfloat16)),
            *(((2, 10_000), jnp.bool_), ((2, 70), jnp.int32)),
        )
    ]
    slope = jax.value_and_grad(loss, (0, 1))
    one = [jax.ShapeDtypeStruct(shape.shape[1:], shape.dtype) for shape in shapes]
    for function, given in ((slope, one), (jax.vmap(slope), shapes)):
        assert lowered(function, *given).count("mosaic_gpu_v2") == 2
