"""Cases of block_sparse_attention: lists by XLA, the kernel, and all scores at once (cuDNN on a GPU)."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import product
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kernels_pallas._case import Case
from kernels_pallas._dispatch import needs_hopper
from kernels_pallas.attention import attention, cudnn

from .api import block_sparse_attention, sizes
from .config import Config, default_config
from .lists import join_blocks, window_blocks
from .reference import check_blocks, flat, rules_of
from .rules import Inputs, Rules

BLOCK = 64


def cases(large: bool) -> Iterator[Case]:
    """16 far blocks of 64 and a window of 512, causal: 64k tokens on a GPU, 4k or less on two CPU cores.

    "xla" is the lists by XLA on a GPU, where all scores at once do not fit, and all scores elsewhere; "cudnn dense"
    sees every key: its values are others, its time is the one to beat.
    """
    t, h, k, d, far, window = (65_536, 64, 4, 128, 16, 512) if large else (2048, 4, 1, 32, 4, 128)
    dtype = jnp.bfloat16 if large else jnp.float32
    fixed: dict[str, Any] = {"block_q": BLOCK, "block_k": BLOCK, "causal": True}
    shapes = tuple(jax.ShapeDtypeStruct((1, t, heads, d), dtype) for heads in (h, k, k))
    blocks = jax.ShapeDtypeStruct((k, t // BLOCK, far + window // BLOCK + 1), jnp.int32)
    x, rules = _form(shapes, blocks, fixed)
    reason = needs_hopper() or default_config(x, rules).check(x, rules)
    ours = partial(block_sparse_attention, **fixed)
    lists = partial(ours, implementation="xla")
    ways: dict[str, Callable[..., Any]] = {"xla": lists}
    if not large:
        ways = {"lists": lists, "xla": partial(ours, implementation="reference")}
    unsupported = {} if reason is None else {"mosaic_gpu": reason}
    if reason is None:
        ways = {"mosaic_gpu": partial(ours, implementation="mosaic_gpu"), **ways}
    if large and cudnn.refused(x, rules, False) is None:
        ways["cudnn dense"] = _dense

    def arguments() -> tuple[Any, ...]:
        keys = jax.random.split(jax.random.key(0), 3)
        q, key, v = (jax.random.normal(at, s.shape, dtype) for at, s in zip(keys, shapes, strict=True))
        return q, key, v, some_blocks(t, k, far, window)

    def slope(way: Callable[..., Any]) -> Callable[..., Any]:
        def loss(q: jax.Array, k: jax.Array, v: jax.Array, blocks: jax.Array) -> jax.Array:
            return jnp.sum(jnp.sin(way(q, k, v, blocks)[0].astype(jnp.float32)))

        return jax.grad(loss, (0, 1, 2))

    itemsize, seen = jnp.dtype(dtype).itemsize, far * BLOCK + window
    work, moved = 4.0 * t * h * d * seen, 2.0 * t * (h + k) * d * itemsize
    common: dict[str, Any] = {"op": "block_sparse_attention", "shape": sizes(x, rules), "dtype": jnp.dtype(dtype).name}
    common |= {"arguments": arguments, "unsupported": unsupported}
    common |= {"fallback": "xla" if large else "lists"}
    tuned = partial(ours, implementation="mosaic_gpu")
    yield Case(
        **common,
        direction="forward",
        implementations={name: partial(_y, way) for name, way in ways.items()},
        flops=work,
        bytes=moved,
        configs=() if reason else list(configs(x, rules)),
        tuned=lambda config: partial(_y, partial(tuned, config=config)),
    )
    yield Case(
        **common,
        direction="both",
        implementations={name: slope(way) for name, way in ways.items()},
        flops=3.5 * work,
        bytes=3 * moved,
        configs=() if reason else list(back_configs(x, rules)),
        tuned=lambda config: slope(partial(tuned, config=config)),
    )


def back_configs(x: Inputs, rules: Rules) -> Iterator[Config]:
    """What the tuner tries of the backward pass."""
    for groups, stages in product((0, 1, 2), (1, 2, 3, 4, 6)):
        config = replace(default_config(x, rules), back_groups=groups, back_stages=stages)
        if config.check(x, rules) is None and (groups or stages == 1):
            yield config


def configs(x: Inputs, rules: Rules) -> Iterator[Config]:
    """What the tuner tries of the forward pass."""
    for columns, groups, stages in product((64, 128, 192, 256), (1, 2), (1, 2, 3, 4, 6)):
        config = Config(columns=columns, groups=groups, stages=stages)
        if config.check(x, rules) is None:
            yield config


def some_blocks(t: int, heads: int, far: int, window: int) -> jax.Array:
    """Random blocks before each, and the window: `[heads, T / 64, far + window / 64 + 1]`."""
    rows = t // BLOCK
    chosen = np.random.default_rng(0).random((heads, rows, far)) * np.arange(1, rows + 1)[:, None]
    near = window_blocks(t, t, block_q=BLOCK, block_k=BLOCK, window=window)
    return join_blocks(chosen.astype(np.int32), near)


def _y(way: Callable[..., Any], *arguments: Any) -> Any:
    return way(*arguments)[0]


def _dense(q: jax.Array, k: jax.Array, v: jax.Array, _: jax.Array) -> Any:
    """Every key: other values, and the time that lists have to beat."""
    return attention(q, k, v, causal=True, implementation="cudnn")


def _form(shapes: Any, blocks: Any, fixed: dict[str, Any]) -> tuple[Inputs, Rules]:
    """Shapes in one form, and the rules."""
    rules = rules_of(shapes[0].shape[-1], fixed["causal"], None, None, None, 0, fixed["block_q"], fixed["block_k"])

    def form(q: jax.Array, k: jax.Array, v: jax.Array, blocks: jax.Array) -> Inputs:
        return flat(q, k, v, check_blocks(blocks, q, k, rules), None, None, None, None, None)

    return jax.eval_shape(form, *shapes, blocks), rules
