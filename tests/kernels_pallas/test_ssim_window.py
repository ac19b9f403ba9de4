"""ssim_window: against float64 window by window, its gradient, and the memory that it is for."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from jax.test_util import check_grads

from kernels_pallas import ssim_window

IMPLEMENTATIONS = ("reference", "xla")


def frames(*shape: int, dtype: Any = jnp.uint8) -> tuple[jax.Array, jax.Array]:
    """Smooth ones and noisy ones."""
    rng = np.random.default_rng(0)
    a = 127 + 100 * np.sin(np.arange(np.prod(shape)) / 40).reshape(shape)
    b = np.clip(a + rng.integers(-30, 31, shape), 0, 255)
    if dtype == jnp.uint8:
        return jnp.asarray(a.astype(np.uint8)), jnp.asarray(b.astype(np.uint8))
    return jnp.asarray(a / 255, dtype), jnp.asarray(b / 255, dtype)


def float64(a: Any, b: Any, top: float, taps: np.ndarray, border: str) -> np.ndarray:
    """The five moments of each window, one after the other."""
    weight = np.outer(taps, taps)[:, :, None]
    size, half = len(taps), len(taps) // 2
    c1, c2 = (0.01 * top) ** 2, (0.03 * top) ** 2
    found = []
    for x, y in zip(np.asarray(a, np.float64), np.asarray(b, np.float64), strict=True):
        if border == "reflect":
            x, y = (np.pad(f, [(half, half), (half, half), (0, 0)], mode="reflect") for f in (x, y))
        values = []
        for i in range(x.shape[0] - size + 1):
            for j in range(x.shape[1] - size + 1):
                u, v = x[i : i + size, j : j + size], y[i : i + size, j : j + size]
                mu, mv = (weight * u).sum((0, 1)), (weight * v).sum((0, 1))
                su, sv = (weight * (u - mu) ** 2).sum((0, 1)), (weight * (v - mv) ** 2).sum((0, 1))
                together = (weight * (u - mu) * (v - mv)).sum((0, 1))
                values.append((2 * mu * mv + c1) * (2 * together + c2) / (mu**2 + mv**2 + c1) / (su + sv + c2))
        found.append(np.mean(values))
    return np.asarray(found)


def gaussian(size: int, sigma: float) -> np.ndarray:
    taps = np.exp(-0.5 * ((np.arange(size) - size // 2) / sigma) ** 2)
    return taps / taps.sum()


@pytest.mark.parametrize("border", ["valid", "reflect"])
@pytest.mark.parametrize(
    ("options", "taps"),
    [({}, gaussian(11, 1.5)), ({"window": "uniform", "size": 7}, np.full(7, 1 / 7)), ({"size": 1}, np.ones(1))],
)
@pytest.mark.parametrize("dtype", [jnp.uint8, jnp.float32])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_values_are_those_of_float64(
    implementation: Any, dtype: Any, options: dict[str, Any], taps: np.ndarray, border: Any
) -> None:
    a, b = frames(2, 17, 14, 3, dtype=dtype)
    out = jax.jit(partial(ssim_window, border=border, implementation=implementation, **options))(a, b)
    assert out.dtype == jnp.float32
    np.testing.assert_allclose(out, float64(a, b, 255 if dtype == jnp.uint8 else 1, taps, border), atol=2e-5)


SCIKIT_IMAGE: dict[str, tuple[dict[str, Any], dict[str, Any], list[float]]] = {
    "gaussian": ({}, {"gaussian_weights": True, "sigma": 1.5}, [0.9702563315926387, 0.9697912421290535]),
    "uniform": ({"window": "uniform", "size": 7}, {"win_size": 7}, [0.9689342010561117, 0.9689163848705268]),
}
"""Ours, theirs, and what skimage.metrics.structural_similarity 0.26.0 gives for `frames(2, 40, 33, 3)` with
data_range=255, channel_axis=-1, use_sample_covariance=False: SSIM of Wang et al., borders left out."""


@pytest.mark.parametrize("window", SCIKIT_IMAGE)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_values_are_those_of_scikit_image(implementation: Any, window: str) -> None:
    ours, _, values = SCIKIT_IMAGE[window]
    a, b = frames(2, 40, 33, 3)
    actual = jax.jit(partial(ssim_window, implementation=implementation, **ours))(a, b)
    np.testing.assert_allclose(actual, values, rtol=0, atol=1e-6)


@pytest.mark.parametrize("window", SCIKIT_IMAGE)
def test_scikit_image_has_those_values(window: str) -> None:
    metrics = pytest.importorskip("skimage.metrics")
    how = {"data_range": 255, "channel_axis": -1, "use_sample_covariance": False, **SCIKIT_IMAGE[window][1]}
    pairs = zip(*(np.asarray(x) for x in frames(2, 40, 33, 3)), strict=True)
    found = [metrics.structural_similarity(a, b, **how) for a, b in pairs]
    np.testing.assert_allclose(found, SCIKIT_IMAGE[window][2], rtol=1e-9)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_flat_frames_have_the_quotient_of_their_levels(implementation: Any) -> None:
    a, b = jnp.full((12, 12, 1), 40, jnp.uint8), jnp.full((12, 12, 1), 90, jnp.uint8)
    function = jax.jit(partial(ssim_window, implementation=implementation))
    assert float(function(a, b)) == pytest.approx((2 * 40 * 90 + 2.55**2) / (40**2 + 90**2 + 2.55**2), abs=1e-5)
    assert float(function(a, a)) == pytest.approx(1, abs=1e-6)
    black = jnp.zeros_like(a)
    assert float(function(black, black)) == pytest.approx(1, abs=1e-6)


def test_dims_before_the_frame_stay() -> None:
    a, b = frames(6, 13, 12, 1)
    flat = ssim_window(a, b)
    np.testing.assert_array_equal(
        ssim_window(a.reshape(2, 3, 13, 12, 1), b.reshape(2, 3, 13, 12, 1)), flat.reshape(2, 3)
    )
    np.testing.assert_allclose(jax.jit(jax.vmap(ssim_window))(a, b), flat, rtol=1e-6)
    np.testing.assert_allclose(ssim_window(a[0], b[0]), flat[0], rtol=1e-6)
    assert ssim_window(a[:0], b[:0]).shape == (0,)


@pytest.mark.parametrize("border", ["valid", "reflect"])
def test_gradient_is_that_of_the_reference(border: Any) -> None:
    a, b = frames(3, 15, 13, 2, dtype=jnp.float32)

    def loss(a: jax.Array, b: jax.Array, implementation: Any) -> jax.Array:
        return jnp.sum(jnp.sin(ssim_window(a, b, border=border, implementation=implementation)))

    slope = jax.jit(jax.grad(loss, (0, 1)), static_argnums=2)
    for x, y in zip(slope(a, b, "xla"), slope(a, b, "reference"), strict=True):
        np.testing.assert_allclose(x, y, atol=2e-4 * float(jnp.abs(y).max()))


def test_gradient_is_that_of_differences() -> None:
    with jax.enable_x64(True):
        a, b = frames(2, 7, 6, 1, dtype=jnp.float64)
        check_grads(jax.jit(partial(ssim_window, size=5)), (a, b), order=1, modes=["rev"], eps=1e-6)


def test_memory_does_not_grow_with_the_frames() -> None:
    def bytes_of(implementation: Any, count: int) -> int:
        shape = jax.ShapeDtypeStruct((count, 64, 64, 3), jnp.uint8)
        way = jax.jit(partial(ssim_window, implementation=implementation))
        return way.lower(shape, shape).compile().memory_analysis().temp_size_in_bytes

    assert bytes_of("xla", 64) < 1.2 * bytes_of("xla", 4)
    assert bytes_of("reference", 64) > 10 * bytes_of("xla", 64)


def test_mistakes_name_the_argument() -> None:
    a = jnp.zeros((12, 12, 1))
    for args, options, error, message in (
        ((a[0], a[0]), {}, ValueError, r"a: expected dims \[..., H, W, C\], got shape \(12, 1\)"),
        ((a, a[1:]), {}, ValueError, r"b: expected shape \(12, 12, 1\), that of a, got \(11, 12, 1\)"),
        ((a[3:], a[3:]), {}, ValueError, "a: expected frames of 11 x 11 pixels or more"),
        ((a, a.astype(jnp.uint8)), {}, TypeError, "b: expected the dtype of a, float32, got uint8"),
        ((a.astype(jnp.int32),) * 2, {}, TypeError, "a: expected uint8 or a floating dtype, got int32"),
        ((a, a), {"size": 4}, ValueError, "size: expected an odd number of pixels, got 4"),
        ((a, a), {"sigma": 0.0}, ValueError, "sigma: expected a positive number, got 0.0"),
        ((a, a), {"window": "box"}, ValueError, "window: expected 'gaussian' or 'uniform', got 'box'"),
        ((a, a), {"border": "zero"}, ValueError, "border: expected 'valid' or 'reflect', got 'zero'"),
        ((a, a), {"data_range": 0.0}, ValueError, "data_range: expected a positive number, got 0.0"),
        ((a, a), {"implementation": "cudnn"}, NotImplementedError, "'cudnn' is not one of 'auto', 'xla'"),
    ):
        with pytest.raises(error, match=message):
            ssim_window(*args, **options)


def test_gradients_are_the_same_over_eight_devices() -> None:
    a, b = frames(8, 12, 12, 1, dtype=jnp.float32)
    mesh = jax.make_mesh((8,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
    batch, all_of = PartitionSpec("batch"), PartitionSpec()

    def loss(a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.sum(jnp.sin(ssim_window(a, b)))

    def over_devices(a: jax.Array, b: jax.Array) -> jax.Array:
        return jax.lax.psum(loss(a, b), "batch")

    split = jax.shard_map(over_devices, mesh=mesh, in_specs=(batch, batch), out_specs=all_of)
    for x, y in zip(jax.jit(jax.grad(split, (0, 1)))(a, b), jax.jit(jax.grad(loss, (0, 1)))(a, b), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-5 * float(jnp.abs(y).max()))


def test_what_is_fixed_is_named_when_it_is_not() -> None:
    a, b = frames(1, 13, 12, 1, dtype=jnp.float32)
    for name, value, said in (
        ("data_range", 1.0, "a number"),
        ("k1", 0.01, "a number"),
        ("sigma", 1.5, "a number"),
        ("size", 5, "a whole number"),
    ):
        with pytest.raises(TypeError, match=f"{name}: expected {said} of Python, which is fixed, got"):
            jax.jit(lambda v, name=name: ssim_window(a, b, **{name: v}))(value)
    with pytest.raises(TypeError, match=r"size: expected a whole number of Python, which is fixed, got 11\.0"):
        ssim_window(a, b, size=11.0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="k2: expected a finite number, got nan"):
        ssim_window(a, b, k2=float("nan"))
    with pytest.raises(TypeError, match="a: expected an array, got list"):
        ssim_window(a.tolist(), b)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_frames_and_numbers_of_numpy_are_taken(implementation: Any) -> None:
    a, b = frames(2, 13, 12, 1)
    numpy = ssim_window(np.asarray(a), np.asarray(b), implementation=implementation)
    assert jnp.array_equal(numpy, ssim_window(a, b, implementation=implementation))
    half = [x.astype(jnp.bfloat16) / 255 for x in (a, b)]
    out = ssim_window(*half, data_range=np.float32(1), k1=np.float32(0.01), implementation=implementation)  # type: ignore[arg-type]
    np.testing.assert_allclose(out, ssim_window(*half, implementation=implementation), rtol=1e-6)
