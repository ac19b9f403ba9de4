"""From a float matrix to integer codes and their scales."""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Scale = Literal["minmax", "mse"]

# The least and greatest code. TensorFlow Lite's specification leaves -128 out at 8 bits, so that negating a
# weight is exact; 4 bits follow it (-7..7, as its quantisers write them). At 2 bits that would waste a quarter
# of the codes: all four are used.
RANGE = {8: (-127, 127), 4: (-7, 7), 2: (-2, 1)}

# The shares of the min-max scale that "mse" tries: at 2 bits the best of a normal row of 4096 is near .3, at 8
# bits it is near 1, where the error changes with every code that moves.
_SHARES = np.concatenate([np.linspace(0.05, 0.9, 60, endpoint=False), np.linspace(0.9, 1.0, 64)]).astype(np.float32)


def round_to_codes(w: jax.Array, bits: int, kind: Scale) -> tuple[jax.Array, jax.Array]:
    """Codes and scales of groups of numbers.

    Args:
      w: `[..., group]` float32; the last axis shares a scale.
      bits: 2, 4 or 8.
      kind: "minmax" is the least scale at which no code is clipped; "mse" is the scale of the
        least squared error, by search and two steps of least squares.

    Returns:
      Codes `[..., group]`, whole float32 numbers, and scales `[...]`. Zeros have scale 1.
    """
    low, high = RANGE[bits]
    full = jnp.maximum(jnp.max(w, axis=-1) / high, jnp.min(w, axis=-1) / low)
    full = jnp.where(full == 0, 1.0, full)  # a NaN or an infinity stays one: the row comes back as NaN
    scale = full if kind == "minmax" else _least_squares(w, full, bits)
    return _codes(w, scale, bits), scale


def _codes(w: jax.Array, scale: jax.Array, bits: int) -> jax.Array:
    return jnp.clip(jnp.round(w / scale[..., None]), *RANGE[bits])


def _least_squares(w: jax.Array, full: jax.Array, bits: int) -> jax.Array:
    def error(scale: jax.Array) -> jax.Array:
        return jnp.sum(jnp.square(w - _codes(w, scale, bits) * scale[..., None]), axis=-1)

    def better(best: tuple[jax.Array, jax.Array], scale: jax.Array) -> tuple[jax.Array, jax.Array]:
        cost = error(scale)
        return jnp.where(cost < best[1], scale, best[0]), jnp.minimum(cost, best[1])

    def refine(_: int, best: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        codes = _codes(w, best[0], bits)
        power = jnp.sum(jnp.square(codes), axis=-1)
        fitted = jnp.sum(w * codes, axis=-1) / jnp.where(power > 0, power, 1.0)
        return better(best, jnp.where(fitted > 0, fitted, best[0]))

    best = full, error(full)
    best, _ = lax.scan(lambda best, share: (better(best, full * share), None), best, _SHARES)
    return lax.fori_loop(0, 2, refine, best)[0]
