"""Which tokens are kept: one budget for all blocks or the same for each, hard or soft."""

import math

import jax
import jax.numpy as jnp

from rlx._checks import check_dtype, check_range, check_shapes, check_whole
from rlx._numerics import wide


def allocate(
    importance: jax.Array,
    *,
    size: int | jax.Array,
    block: int = 64,
    adaptive: bool = True,
    half_life: float | None = None,
    mask: jax.Array | None = None,
) -> jax.Array:
    """How many tokens each block keeps of a budget.

    Adaptive, the tokens of largest importance are kept wherever they are, so a surprising block keeps more. With a
    half-life, a token that is so many tokens older needs log 2 more: where few tokens are important (an exponential
    tail of scale 1, as surprises have) the budget is geometric in age, half as much for what is a half-life older.

    Args:
      importance: `[..., T]`, in nats where it is a surprise, -log p; NaN counts as -inf.
      size: the budget of the whole prefix; may be traced.
      block: tokens of a block; the last may have fewer.
      adaptive: false gives every block the same, the newest one more where it does not come out even.
      half_life: in tokens; None is no preference for the new.
      mask: `[..., T]` bool, false for padding.

    Returns:
      `[..., N]` int32 for the N blocks; the sum is at most `size`.

    Raises:
      TypeError, ValueError: name the argument that is wrong.

    Example:
      >>> import jax.numpy as jnp
      >>> from rlx.compress import allocate
      >>> surprise = jnp.array([0.1, 0.1, 3.0, 2.0, 0.1, 2.5, 0.1, 0.1])
      >>> allocate(surprise, size=4, block=2), allocate(surprise, size=4, block=2, adaptive=False)
      (Array([0, 2, 1, 1], dtype=int32), Array([1, 1, 1, 1], dtype=int32))

    References:
      Cormode et al. 2009, "Forward decay": weights that grow with the time of arrival keep their order for ever, so a
      stream needs no second look. Deviation: the largest are kept, nothing is sampled.
    """
    check_dtype("floating", importance=importance)
    check_shapes(importance=(importance, "*T"))
    check_policies(size, block, half_life)
    if mask is not None:
        check_mask(mask, importance.shape)
    length = importance.shape[-1]
    blocks = -(-length // block)

    def one(importance: jax.Array, mask: jax.Array | None) -> jax.Array:
        kept = (
            choose(importance, mask, size, half_life)
            if adaptive
            else choose_evenly(importance, mask, size, half_life, block)
        )
        return jnp.sum(jnp.pad(kept, (0, blocks * block - length)).reshape(blocks, block), axis=1, dtype=jnp.int32)

    count = math.prod(importance.shape[:-1])
    flat = importance.reshape(count, length)
    flat_mask = None if mask is None else mask.reshape(count, length)
    out = jax.vmap(one, in_axes=(0, None if mask is None else 0))(flat, flat_mask)
    return out.reshape(*importance.shape[:-1], blocks)


def finite(importance: jax.Array) -> jax.Array:
    """Importance in a range in which sums of it stay finite; NaN is the least."""
    return jnp.clip(jnp.where(jnp.isnan(importance), -1e9, importance), -1e9, 1e9)


def first(score: jax.Array, count: jax.Array | int) -> jax.Array:
    """`[N]` bool: the `count` largest scores; of equal ones, the last."""
    score = jax.lax.stop_gradient(score)[::-1]
    order = jnp.argsort(-score, stable=True).astype(jnp.int32)
    ranks = jnp.zeros_like(order).at[order].set(jnp.arange(len(score), dtype=jnp.int32))
    return (ranks < count)[::-1]


def choose(
    importance: jax.Array,
    mask: jax.Array | None,
    count: jax.Array | int,
    half_life: float | None,
    position: jax.Array | None = None,
) -> jax.Array:
    """`[N]` bool: the entries of one head that are kept, `count` of them or all there are."""
    score = _score(importance, mask, half_life, position)
    kept = first(score, count)
    return kept if mask is None else kept & mask


def choose_evenly(
    importance: jax.Array, mask: jax.Array | None, count: jax.Array | int, half_life: float | None, block: int
) -> jax.Array:
    """`[T]` bool: as `choose`, with the same count for every block, the newest ones more if it does not come out."""
    length = len(importance)
    blocks = -(-length // block)
    score = jnp.pad(_score(importance, mask, half_life, None), (0, blocks * block - length), constant_values=-jnp.inf)
    counts = (count + jnp.arange(blocks, dtype=jnp.int32)) // max(blocks, 1)
    kept = jax.vmap(first)(score.reshape(blocks, block), counts).reshape(-1)[:length]
    return kept if mask is None else kept & mask


def over(
    importance: jax.Array,
    mask: jax.Array | None,
    count: jax.Array,
    half_life: float | None,
    block: int,
    adaptive: bool,
) -> jax.Array:
    """`[T]`: how far each token is over the bar that `count` tokens pass, with a gradient; padding is at 0."""
    score, length = _score(importance, mask, half_life, None), len(importance)
    blocks = 1 if adaptive else -(-length // block)
    width = length if adaptive else block
    cut = jnp.pad(score, (0, blocks * width - length), constant_values=-jnp.inf).reshape(blocks, width)
    counts = (count + jnp.arange(blocks, dtype=jnp.int32)) // max(blocks, 1)
    order = -jnp.sort(-cut, axis=1)
    order = jnp.concatenate([jnp.full_like(cut[:, :1], 2e9), jnp.where(order == -jnp.inf, -2e9, order)], axis=1)
    order = jnp.pad(order, ((0, 0), (0, 1)), constant_values=-2e9)
    at = jnp.clip(counts, 0, width)[:, None]
    bar = (jnp.take_along_axis(order, at, axis=1) + jnp.take_along_axis(order, at + 1, axis=1)) / 2
    return (jnp.where(cut == -jnp.inf, bar, cut) - bar).reshape(-1)[:length]


def _score(
    importance: jax.Array, mask: jax.Array | None, half_life: float | None, position: jax.Array | None
) -> jax.Array:
    score = finite(importance.astype(wide(importance.dtype)))
    if half_life is not None:
        position = jnp.arange(len(score)) if position is None else position
        score = score + position.astype(score.dtype) * (math.log(2) / half_life)
    return score if mask is None else jnp.where(mask, score, -jnp.inf)


def check_policies(size: int | jax.Array, block: int, half_life: float | None) -> None:
    if not isinstance(size, jax.Array):
        check_whole("size", size, 0)
    check_whole("block", block, 1)
    if half_life is not None:
        check_range("half_life", half_life, 0.0, math.inf, open_low=True)


def check_mask(mask: jax.Array, shape: tuple[int, ...]) -> None:
    check_dtype("boolean", mask=mask)
    if mask.shape != shape:
        raise ValueError(f"mask: expected shape {shape}, got {mask.shape}")
