"""Cases of attention: cuDNN, the kernel, blocks by XLA, and all scores at once."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kernels_pallas._case import Case
from kernels_pallas._dispatch import needs_hopper
from kernels_pallas.block_sparse_attention.bench import back_configs, configs
from kernels_pallas.block_sparse_attention.reference import flat, rules_of
from kernels_pallas.block_sparse_attention.rules import Inputs

from . import cudnn
from .api import BLOCK, attention, sizes
from .config import default_config


def cases(large: bool) -> Iterator[Case]:
    """Causal, plain and with a soft cap; heads of 64, 128 and 256 on a GPU."""
    for t, h, d in ((16_384, 32, 64), (16_384, 16, 128), (16_384, 8, 256)) if large else ((1024, 4, 64),):
        for softcap in (None, 30.0):
            if softcap is None or d in (64, 128):
                yield from _cases(large, t, h, d, softcap)


def _cases(large: bool, t: int, h: int, d: int, softcap: float | None) -> Iterator[Case]:
    dtype = jnp.bfloat16 if large else jnp.float32
    shape = jax.ShapeDtypeStruct((1, t, h, d), dtype)
    rules = rules_of(d, True, None, softcap, None, 0, BLOCK, BLOCK)
    x = jax.eval_shape(partial(_form, t // BLOCK), shape, shape, shape)
    reasons = {
        "mosaic_gpu": needs_hopper() or default_config(x, rules).check(x, rules),
        "cudnn": cudnn.refused(x, rules, False),
    }
    ours = partial(attention, causal=True, softcap=softcap)
    able = [name for name, reason in reasons.items() if reason is None]
    ways: dict[str, Callable[..., Any]] = {name: partial(ours, implementation=name) for name in able}
    blocks = partial(ours, implementation="xla")
    ways |= {"xla": blocks} if large else {"blocks": blocks, "xla": partial(ours, implementation="reference")}

    def arguments() -> tuple[jax.Array, ...]:
        return tuple(jax.random.normal(key, shape.shape, dtype) for key in jax.random.split(jax.random.key(0), 3))

    def value(way: Callable[..., Any], *arguments: jax.Array) -> jax.Array:
        return way(*arguments).y

    def slope(way: Callable[..., Any]) -> Callable[..., Any]:
        def loss(*arguments: jax.Array) -> jax.Array:
            return jnp.sum(jnp.sin(way(*arguments).y.astype(jnp.float32)))

        return jax.grad(loss, (0, 1, 2))

    work, moved = 2.0 * t * t * h * d, 4.0 * t * h * d * jnp.dtype(dtype).itemsize
    common: dict[str, Any] = {"op": "attention", "shape": sizes(x, rules), "dtype": jnp.dtype(dtype).name}
    common |= {"arguments": arguments, "unsupported": {n: why for n, why in reasons.items() if why is not None}}
    common |= {"fallback": "cudnn" if "cudnn" in able else "xla" if large else "blocks"}
    tuned = partial(ours, implementation="mosaic_gpu")
    yield Case(
        **common,
        direction="forward",
        implementations={name: partial(value, way) for name, way in ways.items()},
        flops=work,
        bytes=moved,
        configs=() if reasons["mosaic_gpu"] else list(configs(x, rules)),
        truth=None if large else partial(_truth, softcap=softcap),
        tuned=lambda config: partial(value, partial(tuned, config=config)),
    )
    yield Case(
        **common,
        direction="both",
        implementations={name: slope(way) for name, way in ways.items()},
        flops=3.5 * work,
        bytes=3 * moved,
        configs=() if reasons["mosaic_gpu"] else list(back_configs(x, rules)),
        tuned=lambda config: slope(partial(tuned, config=config)),
    )


def _form(blocks: int, q: jax.Array, k: jax.Array, v: jax.Array) -> Inputs:
    return flat(q, k, v, jnp.zeros((1, 1, blocks, blocks), jnp.int32), None, None, None, None, None)


def _truth(q: np.ndarray, k: np.ndarray, v: np.ndarray, softcap: float | None) -> np.ndarray:
    out = np.zeros_like(v)
    hidden = np.triu(np.ones((q.shape[1], k.shape[1]), bool), 1)
    for b, h in np.ndindex(q.shape[0], q.shape[2]):
        z = q[b, :, h] @ k[b, :, h].T * q.shape[-1] ** -0.5
        if softcap is not None:
            z = softcap * np.tanh(z / softcap)
        z = np.where(hidden, -np.inf, z)
        p = np.exp(z - z.max(axis=1, keepdims=True))
        out[b, :, h] = p / p.sum(axis=1, keepdims=True) @ v[b, :, h]
    return out
