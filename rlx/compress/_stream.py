"""A memory of a fixed size that grows no larger while tokens come: the old is compressed further."""

import math
from dataclasses import dataclass, field
from functools import partial

import jax
import jax.numpy as jnp

from rlx._checks import check_range, check_whole
from rlx._compat import vary_together
from rlx._numerics import wide

from ._allocate import check_policies, choose, fixed, positions
from ._compress import check_kv, levels_for, tokens
from ._entries import Entries, condense, slot_count, slot_of
from ._memory import Memory


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["memory", "importance", "position", "length", "means"],
    meta_fields=["block", "levels", "half_life", "temper"],
)
@dataclass(frozen=True, kw_only=True)
class Stream:
    """A memory and what is needed to compress it further; make it with `stream`.

    Attributes:
      memory: of M entries, kept tokens in their order, empty ones, then means, oldest first.
      importance: `[..., M, K]`, of each entry.
      position: `[..., M, K]` int32, of each entry; of a mean, that of its newest token.
      length: `[...]` int32, how many tokens have come of each example, without padding.
      means: `[..., N, K, D]` and `[..., N, K, E]`, keys and values of the means in float32, from which they go on: a
        mean that is rounded in each update would stand still. N is 0 if the memory is not in half precision.
      block: as in `compress`.
      levels: as there.
      half_life: as there.
      temper: as there.
    """

    memory: Memory
    importance: jax.Array
    position: jax.Array
    length: jax.Array
    means: tuple[jax.Array, jax.Array]
    block: int = field(default=64)
    levels: int = field(default=1)
    half_life: float | None = field(default=None)
    temper: float = field(default=0.0)


def stream(
    k: jax.Array,
    v: jax.Array,
    importance: jax.Array,
    *,
    size: int,
    block: int = 64,
    levels: int | None = None,
    half_life: float | None = None,
    temper: float = 0.0,
    mask: jax.Array | None = None,
) -> Stream:
    """A stream that has seen the tokens of a prefix, or none; `update` gives it more.

    Args:
      k: `[..., T, K, D]`, the prefix; T may be 0.
      v: `[..., T, K, E]`.
      importance: `[..., T]` or `[..., T, K]`.
      size: entries of the memory, for ever.
      block: as in `compress`.
      levels: as there; None takes at most a quarter of `size`.
      half_life: as there.
      temper: as there.
      mask: as there.

    Returns:
      The stream.

    Raises:
      TypeError, ValueError: name the argument that is wrong.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from rlx.compress import stream, update
      >>> k, v = jax.random.normal(jax.random.key(0), (2, 100, 1, 8))
      >>> state = stream(k[:0], v[:0], jnp.zeros(0), size=16, block=8)
      >>> for t in range(0, 100, 25):
      ...     state = update(state, k[t : t + 25], v[t : t + 25], k[t : t + 25, 0, 0])
      >>> state.memory.size, round(float(state.memory.tokens[0]), 3)
      (16, 100.0)
    """
    batch, _ = check_kv(k, v, importance, mask)
    check_whole("size", size, 1)
    check_policies(size, block, half_life)
    check_range("temper", fixed("temper", temper), 0.0, float("inf"), open_high=True)
    levels = levels_for(size, size * block, block) if levels is None else levels
    check_whole("levels", levels, 0)
    if slot_count(levels) > size:
        raise ValueError(f"levels: {levels} levels have {slot_count(levels)} means, more than the {size} entries")
    shape, dtype = (*batch, size, k.shape[-2]), wide(k.dtype)
    means = (*batch, slot_count(levels) if k.dtype != dtype else 0, k.shape[-2])
    mean_keys, mean_values = (jnp.zeros_like(x, shape=(*means, x.shape[-1]), dtype=dtype) for x in (k, v))
    empty = Memory(
        keys=jnp.zeros_like(k, shape=(*shape, k.shape[-1])),
        values=jnp.zeros_like(v, shape=(*shape, v.shape[-1])),
        log_mass=jnp.full_like(k, -jnp.inf, shape=shape, dtype=dtype),
    )
    state = Stream(
        memory=empty,
        importance=jnp.full_like(k, -jnp.inf, shape=shape, dtype=dtype),
        position=jnp.zeros_like(k, shape=shape, dtype=jnp.int32),
        length=jnp.zeros_like(k, shape=batch, dtype=jnp.int32),
        means=(mean_keys, mean_values),
        block=int(block),
        levels=int(levels),
        half_life=None if half_life is None else float(half_life),
        temper=float(temper),
    )
    return update(state, k, v, importance, mask=mask) if k.shape[-3] else state


def update(
    state: Stream, k: jax.Array, v: jax.Array, importance: jax.Array, *, mask: jax.Array | None = None
) -> Stream:
    """The stream after more tokens: the most important of what was kept and what is new stay, the others are merged.

    The largest of a union are the largest of its parts' largest, and a mean's tokens are in one node of the tree for
    ever. So in whatever pieces a prefix comes, the memory is that of `compress` with as many levels, except that kept
    tokens stand in `size - means` places from the first; and a prefix of no more than `size` tokens, which `compress`
    keeps as it is, has means here as soon as it has more than `size - means`.

    Args:
      state: of the tokens before.
      k: `[..., T, K, D]`, the next tokens.
      v: `[..., T, K, E]`.
      importance: `[..., T]` or `[..., T, K]`.
      mask: `[..., T]` bool, false for padding, which has no position and is in no entry, wherever it stands.

    Returns:
      The stream, of the same size; its memory is `state.memory`.

    Raises:
      TypeError, ValueError: name the argument that is wrong.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from rlx.compress import compress, stream, update
      >>> k, v = jax.random.normal(jax.random.key(0), (2, 60, 1, 8))
      >>> options = dict(size=9, block=4, levels=3)
      >>> state = update(stream(k[:37], v[:37], k[:37, 0, 0], **options), k[37:], v[37:], k[37:, 0, 0])
      >>> whole = compress(k, v, k[:, 0, 0], **options)
      >>> bool(abs(state.memory.keys - whole.keys).max() < 1e-5)
      True
    """
    if not isinstance(state, Stream):
        raise TypeError(f"state: expected a Stream, got {type(state).__name__}")
    batch, length = check_kv(k, v, importance, mask)
    old = state.memory
    for name, new, had in (("k", k, old.keys), ("v", v, old.values)):
        if (*new.shape[:-3], *new.shape[-2:]) != (*had.shape[:-3], *had.shape[-2:]):
            raise ValueError(f"{name}: shape {new.shape} does not continue {had.shape} [..., M, K, D] of the stream")
        if new.dtype != had.dtype:
            raise TypeError(f"{name}: dtype {new.dtype} disagrees with {had.dtype} of the stream; cast one of them")
    if importance.ndim == k.ndim - 2:
        importance = jnp.broadcast_to(importance[..., None], k.shape[:-1])
    count = math.prod(batch)
    entries = Entries(old.keys, old.values, old.log_mass, state.importance, state.position)
    tree = (entries, state.means, k, v, importance, mask, state.length)
    flat = jax.tree.map(lambda x: x.reshape(count, *x.shape[len(batch) :]), tree)
    rules = (state.block, state.levels, state.half_life, state.temper)
    out, means = jax.tree.map(lambda x: x.reshape(*batch, *x.shape[1:]), _joined(rules, *vary_together(flat)))
    return Stream(
        memory=Memory(keys=out.keys, values=out.values, log_mass=out.log_mass),
        importance=out.importance,
        position=out.position,
        length=state.length + (length if mask is None else jnp.sum(mask, axis=-1, dtype=jnp.int32)),
        means=means,
        block=state.block,
        levels=state.levels,
        half_life=state.half_life,
        temper=state.temper,
    )


@partial(jax.jit, static_argnums=0)
def _joined(
    rules: tuple[int, int, float | None, float],
    x: Entries,
    means: tuple[jax.Array, jax.Array],
    k: jax.Array,
    v: jax.Array,
    importance: jax.Array,
    mask: jax.Array | None,
    start: jax.Array,
) -> tuple[Entries, tuple[jax.Array, jax.Array]]:
    """Entries `[B, M, K, ...]` with new tokens joined: `k [B, T, K, D]`, `importance [B, T, K]`, `mask [B, T]`."""
    block, levels, half_life, temper = rules
    room, dtype, narrow = x.log_mass.shape[1] - slot_count(levels), x.log_mass.dtype, k.dtype

    def one(
        x: Entries,
        means: tuple[jax.Array, jax.Array],
        k: jax.Array,
        v: jax.Array,
        importance: jax.Array,
        mask: jax.Array | None,
        start: jax.Array,
    ) -> tuple[Entries, tuple[jax.Array, jax.Array]]:
        """One example, one head."""
        if narrow != dtype:
            k, v = k.astype(dtype), v.astype(dtype)
            keys, values = (
                jnp.concatenate([a[:room].astype(dtype), b]) for a, b in zip((x.keys, x.values), means, strict=True)
            )
            x = x._replace(keys=keys, values=values)
        more = tokens(k, v, importance, mask, start, dtype)
        x, had = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), x, more), len(x.log_mass)
        # Means come after what was kept and can not be kept again.
        index = jnp.arange(len(x.log_mass), dtype=jnp.int32)
        single = (x.log_mass > -jnp.inf) & ((index < room) | (index >= had))
        end = start + positions(len(k), mask)[1]
        kept = choose(x.importance, single, room, half_life, end - 1 - x.position)
        where = slot_of(x.position, end, block=block, levels=levels)
        log_kept, log_rest = (jnp.where(chosen, x.log_mass, -jnp.inf) for chosen in (kept, ~kept))
        x = condense(x, log_kept, log_rest, where, room=room, levels=levels, temper=temper)
        if narrow != dtype:
            means = (x.keys[room:], x.values[room:])
        return x._replace(keys=x.keys.astype(narrow), values=x.values.astype(narrow)), means

    heads = jax.vmap(one, in_axes=(1, 1, 1, 1, 1, None, None), out_axes=1)
    batched = jax.vmap(heads, in_axes=(0, 0, 0, 0, 0, None if mask is None else 0, 0))
    return batched(x, means, k, v, importance, mask, start)
