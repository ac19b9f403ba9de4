"""The backward pass as two Mosaic kernels for Hopper: nothing is added by two programs, so sums have a fixed order.

The gradient of the queries walks the lists as the forward pass does; that of keys and values walks the lists turned
round: for each block of keys the blocks of queries that list it, sorted by XLA. Both compute the scores again, the
second with keys as rows, so that weights and slopes go from registers into the next product. In each, one warpgroup
loads by TMA and each other has 64 rows; scores and slopes of a step are 64 wide, which leaves the registers to the
sums.
"""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from .config import ROWS, Config
from .lists import Lists, finer, ordered
from .mosaic_gpu_keys import of_keys
from .mosaic_gpu_queries import of_queries
from .mosaic_gpu_tiles import LOG2E, Slopes
from .rules import Inputs, Rules

_FAR = 1e30  # a log-sum-exp beside which every weight is 0


def backward(
    x: Inputs,
    lists: Lists,
    rules: Rules,
    config: Config,
    to_y: jax.Array,
    logsumexp: jax.Array,
    through: jax.Array,
    interpret: Any = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The gradients of queries, keys and values; `config.check_backward` says for which shapes.

    Args:
      x: the inputs.
      lists: in order.
      rules: of positions.
      config: of the forward pass.
      to_y: slope of the output.
      logsumexp: `[B, T, H]`.
      through: `[B, T, H]`: `sum(to_y * y)` less the slope of the log-sum-exp.
      interpret: None, or the interpreter's parameters.
    """
    length, keys = x.q.shape[1], x.k.shape[1]
    if rules.block_k > ROWS * config.back_groups:
        size = ROWS * config.back_groups
        index, rules = finer(lists, rules.block_k // size), replace(rules, block_k=size)
        lists = ordered(index, rules, length, keys, x.segments, x.key_segments)

    def cut(a: jax.Array, size: int, filler: float = 0) -> jax.Array:
        room = -a.shape[1] % size
        return jnp.pad(a, ((0, 0), (0, room)) + ((0, 0),) * (a.ndim - 2), constant_values=filler) if room else a

    base = jnp.where(logsumexp == -jnp.inf, _FAR, logsumexp * LOG2E)
    slopes = Slopes(
        cut(to_y.astype(x.q.dtype), rules.block_q),
        cut(base, rules.block_q, _FAR).swapaxes(1, 2),
        cut(through, rules.block_q).swapaxes(1, 2),
    )
    whole = x._replace(
        q=cut(x.q, rules.block_q),
        k=cut(x.k, rules.block_k),
        v=cut(x.v, rules.block_k),
        segments=None if x.segments is None else cut(x.segments, rules.block_q, -1),
        key_segments=None if x.key_segments is None else cut(x.key_segments, rules.block_k, -2),
    )
    to_q = of_queries(whole, lists, rules, config, slopes, keys, interpret)
    to_k, to_v = of_keys(whole, lists, rules, config, slopes, keys, interpret)
    return to_q[:, :length], to_k[:, :keys], to_v[:, :keys]
