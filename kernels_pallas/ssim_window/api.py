"""Choose how to compute it."""

from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp

from kernels_pallas._arguments import arrays, check_config, number, whole
from kernels_pallas._dispatch import choose, needs_hopper
from kernels_pallas._vary import vary_together

from .config import Config, default_config
from .reference import Border, Options, Window, check, reference
from .xla import by_kernel, framewise

Implementation = Literal["auto", "xla", "mosaic_gpu", "reference"]


def ssim_window(
    a: jax.Array,
    b: jax.Array,
    *,
    data_range: float | None = None,
    window: Window = "gaussian",
    size: int = 11,
    sigma: float = 1.5,
    border: Border = "valid",
    k1: float = 0.01,
    k2: float = 0.03,
    implementation: Implementation = "auto",
    config: Config | None = None,
) -> jax.Array:
    """Mean structural similarity of frames.

    SSIM = (2 m_a m_b + c1) (2 s_ab + c2) / ((m_a^2 + m_b^2 + c1) (s_a^2 + s_b^2 + c2)),  c = (k * data_range)^2

    of each window's means, variances and covariance; then the mean over windows and channels.

    Args:
      a: `[..., H, W, C]`, uint8 or floating.
      b: the same shape and dtype.
      data_range: the greatest possible value less the least; None is 255 for uint8 and 1 for floating frames.
      window: "gaussian", or "uniform" where every pixel weighs the same.
      size: of a window, odd.
      sigma: of the gaussian, in pixels.
      border: "valid" takes whole windows alone, as Wang et al.; "reflect" mirrors the frame, a window a pixel, as
        torchmetrics.
      k1: see above.
      k2: see above.
      implementation: "reference" holds all moments of all frames; "xla" those of one frame; "mosaic_gpu" is a kernel
        for Hopper that holds none, with the gradient of "xla"; "auto" is "xla", and the kernel where a recorded run
        on this kind of device says that it is faster.
      config: of "mosaic_gpu"; None is the recorded one, else one by the shapes.

    Returns:
      `[...]` float32 (float64 for float64 frames), one number a frame. Its gradient is made frame by frame too.

    Raises:
      TypeError, ValueError: name the argument whose shape, dtype or value is wrong.
      NotImplementedError: an implementation that is not here, with those that are; or the kernel cannot run on this
        device, these frames or windows: says why.

    Example:
      >>> import jax.numpy as jnp
      >>> frame = jnp.arange(16 * 16 * 3, dtype=jnp.float32).reshape(16, 16, 3) / 768
      >>> float(ssim_window(frame, frame)), round(float(ssim_window(frame, 1 - frame)), 3)
      (1.0, -0.826)

    References:
      Wang et al. 2004, "Image quality assessment: from error visibility to structural similarity", equation 13.
      Deviations: variances are of the population, as torchmetrics has them; no frame is made smaller first.
    """
    a, b = arrays(a=a, b=b)
    check_config(config, Config)
    size, sigma = whole("size", size), number("sigma", sigma)
    check(a, b, window, size, sigma, border)
    a, b = jnp.asarray(a), jnp.asarray(b)
    k1, k2 = number("k1", k1), number("k2", k2)
    data_range = (255.0 if a.dtype == jnp.uint8 else 1.0) if data_range is None else number("data_range", data_range)
    if not data_range > 0:
        raise ValueError(f"data_range: expected a positive number, got {data_range}")
    h, w, c = a.shape[-3:]
    n, given = a.size // (h * w * c), config is not None
    more = size - 1 if border == "reflect" else 0
    if config is None:
        config = default_config(n, h + more, w + more, c, size)
    ways = {"xla": None, "mosaic_gpu": needs_hopper() or config.check(n, c, size, a.dtype), "reference": None}
    shape = {"frames": n, "h": h, "w": w, "c": c}
    taken, tuned = choose("ssim_window", implementation, ways, shape=shape, dtype=a.dtype)
    options = Options(window, size, sigma, border, data_range, (k1 * data_range) ** 2, (k2 * data_range) ** 2)
    if taken == "reference":
        return reference(a, b, options)
    if taken == "xla":
        return framewise(a, b, options)
    from . import mosaic_gpu  # here: Pallas takes a moment to load

    if not given and "forward" in tuned:
        config = Config(**tuned["forward"])
    frames = vary_together((a.reshape(n, h, w, c), b.reshape(n, h, w, c)))
    forward = partial(mosaic_gpu.forward, options=options, config=config)
    return by_kernel(*frames, options, forward).reshape(a.shape[:-3])
