"""Cases of lowbit_matmul: the weight in full beside its codes, written out and multiplied once, and the kernel."""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from typing import Any

import jax
import jax.numpy as jnp

from kernels_pallas._case import Case
from kernels_pallas._dispatch import needs_hopper

from .api import lowbit_matmul
from .config import Config, default_config
from .reference import reference, spread, unpack

LARGE = ((1, 4, None), (16, 4, None), (16, 4, 128), (1, 2, None), (16, 2, None), (16, 8, None), (2048, 4, None))
SMALL = ((1, 4, None), (16, 4, None), (16, 4, 128), (16, 2, None), (256, 4, None))


def cases(large: bool) -> Iterator[Case]:
    """Forward: one token, a decoding batch, a prefill; "xla" is the product with the weight in full."""
    side, dtype = (8192, jnp.bfloat16) if large else (1024, jnp.float32)
    for m, bits, block in LARGE if large else SMALL:
        reason = needs_hopper() or default_config(m, side, side, bits, block).check(m, side, side, bits, block, dtype)
        own = partial(_codes_alone, bits=bits, block=block)
        ways: dict[str, Callable[..., Any]] = {
            "codes": partial(own, implementation="xla"),
            "xla": _full,
            "reference": lambda x, codes, scales, full, bits=bits, block=block: reference(
                x, codes, scales, bits, block
            ),
        }
        if reason is None:
            ways = {"mosaic_gpu": partial(own, implementation="mosaic_gpu"), **ways}
        itemsize = jnp.dtype(dtype).itemsize
        yield Case(
            op="lowbit_matmul",
            shape={"m": m, "n": side, "k": side, "bits": bits, "block": block or 0},
            dtype=jnp.dtype(dtype).name,
            direction="forward",
            arguments=partial(_arguments, m, side, bits, block, dtype),
            implementations=ways,
            unsupported={} if reason is None else {"mosaic_gpu": reason},
            flops=2.0 * m * side * side,
            bytes=side * side * bits / 8 + 2.0 * m * side * itemsize,
            truth=None if large else lambda x, codes, scales, full: x @ full.T,
            fallback="codes",
            configs=() if reason else list(_configs(m, side, bits, block, dtype)),
            tuned=lambda config, own=own: partial(own, implementation="mosaic_gpu", config=config),
        )


def _codes_alone(x: jax.Array, codes: jax.Array, scales: jax.Array, full: jax.Array, **options: Any) -> jax.Array:
    return lowbit_matmul(x, codes, scales, **options)


def _full(x: jax.Array, codes: jax.Array, scales: jax.Array, full: jax.Array) -> jax.Array:
    return jnp.matmul(x, full.T, preferred_element_type=jnp.float32).astype(x.dtype)


def _arguments(m: int, side: int, bits: int, block: int | None, dtype: Any) -> tuple[jax.Array, ...]:
    k = jax.random.split(jax.random.key(0), 3)
    codes = jax.random.randint(k[0], (side, side * bits // 8), 0, 256).astype(jnp.uint8)
    scales = jax.random.uniform(k[1], (side,) if block is None else (side, side // block), minval=0.5) / side**0.5
    full = unpack(codes, bits, side).astype(jnp.float32) * spread(scales, block)
    return jax.random.normal(k[2], (m, side), dtype), codes, scales, full.astype(dtype)


def _configs(m: int, side: int, bits: int, block: int | None, dtype: Any) -> Iterator[Config]:
    """What the tuner tries."""
    for warpgroups, depth, stages, splits in product((1, 2, 3, 4), (64, 128), (3, 4, 6, 8), (1, 2, 4, 8)):
        config = Config(warpgroups=warpgroups, depth=depth, stages=stages, splits=splits)
        if config.check(m, side, side, bits, block, dtype) is None:
            yield config
