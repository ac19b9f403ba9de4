"""The Mosaic kernel of ssim_window: interpreted it has the reference's values and no race; it lowers to CUDA."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from kernels_pallas import ssim_window
from kernels_pallas.ssim_window import api
from kernels_pallas.ssim_window.bench import configs
from kernels_pallas.ssim_window.config import Config, default_config
from kernels_pallas.ssim_window.mosaic_gpu import forward
from kernels_pallas.ssim_window.reference import Options, reference
from kernels_pallas.ssim_window.xla import by_kernel, framewise

from .mosaic import interpreter, lowered


def options(dtype: Any, **others: Any) -> Options:
    top = 255.0 if dtype == jnp.uint8 else 1.0
    given = {"window": "gaussian", "size": 11, "sigma": 1.5, "border": "valid", "data_range": top}
    return Options(**(given | others), c1=(0.01 * top) ** 2, c2=(0.03 * top) ** 2)


def frames(*shape: int, dtype: Any) -> tuple[jax.Array, jax.Array]:
    rng = np.random.default_rng(0)
    a = np.clip(127 + 100 * np.sin(np.arange(np.prod(shape)) / 40).reshape(shape) + rng.normal(0, 9, shape), 0, 255)
    b = np.clip(a + rng.integers(-30, 31, shape), 0, 255)
    if dtype == jnp.uint8:
        return jnp.asarray(a.astype(np.uint8)), jnp.asarray(b.astype(np.uint8))
    return jnp.asarray(a / 255).astype(dtype), jnp.asarray(b / 255).astype(dtype)


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("shape", "dtype", "others", "config"),
    [
        # two bands, the second begins in the first; two strips; odd sizes
        ((1, 19, 87, 3), jnp.uint8, {}, Config(columns=2, rows=4, steps=4, stages=3)),
        # smaller than what a program reads; two frames; more stages than steps
        ((2, 13, 11, 1), jnp.float32, {"border": "reflect", "size": 5}, Config(columns=1, rows=8, steps=3, stages=4)),
        # a window of three rows closes in the first step
        ((1, 9, 50, 4), jnp.bfloat16, {"window": "uniform", "size": 3}, Config(columns=1, rows=8, steps=1, stages=1)),
    ],
)
def test_interpreted_it_is_the_reference_without_a_race(
    shape: tuple[int, ...], dtype: Any, others: dict[str, Any], config: Config
) -> None:
    how = options(dtype, **others)
    assert config.check(shape[0], shape[-1], how.size, dtype) is None
    a, b = frames(*shape, dtype=dtype)
    kernel = partial(forward, options=how, config=config, interpret=interpreter())
    expected = jax.jit(lambda a, b: reference(a, b, how))(a, b)
    np.testing.assert_allclose(jax.jit(kernel)(a, b), expected, atol=2e-6)


def test_its_gradient_is_that_of_xla() -> None:
    a, b = frames(2, 13, 12, 1, dtype=jnp.float32)
    how = options(jnp.float32)

    def loss(a: jax.Array, b: jax.Array, way: Any) -> jax.Array:
        return jnp.sum(jnp.sin(way(a, b)))

    ways = (lambda a, b: by_kernel(a, b, how, partial(framewise, options=how)), partial(framewise, options=how))
    one, other = (jax.jit(jax.grad(partial(loss, way=way), (0, 1)))(a, b) for way in ways)
    for x, y in zip(one, other, strict=True):
        assert float(jnp.abs(y).max()) > 0
        np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-9)


def lower(config: Config, shape: tuple[int, ...], dtype: Any, **others: Any) -> str:
    of = jax.ShapeDtypeStruct(shape, dtype)
    return lowered(partial(forward, options=options(dtype, **others), config=config), of, of)


@pytest.mark.parametrize(
    ("shape", "dtype", "others"),
    [
        ((120, 1080, 1920, 3), jnp.uint8, {}),
        ((1, 1079, 1917, 3), jnp.uint8, {"border": "reflect"}),
        ((7, 33, 47, 1), jnp.float32, {}),
        ((16, 11, 11, 4), jnp.bfloat16, {}),
        ((3, 256, 256, 3), jnp.float16, {"window": "uniform", "size": 7}),
        ((3, 256, 256, 1), jnp.uint8, {"size": 31, "sigma": 5.0}),
    ],
)
def test_the_config_of_a_shape_lowers_to_cuda(shape: tuple[int, ...], dtype: Any, others: dict[str, Any]) -> None:
    (n, h, w, c), size = shape, others.get("size", 11)
    more = size - 1 if others.get("border") == "reflect" else 0
    config = default_config(n, h + more, w + more, c, size)
    assert config.check(n, c, size, dtype) is None
    assert "mosaic_gpu" in lower(config, shape, dtype, **others)


@pytest.mark.parametrize("config", list(configs(120, 3, jnp.uint8))[::8])
def test_what_the_tuner_tries_lowers_to_cuda(config: Config) -> None:
    assert "mosaic_gpu" in lower(config, (120, 1080, 1920, 3), jnp.uint8)


def test_programs_cover_a_frame_and_fill_the_device() -> None:
    for n, h, w in ((120, 1080, 1920), (1, 1080, 1920), (1, 64, 64), (1000, 64, 64), (1, 11, 11)):
        config = default_config(n, h, w, 3, 11)
        down, across = config.own(3, 11)
        bands, strips = -(-(h - 10) // down), -(-(w - 10) * 3 // across)
        assert bands * config.rows * config.steps < h + 10 * bands + 4 * bands
        if h == 1080:
            assert n * bands * strips > 4 * 132


@pytest.mark.parametrize(
    ("config", "n", "c", "size", "dtype", "message"),
    [
        (Config(rows=3), 1, 3, 11, jnp.uint8, "rows x columns is a multiple of 8"),
        (Config(stages=0), 1, 3, 11, jnp.uint8, "all positive"),
        (Config(), 1, 3, 11, jnp.float64, "needs uint8, bfloat16, float16 or float32, got float64"),
        (Config(), 0, 3, 11, jnp.uint8, "a frame or more"),
        (Config(), 1, 3, 1, jnp.uint8, "windows of 3 to 21 pixels, whose sums registers hold, got 1"),
        (Config(columns=4), 1, 3, 13, jnp.uint8, "windows of 3 to 11 pixels, whose sums registers hold, got 13"),
        (Config(), 1, 25, 11, jnp.uint8, "windows of 11 pixels and 25 channels inside 256 x 256"),
        (Config(steps=2), 1, 3, 11, jnp.uint8, "windows of 11 pixels and 3 channels inside 8 x 256"),
        (Config(stages=40), 1, 3, 11, jnp.float32, "bytes of shared memory"),
    ],
)
def test_a_config_says_why_it_cannot_run(config: Config, n: int, c: int, size: int, dtype: Any, message: str) -> None:
    assert message in str(config.check(n, c, size, dtype))


def test_asked_for_without_a_gpu_it_says_so_and_is_not_replaced() -> None:
    if jax.default_backend() == "gpu":
        pytest.skip("there is a GPU")
    with pytest.raises(NotImplementedError, match="needs a Hopper GPU, the backend is cpu; use 'xla'"):
        ssim_window(*frames(16, 16, 3, dtype=jnp.uint8), implementation="mosaic_gpu")


def test_the_public_function_lowers_with_its_gradient_and_over_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "needs_hopper", lambda: None)

    def loss(a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.sum(jnp.sin(ssim_window(a, b, implementation="mosaic_gpu")))

    shape = jax.ShapeDtypeStruct((2, 3, 20, 20, 3), jnp.float32)
    for function in (jax.value_and_grad(loss), jax.vmap(jax.value_and_grad(loss))):
        assert lowered(function, shape, shape).count("mosaic_gpu_v2") == 1


def test_it_lowers_over_eight_devices_with_its_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "needs_hopper", lambda: None)
    mesh = jax.make_mesh((8,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
    batch, all_of = PartitionSpec("batch"), PartitionSpec()

    def loss(a: jax.Array, b: jax.Array) -> jax.Array:
        return jax.lax.psum(jnp.sum(jnp.sin(ssim_window(a, b, implementation="mosaic_gpu"))), "batch")

    split = jax.shard_map(loss, mesh=mesh, in_specs=(batch, batch), out_specs=all_of)
    shape = jax.ShapeDtypeStruct((8, 20, 20, 3), jnp.float32)
    assert lowered(jax.value_and_grad(split, (0, 1)), shape, shape).count("mosaic_gpu_v2") == 1
