"""Cases of lora_matmul: two products, one of both sides put together, the factors merged, and the kernel."""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kernels_pallas._case import Case
from kernels_pallas._dispatch import needs_hopper

from .api import lora_matmul
from .config import Config, default_config
from .xla import folded, low_rank, separate

LARGE = ((8192, 4096, 4096, 16), (8192, 8192, 28_672, 16), (16, 4096, 4096, 16))
SMALL = ((512, 512, 512, 16), (16, 1024, 1024, 16))


def cases(large: bool) -> Iterator[Case]:
    """Forward and backward, one adapter; the gradient is of the factors and the input."""
    dtype = jnp.bfloat16 if large else jnp.float32
    for m, n, k, rank in LARGE if large else SMALL:
        reason = needs_hopper() or default_config(m, n).check(m, n, k, (dtype,))
        ways: dict[str, Callable[..., Any]] = {
            "separate": partial(_ours, implementation="xla"),
            "xla": _plain,
            "folded": lambda x, w, a, b, scale: low_rank(x, w, a, b, scale, None, "adapter", folded),
            "merged": _merged,
        }
        unsupported = {} if reason is None else {"mosaic_gpu": reason}
        if reason is None:
            ways = {"mosaic_gpu": partial(_ours, implementation="mosaic_gpu"), **ways}
        itemsize = jnp.dtype(dtype).itemsize
        size = {"m": m, "n": n, "k": k, "r": rank}
        common: dict[str, Any] = {"op": "lora_matmul", "shape": size, "dtype": jnp.dtype(dtype).name}
        common |= {"arguments": partial(_arguments, m, n, k, rank, dtype), "unsupported": unsupported}
        work, moved = 2.0 * m * (n * k + rank * (n + k)), float((m * (n + k) + (n + rank) * k + n * rank) * itemsize)
        yield Case(
            **common,
            direction="forward",
            implementations=ways,
            flops=work,
            bytes=moved,
            truth=None if large else lambda x, w, a, b, scale: x @ w.T + scale * (x @ a.T) @ b.T,
            fallback="separate",
            configs=() if reason else list(_configs(m, n, k, dtype)),
            tuned=lambda config: partial(_ours, implementation="mosaic_gpu", config=config),
        )
        slopes = {name: _slope(way) for name, way in ways.items()}
        yield Case(**common, direction="both", implementations=slopes, flops=2 * work, bytes=2 * moved)


def _ours(x: jax.Array, w: jax.Array, a: jax.Array, b: jax.Array, scale: jax.Array, **options: Any) -> jax.Array:
    return lora_matmul(x, w, a, b, scale, **options)


def _plain(x: jax.Array, w: jax.Array, a: jax.Array, b: jax.Array, scale: jax.Array) -> jax.Array:
    """As one writes it, differentiated by JAX."""
    hidden = jnp.matmul(x, a.T, preferred_element_type=jnp.float32) * scale.astype(jnp.float32)
    return separate(x, jax.lax.stop_gradient(w), hidden.astype(x.dtype), b)


def _merged(x: jax.Array, w: jax.Array, a: jax.Array, b: jax.Array, scale: jax.Array) -> jax.Array:
    term = jnp.matmul(b, a, preferred_element_type=jnp.float32) * scale.astype(jnp.float32)
    merged = (jax.lax.stop_gradient(w).astype(jnp.float32) + term).astype(w.dtype)
    return jnp.matmul(x, merged.T, preferred_element_type=jnp.float32).astype(x.dtype)


def _slope(way: Callable[..., Any]) -> Callable[..., Any]:
    def loss(x: jax.Array, w: jax.Array, a: jax.Array, b: jax.Array, scale: jax.Array) -> jax.Array:
        return jnp.sum(jnp.square(way(x, w, a, b, scale).astype(jnp.float32))) / x.size

    return jax.grad(loss, (0, 2, 3))


def _arguments(m: int, n: int, k: int, rank: int, dtype: Any) -> tuple[jax.Array, ...]:
    keys = jax.random.split(jax.random.key(0), 4)
    x, w, a, b = (
        jax.random.normal(key, shape, dtype)
        for key, shape in zip(keys, ((m, k), (n, k), (rank, k), (n, rank)), strict=True)
    )
    over = np.asarray(k**-0.5, dtype)
    return x, w * over, a * over, b, jnp.asarray(2.0, dtype)


def _configs(m: int, n: int, k: int, dtype: Any) -> Iterator[Config]:
    """What the tuner tries."""
    for tile, depth, stages, band in product(((128, 256), (256, 128), (128, 128)), (64, 128), (2, 3, 4, 6), (4, 8, 16)):
        config = Config(rows=tile[0], columns=tile[1], depth=depth, stages=stages, band=band)
        if config.check(m, n, k, (dtype,)) is None:
            yield config
