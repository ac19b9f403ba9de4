"""A prefix to a memory: the tokens that matter as they are, the others in means that get coarser with age."""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rlx._checks import check_dtype, check_range, check_shapes, check_whole
from rlx._compat import vary_together
from rlx._numerics import wide

from ._allocate import check_mask, check_policies, choose, choose_evenly, finite, fixed, over, positions
from ._entries import Entries, condense, slot_count, slot_of
from ._memory import Memory


def compress(
    k: jax.Array,
    v: jax.Array,
    importance: jax.Array,
    *,
    size: int | None = None,
    ratio: float | None = None,
    block: int = 64,
    adaptive: bool = True,
    half_life: float | None = None,
    levels: int | None = None,
    temper: float = 0.0,
    mask: jax.Array | None = None,
    shown: jax.Array | int | None = None,
    gate: float | None = None,
) -> Memory:
    """A memory of a prefix: its most important tokens as they are, the others in means that get coarser with age.

    The prefix's blocks are the leaves of a tree. Most entries are tokens, chosen as `allocate` does, for each key head
    by itself. What is left is merged node by node: from the newest on one or two means of one block, one or two of two
    blocks, of four, and so on for `levels` levels, the last with everything older. A mean has the mass of its tokens,
    so the masses add up to the tokens of the prefix. With `size` of all tokens it is the prefix.

    Args:
      k: `[..., T, K, D]`, floating.
      v: `[..., T, K, E]`.
      importance: `[..., T]`, or `[..., T, K]` for each key head; a surprise, -log p, or a learned score. It must come
        from the tokens that are compressed, never from what is asked of them later.
      size: entries of the memory, means among them.
      ratio: instead of `size`: tokens per entry, `size = floor(T / ratio)`, at least 1. T counts padding too.
      block: tokens of a leaf.
      adaptive: one budget for all blocks; false gives every block the same, as `allocate` does.
      half_life: in tokens, see `allocate`.
      levels: of means, `2 * levels - 1` entries; 0 drops what is not kept. None takes at most a quarter of `size`.
      temper: a token weighs exp(temper importance) in its mean. 0 is the plain mean, whose gradient in the importance
        is zero.
      mask: `[..., T]` bool, false for padding, which is in no entry and moves nothing, wherever it stands. Only that
        `size` is of all tokens is seen by T: an example of no more than `size` tokens in a longer array has means too.
      shown: `[...]` integers or one, may be traced: use only so many entries of `size`, as if `size` were that, for
        training under random ratios. Never more than `size`, nor less than the means, whose number `levels` and `size`
        fix. The memory then has room for `size` tokens, or T, and the means.
      gate: for training, a choice that is soft and so has a gradient in the importance. Of every token the mass
        sigmoid((importance - bar) / gate) is kept and the rest merged, where the bar is half way between the last token
        that would be kept and the first that would not. Towards 0 it is the choice itself, but for tokens that are as
        important as the bar, of which a half is kept. The memory has T entries and the means.

    Returns:
      The memory, of `size` entries or T if that is less (more with `shown` or `gate`, as said there); kept tokens in
      their order, then means, oldest first.

    Raises:
      TypeError, ValueError: name the argument that is wrong.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from rlx.compress import attend, compress
      >>> q, k, v = jax.random.normal(jax.random.key(0), (3, 64, 2, 8))             # [T, H, D]
      >>> memory = compress(k, v, jax.random.uniform(jax.random.key(1), (64,)), ratio=4, block=8)
      >>> memory.size, memory.tokens                             # entries; the tokens that they stand for
      (16, Array([64., 64.], dtype=float32))
      >>> attend(q[:1], memory).shape
      (1, 2, 8)

    References:
      Rae et al. 2019, "Compressive Transformers" (arXiv 1911.05507); Zhang et al. 2024, "Activation Beacon" (arXiv
      2401.03462), for random ratios; Datar et al. 2002, exponential histograms, for the cover. Deviations: tokens are
      kept as they are and only the rest is merged, with its mass; nothing is read a second time.
    """
    batch, length = check_kv(k, v, importance, mask)
    check_policies(0 if size is None else size, block, half_life)
    if (size is None) == (ratio is None):
        raise ValueError("size: give either size, in entries, or ratio, in tokens per entry")
    if size is None:
        ratio = fixed("ratio", 1.0 if ratio is None else ratio)
        check_range("ratio", ratio, 1.0, math.inf, open_high=True)
        size = max(int(length / ratio), 1)
    check_whole("size", size, 1)
    check_range("temper", fixed("temper", temper), 0.0, math.inf, open_high=True)
    levels = levels_for(size, length, block) if levels is None else levels
    check_whole("levels", levels, 0)
    slots = slot_count(levels)
    if slots > size:
        raise ValueError(f"levels: {levels} levels have {slots} means, more than the {size} entries there are")
    if shown is None:
        room, levels = (length, 0) if size >= length else (size - slots, levels)
        counts = jnp.full(math.prod(batch), room, jnp.int32)
    else:
        room = min(size, length)
        shown = jnp.broadcast_to(jnp.minimum(_shown(shown, batch), size), batch).reshape(-1)
        counts = jnp.where(shown >= length, length, jnp.maximum(shown - slots, 0))
    if gate is not None:
        gate = fixed("gate", gate)
        check_range("gate", gate, 0.0, math.inf, open_low=True, open_high=True)
        room = length
    if importance.ndim == k.ndim - 2:
        importance = jnp.broadcast_to(importance[..., None], k.shape[:-1])
    count = math.prod(batch)
    flat = [x.reshape(count, *x.shape[len(batch) :]) for x in (k, v, importance)]
    flat_mask = None if mask is None else mask.reshape(count, length)
    half_life = None if half_life is None else float(half_life)
    rules = _Rules(int(room), int(levels), min(int(block), max(length, 1)), adaptive, half_life, float(temper), gate)
    out = _condensed(rules, *vary_together((*flat, flat_mask, counts)))
    keys, values, log_mass = (x.reshape(*batch, *x.shape[1:]) for x in (out.keys, out.values, out.log_mass))
    return Memory(keys=keys, values=values, log_mass=log_mass)


class _Rules(NamedTuple):
    """What does not depend on values."""

    room: int
    levels: int
    block: int
    adaptive: bool
    half_life: float | None
    temper: float
    gate: float | None


@partial(jax.jit, static_argnums=0)
def _condensed(
    rules: _Rules, k: jax.Array, v: jax.Array, importance: jax.Array, mask: jax.Array | None, counts: jax.Array
) -> Entries:
    """`k [B, T, K, D]`, `v [B, T, K, E]`, `importance [B, T, K]`, `mask [B, T]`, `counts [B]`: `[B, M, K, ...]`."""

    def one(k: jax.Array, v: jax.Array, importance: jax.Array, mask: jax.Array | None, count: jax.Array) -> Entries:
        """One example, one head."""
        x = tokens(k, v, importance, mask, 0, wide(k.dtype))
        if rules.gate is None:
            kept = (
                choose(importance, mask, count, rules.half_life)
                if rules.adaptive
                else choose_evenly(importance, mask, count, rules.half_life, rules.block)
            )
            log_kept, log_rest = (jnp.where(chosen, x.log_mass, -jnp.inf) for chosen in (kept, ~kept))
        else:
            above = over(importance, mask, count, rules.half_life, rules.block, rules.adaptive) / rules.gate
            above = above.astype(x.log_mass.dtype)
            log_kept, log_rest = (x.log_mass + jax.nn.log_sigmoid(z) for z in (above, -above))
        _, length = positions(len(k), mask)
        where = slot_of(x.position, length, block=rules.block, levels=rules.levels)
        return condense(x, log_kept, log_rest, where, room=rules.room, levels=rules.levels, temper=rules.temper)

    heads = jax.vmap(one, in_axes=(1, 1, 1, None, None), out_axes=1)  # over K
    batched = jax.vmap(heads, in_axes=(0, 0, 0, None if mask is None else 0, 0))
    return batched(k, v, importance, mask, counts)


def levels_for(size: int, length: int, block: int) -> int:
    """Levels of means: no more than the blocks need, in at most a quarter of the entries, at least one."""
    blocks = max(-(-length // block), 1)
    return min(max((size // 4 + 1) // 2, 1), (blocks + 1).bit_length() - 1)


def tokens(
    k: jax.Array, v: jax.Array, importance: jax.Array, mask: jax.Array | None, start: jax.Array | int, dtype: Any
) -> Entries:
    """Tokens of one head as entries; padding has no mass, and zeros whatever was there."""
    importance = finite(importance.astype(dtype))
    log_mass = jnp.zeros_like(importance)
    if mask is not None:
        k, v = (jnp.where(mask[:, None], x, 0) for x in (k, v))
        importance, log_mass = (jnp.where(mask, x, -jnp.inf) for x in (importance, log_mass))
    return Entries(k, v, log_mass, importance, start + positions(len(k), mask)[0])


def _shown(shown: jax.Array | int, batch: tuple[int, ...]) -> jax.Array:
    if not isinstance(shown, jax.Array):
        if not getattr(shown, "ndim", 0):
            check_whole("shown", shown, 0)
        shown = jnp.asarray(shown)
    check_dtype("integer", shown=shown)
    if shown.shape not in ((), batch):
        raise ValueError(f"shown: expected shape () or {batch}, got {shown.shape}")
    return shown.astype(jnp.int32)


def check_kv(k: jax.Array, v: jax.Array, importance: jax.Array, mask: jax.Array | None) -> tuple[tuple[int, ...], int]:
    """The leading dims and T."""
    check_dtype("floating", k=k, v=v, importance=importance)
    sizes = check_shapes(k=(k, "*TKD"), v=(v, "*TKE"))
    if v.shape[:-3] != k.shape[:-3]:
        raise ValueError(f"v: leading dims {v.shape[:-3]} disagree with {k.shape[:-3]} of k")
    if v.dtype != k.dtype:
        raise TypeError(f"v: dtype {v.dtype} disagrees with {k.dtype} of k; cast one of them")
    if importance.shape not in (k.shape[:-2], k.shape[:-1]):
        raise ValueError(f"importance: expected shape {k.shape[:-2]} or {k.shape[:-1]}, got {importance.shape}")
    if mask is not None:
        check_mask(mask, k.shape[:-2])
    return k.shape[:-3], sizes["T"]
