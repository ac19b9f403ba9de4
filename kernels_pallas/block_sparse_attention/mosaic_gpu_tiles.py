"""What the backward kernels share: slopes that come in, masks, products, and the end of a pipeline."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from .rules import Rules

LOG2E = math.log2(math.e)
STEP = 64
"""Columns of the scores of a step."""


class Slopes(NamedTuple):
    """What comes in, padded to whole blocks.

    Attributes:
      to_y: `[B, T, H, E]`, slope of the output.
      base: `[B, H, T]`, log-sum-exp in powers of 2; very large where a query sees nothing.
      through: `[B, H, T]`, what every slope of a weight is measured from.
    """

    to_y: jax.Array
    base: jax.Array
    through: jax.Array


def visible(
    rules: Rules, keys: int, column: jax.Array, query: jax.Array, marks: tuple[jax.Array, jax.Array] | None
) -> jax.Array:
    """Whether keys at `column` are seen by those of `query`, of equal marks where there are marks."""
    position = query + rules.offset
    seen = column < keys
    if rules.causal:
        seen = seen & (column <= position)
    if rules.window is not None:
        seen = seen & (column < position + rules.window) & (column > position - rules.window)
    return seen if marks is None else seen & (marks[0] == marks[1])


def bend(z: jax.Array, rules: Rules) -> tuple[jax.Array, jax.Array | None]:
    """Scores in powers of 2, and the slope of the soft cap."""
    if rules.softcap is None:
        return z * (rules.scale * LOG2E), None
    bent = jnp.tanh(z * (rules.scale / rules.softcap))
    return bent * (rules.softcap * LOG2E), 1.0 - bent * bent


def product(left: Any, right: Any, shape: tuple[int, int]) -> jax.Array:
    """`left @ right` of references."""

    def one(ref: Any) -> jax.Array:
        plgpu.wgmma(ref, left, right)
        return ref[...]

    return pl.run_scoped(one, plgpu.ACC(shape, jnp.float32))


def drain(steps: jax.Array, stages: int, *barriers: Any) -> None:
    """Wait until what was loaded has been used."""

    def one(step: jax.Array, _: None) -> None:
        for barrier in barriers:
            plgpu.barrier_wait(barrier.at[lax.rem(step, jnp.int32(stages))])

    lax.fori_loop(jnp.maximum(steps - stages, 0), steps, one, None)
