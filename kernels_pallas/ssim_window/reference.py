"""The definition: five moments of every window of every frame at once."""

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Window = Literal["gaussian", "uniform"]
Border = Literal["valid", "reflect"]


@dataclass(frozen=True)
class Options:
    """What is fixed when it is traced.

    Attributes:
      window, size, sigma, border: arguments of `ssim_window`.
      data_range: the greatest value less the least.
      c1, c2: what keeps the quotients from 0 / 0.
    """

    window: Window
    size: int
    sigma: float
    border: Border
    data_range: float
    c1: float
    c2: float

    @property
    def taps(self) -> np.ndarray:
        """The window along one axis, which sums to 1."""
        at = np.arange(self.size) - (self.size - 1) / 2
        taps = np.exp(-0.5 * (at / self.sigma) ** 2) if self.window == "gaussian" else np.ones(self.size)
        return taps / taps.sum()


def check(a: jax.Array, b: jax.Array, window: str, size: int, sigma: float, border: str) -> None:
    """Check shapes, dtypes and options; the errors name the argument."""
    if window not in ("gaussian", "uniform"):
        raise ValueError(f"window: expected 'gaussian' or 'uniform', got {window!r}")
    if border not in ("valid", "reflect"):
        raise ValueError(f"border: expected 'valid' or 'reflect', got {border!r}")
    if size < 1 or size % 2 == 0:
        raise ValueError(f"size: expected an odd number of pixels, got {size}")
    if not sigma > 0:
        raise ValueError(f"sigma: expected a positive number, got {sigma}")
    if a.ndim < 3:
        raise ValueError(f"a: expected dims [..., H, W, C], got shape {a.shape}")
    if b.shape != a.shape:
        raise ValueError(f"b: expected shape {a.shape}, that of a, got {b.shape}")
    for name, value in (("a", a), ("b", b)):
        if value.dtype != jnp.uint8 and not jnp.issubdtype(value.dtype, jnp.floating):
            raise TypeError(f"{name}: expected uint8 or a floating dtype, got {value.dtype}")
    if a.dtype != b.dtype:
        raise TypeError(f"b: expected the dtype of a, {a.dtype}, got {b.dtype}")
    if min(a.shape[-3:-1]) < size or a.shape[-1] < 1:
        raise ValueError(f"a: expected frames of {size} x {size} pixels or more with a channel, got {a.shape[-3:]}")


def wide(x: jax.Array, data_range: float) -> jax.Array:
    """Frames in float32 or wider, about the middle of their range: variances lose fewer digits."""
    return x.astype(np.float32 if x.dtype == jnp.uint8 else np.result_type(np.float32, x.dtype)) - data_range / 2


def padded(x: jax.Array, options: Options, axes: tuple[int, int]) -> jax.Array:
    """Half a window more on each side of two axes, mirrored without the edge itself; nothing for "valid"."""
    if options.border == "valid":
        return x
    return jnp.pad(x, [(options.size // 2,) * 2 if i in axes else (0, 0) for i in range(x.ndim)], mode="reflect")


def quality(
    mean_a: jax.Array, mean_b: jax.Array, spread: jax.Array, together: jax.Array, options: Options
) -> jax.Array:
    """SSIM of windows from both means about the middle of the range, the sum of the variances, and the covariance."""
    mean_a, mean_b = mean_a + options.data_range / 2, mean_b + options.data_range / 2
    light = (2 * mean_a * mean_b + options.c1) / (mean_a * mean_a + mean_b * mean_b + options.c1)
    return light * ((2 * together + options.c2) / (spread + options.c2))


def reference(a: jax.Array, b: jax.Array, options: Options) -> jax.Array:
    """Moments by one convolution with the window in two dims, then the quotients, then the mean over a frame."""
    lead, (h, w, c) = a.shape[:-3], a.shape[-3:]
    x, y = (padded(wide(f.reshape(-1, h, w, c), options.data_range), options, (1, 2)) for f in (a, b))
    taps = jnp.asarray(options.taps, x.dtype)
    kernel = jnp.broadcast_to((taps[:, None] * taps[None, :])[:, :, None, None], (options.size, options.size, 1, c))

    def mean(x: jax.Array) -> jax.Array:
        dims = lax.conv_dimension_numbers(x.shape, kernel.shape, ("NHWC", "HWIO", "NHWC"))
        precise = lax.Precision.HIGHEST
        return lax.conv_general_dilated(
            x, kernel, (1, 1), "VALID", dimension_numbers=dims, feature_group_count=c, precision=precise
        )

    mean_a, mean_b = mean(x), mean(y)
    spread_a, spread_b = mean(x * x) - mean_a * mean_a, mean(y * y) - mean_b * mean_b
    found = quality(mean_a, mean_b, spread_a + spread_b, mean(x * y) - mean_a * mean_b, options)
    return jnp.mean(found, axis=(1, 2, 3)).reshape(lead)
