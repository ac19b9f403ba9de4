"""Cases of add_norm: jax's own derivative of the formula, the hand-written one, and the kernels."""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kernels_pallas._case import Case
from kernels_pallas._device import MULTIPROCESSORS
from kernels_pallas._dispatch import needs_hopper

from .api import add_norm
from .config import Config, default_config


def cases(large: bool) -> Iterator[Case]:
    """Forward, and forward with the gradient as a training step has it."""
    n, d = (65_536, 4096) if large else (4096, 512)
    dtype = jnp.bfloat16 if large else jnp.float32
    width = jnp.dtype(dtype).itemsize
    reason = needs_hopper() or default_config(n, d, width).check(n, d, dtype)
    ways: dict[str, Callable[..., Any]] = {
        "by hand": partial(add_norm, implementation="xla"),
        "xla": partial(add_norm, implementation="reference"),
    }
    unsupported = {} if reason is None else {"mosaic_gpu": reason}
    if reason is None:
        ways = {"mosaic_gpu": partial(add_norm, implementation="mosaic_gpu"), **ways}

    def arguments() -> tuple[jax.Array, ...]:
        k = jax.random.split(jax.random.key(0), 5)
        rows = tuple(jax.random.normal(key, (n, d), dtype) for key in k[:4])
        return rows[0], rows[1], jax.random.normal(k[4], (d,), dtype), rows[2], rows[3]

    def forward(way: Callable[..., Any]) -> Callable[..., Any]:
        return lambda x, residual, weight, *_: way(x, residual, weight)

    def both(way: Callable[..., Any]) -> Callable[..., Any]:
        def step(x: jax.Array, residual: jax.Array, weight: jax.Array, *slopes: jax.Array) -> Any:
            out, pull = jax.vjp(way, x, residual, weight)
            return out, pull(type(out)(*slopes))

        return step

    rows = float(n * d * width)
    common: dict[str, Any] = {"op": "add_norm", "shape": {"n": n, "d": d}, "dtype": jnp.dtype(dtype).name}
    common |= {"arguments": arguments, "unsupported": unsupported, "fallback": "by hand"}
    common |= {"configs": () if reason else list(configs(n, d, dtype))}
    for direction, wrap, work, moved in (("forward", forward, 8.0, 4), ("both", both, 24.0, 8)):
        yield Case(
            **common,
            direction=direction,
            implementations={name: wrap(way) for name, way in ways.items()},
            flops=work * n * d,
            bytes=moved * rows,
            truth=_truth if direction == "forward" and not large else None,
            tuned=lambda config, wrap=wrap: wrap(partial(add_norm, implementation="mosaic_gpu", config=config)),
        )


def configs(n: int, d: int, dtype: Any) -> Iterator[Config]:
    """What the tuner tries."""
    for each, stages in product((1, 2, 3, 4, 6, 8), (2, 3, 4)):
        config = Config(programs=min(n, each * MULTIPROCESSORS), stages=stages)
        if config.check(n, d, dtype) is None:
            yield config


def _truth(x: np.ndarray, residual: np.ndarray, weight: np.ndarray, *_: np.ndarray) -> tuple[np.ndarray, ...]:
    s = x + residual
    return s / np.sqrt((s * s).mean(axis=1, keepdims=True) + 1e-6) * weight, s
