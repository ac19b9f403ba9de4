"""Cases of linear_logprob: all logits at once, chunks of rows as before, tiles, and the kernel."""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kernels_pallas._case import Case
from kernels_pallas._dispatch import needs_hopper

from .api import linear_logprob
from .config import Config, default_config
from .reference import reference


def cases(large: bool) -> Iterator[Case]:
    """Forward and backward, at the sizes of a language model or at those that two CPU cores manage."""
    n, d, v = (8192, 4096, 131_072) if large else (1024, 256, 16_384)
    dtype = jnp.bfloat16 if large else jnp.float32
    reason = needs_hopper() or default_config(n, v).check(n, d, v, dtype)
    ways: dict[str, Callable[..., Any]] = {
        "tiles": partial(linear_logprob, implementation="xla"),
        "xla": reference,
        "xla rows": partial(linear_logprob, implementation="xla", rows=1024, columns=v),
    }
    unsupported = {} if reason is None else {"mosaic_gpu": reason}
    if reason is None:
        ways = {"mosaic_gpu": partial(linear_logprob, implementation="mosaic_gpu"), **ways}

    def arguments() -> tuple[jax.Array, ...]:
        k = jax.random.split(jax.random.key(0), 3)
        hidden, weight = jax.random.normal(k[0], (n, d), dtype), jax.random.normal(k[1], (v, d), dtype)
        return hidden, weight * jnp.asarray(d**-0.5, dtype), jax.random.randint(k[2], (n,), 0, v)

    def slope(way: Callable[..., Any]) -> Callable[..., Any]:
        def loss(h: jax.Array, w: jax.Array, t: jax.Array) -> jax.Array:
            out = way(h, w, t)
            return -jnp.mean(out.logp) - 0.01 * jnp.mean(out.entropy)

        return jax.grad(loss, (0, 1))

    size, itemsize = {"n": n, "d": d, "v": v}, jnp.dtype(dtype).itemsize
    work, read = 2.0 * n * d * v, float((n + v) * d * itemsize)
    common: dict[str, Any] = {"op": "linear_logprob", "shape": size, "dtype": jnp.dtype(dtype).name}
    common |= {"arguments": arguments, "unsupported": unsupported}
    yield Case(
        **common,
        direction="forward",
        implementations=ways,
        flops=work,
        bytes=read,
        truth=None if large else _truth,
        fallback="tiles",
        configs=() if reason else list(_configs(n, d, v, dtype)),
        tuned=lambda config: partial(linear_logprob, implementation="mosaic_gpu", config=config),
    )
    slopes = {name: slope(way) for name, way in ways.items()}
    yield Case(**common, direction="both", implementations=slopes, flops=4 * work, bytes=3 * read)


def _configs(n: int, d: int, v: int, dtype: Any) -> Iterator[Config]:
    """What the tuner tries."""
    for rows, words, stages, splits in product((64, 128), (64, 128), (3, 4, 5), (1, 2, 4, 8)):
        config = Config(rows=rows, words=words, stages=stages, splits=splits)
        if config.check(n, d, v, dtype) is None:
            yield config


def _truth(hidden: np.ndarray, weight: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, ...]:
    z = hidden @ weight.T
    top = z.max(axis=1, keepdims=True)
    logsumexp = np.log(np.exp(z - top).sum(axis=1)) + top[:, 0]
    p = np.exp(z - logsumexp[:, None])
    return z[np.arange(len(z)), targets] - logsumexp, logsumexp - (p * z).sum(axis=1), logsumexp
