"""Entries of one head: which are kept as they are, and how the others become means of the tree's nodes."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from rlx._numerics import wide


class Entries(NamedTuple):
    """Tokens or summaries of one head, oldest first.

    Attributes:
      keys: `[N, D]`.
      values: `[N, E]`.
      log_mass: `[N]`, -inf where there is none.
      importance: `[N]`, a token's own; of a summary, the log of the weight that it has in a mean, less its log mass.
      position: `[N]` int32, of a token; of a summary, of its newest token.
    """

    keys: jax.Array
    values: jax.Array
    log_mass: jax.Array
    importance: jax.Array
    position: jax.Array


def slot_count(levels: int) -> int:
    """How many summaries so many levels of the tree have."""
    return max(2 * levels - 1, 0)


def slot_of(position: jax.Array, length: jax.Array | int, *, block: int, levels: int) -> jax.Array:
    """The summary, oldest first, that covers a position when `length` tokens have been seen.

    The blocks of the prefix are the leaves of a tree; its cover has, from the newest on, one or two leaves, one or two
    nodes of two leaves, one or two of four, and so on: the digits 1 and 2 of the number of blocks in base 2. Nodes of
    the last level and above it are one. A longer prefix joins whole nodes.
    """
    blocks = (jnp.asarray(length, jnp.int32) - 1) // block + 1
    age = blocks - 1 - position // block
    slot, below = jnp.zeros_like(age), jnp.zeros_like(blocks)
    for level in range(min(levels - 1, 31)):  # of 2^31 blocks there are no more
        digit = jnp.where(blocks == 0, 0, 2 - blocks % 2)
        older = (age - below) >> level  # 0 is the newer node of this level, 1 the older if there is one
        here = (older >= 0) & (older < digit)
        slot = jnp.where(here, 2 * (levels - 1 - level) - older, slot)
        below, blocks = below + (digit << level), (blocks - digit) // 2
    return slot


def condense(
    x: Entries, log_kept: jax.Array, log_rest: jax.Array, slots: jax.Array, *, room: int, levels: int, temper: float
) -> Entries:
    """`room` entries that stay as they are, in their order, and then a mean of the others for each slot.

    Of an entry's mass, `log_kept [N]` stays and `log_rest [N]` goes into the mean of its slot, where it weighs its mass
    times exp(temper importance); -inf is nothing. The mean's mass is the sum of the masses.
    """
    dtype = wide(x.keys.dtype)
    kept, rest = log_kept > -jnp.inf, log_rest > -jnp.inf
    empty = max(room - len(kept), 0)
    place = slice(None) if room >= len(kept) else jnp.argsort(~kept, stable=True)[:room]
    shown = jnp.pad(kept[place], (0, empty))
    stays = x._replace(log_mass=log_kept)
    picked = jax.tree.map(lambda a: jnp.pad(a[place], ((0, empty),) + ((0, 0),) * (a.ndim - 1)), stays)
    picked = Entries(
        jnp.where(shown[:, None], picked.keys, 0),
        jnp.where(shown[:, None], picked.values, 0),
        jnp.where(shown, picked.log_mass, -jnp.inf),
        jnp.where(shown, picked.importance, -jnp.inf),
        jnp.where(shown, picked.position, 0),
    )
    if levels == 0:
        return picked
    member = (slots[None, :] == jnp.arange(slot_count(levels), dtype=slots.dtype)[:, None]) & rest[None]
    filled = jnp.any(member, axis=1)
    log_mass = jnp.where(rest, log_rest, 0)  # no infinities, whose gradients would be NaN

    def summed(logs: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Of each slot the log of the sum, and each entry's share of it."""
        top = jax.lax.stop_gradient(jnp.max(jnp.where(member, logs[None], -jnp.inf), axis=1))
        top = jnp.where(filled, top, 0)
        part = jnp.where(member, jnp.exp(jnp.where(member, logs[None] - top[:, None], 0)), 0)
        total = jnp.where(filled, jnp.sum(part, axis=1), 1)
        return top + jnp.log(total), part / total[:, None]

    log_sum, share = summed(log_mass)
    importance = jnp.zeros_like(log_sum)
    if temper:
        # Beside more than this the digits of the mass would be lost.
        log_weight, share = summed(log_mass + jnp.clip(temper * jnp.where(rest, x.importance, 0), -1e4, 1e4))
        importance = (log_weight - log_sum) / temper

    def mean(a: jax.Array) -> jax.Array:
        a = jnp.where(rest[:, None], a, 0).astype(dtype)
        return jnp.einsum("sn,nd->sd", share, a, precision="highest").astype(a.dtype)

    merged = Entries(
        mean(x.keys).astype(x.keys.dtype),
        mean(x.values).astype(x.values.dtype),
        jnp.where(filled, log_sum, -jnp.inf),
        jnp.where(filled, importance, -jnp.inf),
        jnp.max(jnp.where(member, x.position[None], 0), axis=1),
    )
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), picked, merged)
