"""Cases of ssim_window: all frames at once by windows in two dims, one frame at a time, and the kernel."""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from typing import Any

import jax
import jax.numpy as jnp

from kernels_pallas._case import Case
from kernels_pallas._dispatch import needs_hopper

from .api import ssim_window
from .config import Config, default_config
from .reference import Options
from .xla import at_once as every_frame


def at_once(a: jax.Array, b: jax.Array) -> jax.Array:
    """The same moments of all frames side by side."""
    top = 255.0 if a.dtype == jnp.uint8 else 1.0
    return every_frame(a, b, Options("gaussian", 11, 1.5, "valid", top, (0.01 * top) ** 2, (0.03 * top) ** 2))


def cases(large: bool) -> Iterator[Case]:
    """Frames as a decoder gives them, and the gradient of frames as a loss has them.

    "xla" has all frames at once, by the same convolutions; "windows" are convolutions in two dims.
    """
    count, h, w, c = (120, 1080, 1920, 3) if large else (16, 128, 128, 3)
    ways: dict[str, Callable[..., Any]] = {
        "frames": partial(ssim_window, implementation="xla"),
        "xla": at_once,
        "windows": partial(ssim_window, implementation="reference"),
    }
    if large:
        del ways["windows"]
    reason = needs_hopper() or default_config(count, h, w, c, 11).check(count, c, 11, jnp.uint8)
    kernel = {} if reason else {"mosaic_gpu": partial(ssim_window, implementation="mosaic_gpu")}
    size, pixels = {"frames": count, "h": h, "w": w, "c": c}, float(count * h * w * c)

    def bytes_() -> tuple[jax.Array, jax.Array]:
        first, second = (jax.random.key(seed) for seed in range(2))
        a = jax.random.randint(first, (count, h, w, c), 0, 236, jnp.uint8)
        return a, a + jax.random.randint(second, a.shape, 0, 20, jnp.uint8)

    def floats() -> tuple[jax.Array, jax.Array]:
        a, b = bytes_()
        return a.astype(jnp.float32) / 255, b.astype(jnp.float32) / 255

    def slope(way: Callable[..., Any]) -> Callable[..., Any]:
        return jax.grad(lambda a, b: jnp.sum(way(a, b)))

    common: dict[str, Any] = {"op": "ssim_window", "shape": size, "fallback": "frames"}
    work = 4 * 2 * 2 * 11 * pixels
    yield Case(
        **common,
        dtype="uint8",
        direction="forward",
        arguments=bytes_,
        implementations=kernel | ways,
        unsupported={"mosaic_gpu": reason} if reason else {},
        flops=work,
        bytes=2 * pixels,
        configs=() if reason else list(configs(count, c, jnp.uint8)),
        tuned=lambda config: partial(ssim_window, implementation="mosaic_gpu", config=config),
    )
    slopes = {name: slope(way) for name, way in ways.items()}
    yield Case(
        **common,
        dtype="float32",
        direction="both",
        arguments=floats,
        implementations=slopes,
        unsupported={},  # the kernel has the gradient of "frames"
        flops=3 * work,
        bytes=12 * pixels,
    )


def configs(n: int, c: int, dtype: Any) -> Iterator[Config]:
    """What the tuner tries."""
    for (columns, rows), height, stages in product(
        ((1, 8), (2, 4), (2, 8), (3, 8), (4, 2), (4, 4)), (64, 128, 224, 384), (2, 3)
    ):
        config = Config(columns=columns, rows=rows, steps=height // rows, stages=stages)
        if config.check(n, c, 11, dtype) is None:
            yield config
