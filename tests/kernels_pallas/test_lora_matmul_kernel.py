"""The Mosaic kernel of lora_matmul: interpreted it has the reference's values and no race; it lowers to CUDA."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels_pallas import lora_matmul
from kernels_pallas.lora_matmul.bench import _configs
from kernels_pallas.lora_matmul.config import Config, default_config
from kernels_pallas.lora_matmul.mosaic_gpu import forward
from kernels_pallas.lora_matmul.xla import separate

from .mosaic import interpreter, lowered


def arguments(m: int, n: int, k: int, rank: int) -> tuple[jax.Array, ...]:
    keys = jax.random.split(jax.random.key(0), 4)
    shapes = ((m, k), (n, k), (m, rank), (n, rank))
    return tuple(jax.random.normal(key, shape).astype(jnp.bfloat16) for key, shape in zip(keys, shapes, strict=True))


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("m", "n", "k", "rank", "cores"),
    [
        (131, 192, 128, 3, 2),  # 2 x 2 tiles that overlap, two turns for each of two programs
        (256, 256, 128, 70, 3),  # 2 x 2 tiles for three programs: the last turn is not full; two steps of rank
    ],
)
def test_interpreted_it_is_the_reference_without_a_race(m: int, n: int, k: int, rank: int, cores: int) -> None:
    config = Config(columns=128, stages=2, band=2)
    args = arguments(m, n, k, rank)
    assert config.check(m, n, k, [v.dtype for v in args]) is None
    actual = jax.jit(lambda *a: forward(*a, config=config, cores=cores, interpret=interpreter()))(*args)
    expected = np.asarray(jax.jit(separate)(*(v.astype(jnp.float32) for v in args)), np.float64)
    assert actual.shape == (m, n)
    assert actual.dtype == jnp.bfloat16
    assert np.linalg.norm(np.asarray(actual, np.float64) - expected) < 2e-3 * np.linalg.norm(expected)


@pytest.mark.parametrize(
    ("m", "n", "k", "rank"),
    [(8192, 4096, 4096, 16), (8192, 8192, 28_672, 16), (1000, 960, 2304, 128), (128, 256, 384, 8)],
)
def test_the_config_of_a_shape_lowers_to_cuda(m: int, n: int, k: int, rank: int) -> None:
    lowers(m, n, k, rank, default_config(m, n))


@pytest.mark.parametrize("index", range(0, 30, 5))
def test_what_the_tuner_tries_lowers_to_cuda(index: int) -> None:
    lowers(8192, 4096, 4096, 16, list(_configs(8192, 4096, 4096, jnp.bfloat16))[index])


def lowers(m: int, n: int, k: int, rank: int, config: Config) -> None:
    assert config.check(m, n, k, (jnp.bfloat16,)) is None
    shapes = [jax.ShapeDtypeStruct(s, jnp.bfloat16) for s in ((m, k), (n, k), (m, rank), (n, rank))]
    text = lowered(partial(forward, config=config), *shapes)
    assert "mosaic_gpu" in text
    assert "dot_general" not in text


@pytest.mark.parametrize(
    ("config", "shape", "dtypes", "message"),
    [
        (Config(), (64, 256, 1024), (jnp.bfloat16,), "needs 128 rows or more, got 64"),
        (Config(), (128, 128, 1024), (jnp.bfloat16,), "needs 256 outputs or more"),
        (Config(), (128, 260, 1024), (jnp.bfloat16,), "in multiples of 64, got 260"),
        (Config(), (128, 256, 1000), (jnp.bfloat16,), "256 inputs or more, in multiples of 64, got 1000"),
        (Config(), (128, 256, 128), (jnp.bfloat16,), "256 inputs or more"),
        (Config(), (128, 256, 1024), (jnp.bfloat16, jnp.float32), "bfloat16 all over, got bfloat16, float32"),
        (Config(stages=5), (128, 256, 1024), (jnp.bfloat16,), "bytes of shared memory"),
        (Config(rows=256), (256, 256, 1024), (jnp.bfloat16,), "held in registers"),
        (Config(rows=64), (256, 256, 1024), (jnp.bfloat16,), "rows are 128 or 256"),
    ],
)
def test_a_config_says_why_it_cannot_run(config: Config, shape: Any, dtypes: Any, message: str) -> None:
    assert message in str(config.check(*shape, dtypes))


def test_asked_for_without_a_gpu_it_says_so_and_is_not_replaced() -> None:
    if jax.default_backend() == "gpu":
        pytest.skip("there is a GPU")
    x, w, _, b = arguments(128, 256, 256, 8)
    with pytest.raises(NotImplementedError, match="needs a Hopper GPU, the backend is cpu; use 'xla'"):
        lora_matmul(x, w, jnp.zeros((8, 256), jnp.bfloat16), b, implementation="mosaic_gpu")
