"""Cases of matmul_topk: top-k of all scores at once, groups, and the kernel."""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kernels_pallas._case import Case
from kernels_pallas._dispatch import needs_hopper

from .api import group_max, matmul_topk
from .config import Config, default_config


def cases(large: bool) -> Iterator[Case]:
    """The search itself, and the maxima of groups alone, which is what the kernel computes.

    "xla" is top-k of all scores of 256 queries at a time: of 10 million keys they are 10 GB in float32.
    """
    q, n, d, k, group = (1024, 10_000_000, 768, 10, 32) if large else (256, 200_000, 128, 10, 32)
    dtype = jnp.bfloat16 if large else jnp.float32
    reason = needs_hopper() or default_config(q, n).check(q, n, d, group, dtype)

    def arguments() -> tuple[jax.Array, jax.Array]:
        queries, keys = (jax.random.key(seed) for seed in range(2))
        return jax.random.normal(queries, (q, d), dtype), jax.random.normal(keys, (n, d), dtype)

    work, read = 2.0 * q * n * d, float((q + n) * d * jnp.dtype(dtype).itemsize)
    common: dict[str, Any] = {"dtype": jnp.dtype(dtype).name, "direction": "forward", "flops": work}
    common |= {"arguments": arguments, "unsupported": {} if reason is None else {"mosaic_gpu": reason}}
    common |= {"fallback": "groups", "configs": () if reason else list(configs(q, n, d, group, dtype))}

    search = partial(matmul_topk, k=k, group=group)
    yield Case(
        **common,
        op="matmul_topk",
        shape={"q": q, "d": d, "n": n, "k": k},
        implementations=_ways(lambda *a, **options: search(*a, **options).scores, reason),
        bytes=read + 8.0 * q * k,
        truth=None if large else lambda queries, keys: -np.sort(-(queries @ keys.T), axis=1)[:, :k],
        tuned=lambda config: lambda *a: search(*a, implementation="mosaic_gpu", config=config).scores,
    )
    yield Case(
        **common,
        op="group_max",
        shape={"q": q, "d": d, "n": n, "group": group},
        implementations=_ways(partial(group_max, group=group), reason),
        bytes=read + 4.0 * q * n / group,
        truth=None if large else lambda queries, keys: (queries @ keys.T).reshape(q, -1, group).max(axis=2),
        tuned=lambda config: partial(group_max, group=group, implementation="mosaic_gpu", config=config),
    )


def configs(q: int, n: int, d: int, group: int, dtype: Any) -> Iterator[Config]:
    """What the tuner tries."""
    full = default_config(q, n).splits
    for (rows, columns), stages, part in product(((64, 128), (64, 256), (128, 128)), (3, 4, 5, 6), (0.5, 1, 2, 4)):
        config = Config(rows=rows, columns=columns, stages=stages, splits=max(1, int(full * part)))
        if config.check(q, n, d, group, dtype) is None:
            yield config


def _ways(way: Callable[..., Any], reason: str | None) -> dict[str, Callable[..., Any]]:
    def plain(queries: jax.Array, keys: jax.Array) -> Any:
        parts = queries.reshape(-1, min(256, len(queries)), queries.shape[1])
        found = jax.lax.map(lambda part: way(part, keys, implementation="reference"), parts)
        return found.reshape(len(queries), -1)

    ways = {"groups": partial(way, implementation="xla"), "xla": plain}
    return ways if reason else {"mosaic_gpu": partial(way, implementation="mosaic_gpu"), **ways}
