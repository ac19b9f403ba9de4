"""From a float matrix to integer codes and their scales."""

from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from rlx.weights._lowbit import RANGE

Scale = Literal["minmax", "mse"]

# The shares of the min-max scale that "mse" tries at 8 bits, where breakpoints are too many to visit (254 a
# weight). Clipping the largest by 2% costs more than rounding all the others in a row of a few hundred, so the best
# share is near 1, where the error changes with every code that moves. Two steps of least squares follow.
_SHARES = np.concatenate([np.linspace(0.3, 0.96, 32, endpoint=False), np.linspace(0.96, 1.03, 480)]).astype(np.float32)

# How many breakpoints are sorted at once, so that a large matrix does not need seven times its memory or more.
_AT_ONCE = 2**24


@partial(jax.jit, static_argnames=("bits", "kind"))
def round_to_codes(w: jax.Array, bits: int, kind: Scale) -> tuple[jax.Array, jax.Array]:
    """Codes and scales of groups of numbers.

    Args:
      w: `[..., group]` float32; the last axis shares a scale.
      bits: 2, 4 or 8.
      kind: "minmax" is the least scale at which no code is clipped; "mse" is the scale of the
        least squared error: exactly at 2 and 4 bits, by search at 8.

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
    if bits == 8:
        best, _ = lax.scan(lambda best, share: (better(best, full * share), None), best, _SHARES)
    else:
        best = better(best, _over_breakpoints(w, full, bits))
    return lax.fori_loop(0, 2, refine, best)[0]


def _over_breakpoints(w: jax.Array, full: jax.Array, bits: int) -> jax.Array:
    """The scale of the least squared error, over every assignment of codes that any scale gives.

    As the scale falls from infinity, a code moves away from zero when the scale passes |w| / (k - 1/2). Between two
    such breakpoints the codes c stay, and the least of |w - s c|^2 over s is |w|^2 - (w.c)^2 / |c|^2. Rounding with
    that s is no worse than c, so the largest (w.c)^2 / |c|^2 over all pieces is the least error of all.
    """
    size, rows = w.shape[-1], w.reshape(-1, w.shape[-1])
    low, high = RANGE[bits]
    steps = np.arange(1, max(high, -low) + 1, dtype=np.float32)

    def one(w: jax.Array) -> jax.Array:
        allowed = jnp.where((w > 0)[:, None], steps[None] <= high, steps[None] <= -low) & (w != 0)[:, None]
        passed = jnp.where(allowed, jnp.abs(w)[:, None] / (steps - 0.5)[None], 0.0).reshape(-1)
        along = jnp.broadcast_to(jnp.abs(w)[:, None], allowed.shape).reshape(-1)  # what a step adds to w.c
        power = jnp.broadcast_to((2 * steps - 1)[None], allowed.shape).reshape(-1)  # and to |c|^2
        passed, along, power = lax.sort((-passed, along, power), num_keys=1)
        dot, norm = jnp.cumsum(along), jnp.cumsum(power)
        gain = jnp.where(passed < 0, jnp.square(dot) / norm, -1.0)
        best = jnp.argmax(gain)
        return dot[best] / norm[best]

    # A scale of zeros, or of what is not finite, is left to the caller.
    many = rows.size * len(steps) <= _AT_ONCE
    found = jax.vmap(one)(rows) if many else lax.map(one, rows, batch_size=max(_AT_ONCE // (size * len(steps)), 1))
    found = found.reshape(full.shape)
    return jnp.where(found > 0, found, full)
