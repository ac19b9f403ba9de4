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
      size: the budget of the whole prefix; one integer, may be traced.
      block: tokens of a block; the last may have fewer.
      adaptive: false gives every block the same, the newest one more where it does not come out even; what a block of
        fewer tokens cannot use the others get.
      half_life: in tokens; None is no preference for the new.
      mask: `[..., T]` bool, false for padding, which is in no block and has no age, wherever it stands: blocks are of
        the tokens that are there, and the last ones may have none.

    Returns:
      `[..., N]` int32 for the N = ceil(T / block) blocks; the sum is `size`, or all tokens if they are fewer.

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
    length, half_life = importance.shape[-1], None if half_life is None else float(half_life)
    block = min(int(block), max(length, 1))
    blocks = -(-length // block)

    def one(importance: jax.Array, mask: jax.Array | None) -> jax.Array:
        kept = (
            choose(importance, mask, size, half_life)
            if adaptive
            else choose_evenly(importance, mask, size, half_life, block)
        )
        return jnp.sum(_in_blocks(jnp.where(kept, 1.0, 0.0), mask, block) > 0, axis=1, dtype=jnp.int32)

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


def positions(length: int, mask: jax.Array | None) -> tuple[jax.Array, jax.Array | int]:
    """`[T]` int32, where each token stands among those that are there, and how many these are."""
    if mask is None:
        return jnp.arange(length, dtype=jnp.int32), length
    return jnp.cumsum(mask, dtype=jnp.int32) - 1, jnp.sum(mask, dtype=jnp.int32)


def choose(
    importance: jax.Array,
    mask: jax.Array | None,
    count: jax.Array | int,
    half_life: float | None,
    age: jax.Array | None = None,
) -> jax.Array:
    """`[N]` bool: the entries of one head that are kept, `count` of them or all there are."""
    kept = first(_score(importance, mask, half_life, age), count)
    return kept if mask is None else kept & mask


def choose_evenly(
    importance: jax.Array, mask: jax.Array | None, count: jax.Array | int, half_life: float | None, block: int
) -> jax.Array:
    """`[T]` bool: as `choose`, with the same count for every block, as `_shares` says."""
    score = _in_blocks(_score(importance, mask, half_life, None), mask, block)
    kept = jax.vmap(first)(score, _shares(score, count)) & (score > -jnp.inf)
    return _as_before(kept, mask, len(importance))


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
    cut = score[None] if adaptive else _in_blocks(score, mask, block)
    counts = jnp.asarray(count, jnp.int32)[None] if adaptive else _shares(cut, count)
    order = -jnp.sort(-cut, axis=1)
    order = jnp.concatenate([jnp.full_like(cut[:, :1], 2e9), jnp.where(order == -jnp.inf, -2e9, order)], axis=1)
    order = jnp.pad(order, ((0, 0), (0, 1)), constant_values=-2e9)
    at = jnp.clip(counts, 0, cut.shape[1])[:, None]
    bar = (jnp.take_along_axis(order, at, axis=1) + jnp.take_along_axis(order, at + 1, axis=1)) / 2
    above = jnp.where(cut == -jnp.inf, bar, cut) - bar
    return above[0] if adaptive else _as_before(above, mask, length)


def _in_blocks(score: jax.Array, mask: jax.Array | None, block: int) -> jax.Array:
    """`[N, block]`: the tokens that are there, one after another, and -inf."""
    if mask is not None:
        score = score[jnp.argsort(~mask, stable=True)]
    blocks = -(-len(score) // block)
    return jnp.pad(score, (0, blocks * block - len(score)), constant_values=-jnp.inf).reshape(blocks, block)


def _as_before(x: jax.Array, mask: jax.Array | None, length: int) -> jax.Array:
    """`[T]`, what stood `_in_blocks` where it was; padding has 0."""
    x = x.reshape(-1)[:length]
    if mask is None or length == 0:
        return x
    place, _ = positions(length, mask)
    return jnp.where(mask, x[jnp.maximum(place, 0)], jnp.zeros_like(x))


def _shares(score: jax.Array, count: jax.Array | int) -> jax.Array:
    """`[N]` int32: equal parts of a count, the newest blocks one more; what a short block cannot use others get."""
    block = score.shape[1]
    there = jnp.sum(score > -jnp.inf, axis=1, dtype=jnp.int32)
    count = jnp.maximum(jnp.asarray(count, jnp.int32), 0)
    each = jnp.arange(block + 1, dtype=jnp.int32)
    needed = jnp.sum(jnp.minimum(each[:, None], there[None]), axis=1, dtype=jnp.int32)  # if every block had so many
    level = jnp.sum(needed <= count, dtype=jnp.int32) - 1
    more = there > level
    nth = jnp.cumsum(more[::-1], dtype=jnp.int32)[::-1]
    return jnp.minimum(there, level) + (more & (nth <= count - needed[level])).astype(jnp.int32)


def _score(importance: jax.Array, mask: jax.Array | None, half_life: float | None, age: jax.Array | None) -> jax.Array:
    """Importance less what the age costs: counted from the newest, so that a long stream loses no digits of it."""
    score = finite(importance.astype(wide(importance.dtype)))
    if half_life is not None:
        if age is None:
            position, length = positions(len(score), mask)
            age = length - 1 - position
        rate = min(math.log(2) / half_life, 1e9)
        score = score - jnp.minimum(age.astype(score.dtype) * rate, 9e8)
    return score if mask is None else jnp.where(mask, score, -jnp.inf)


def fixed(name: str, value: float) -> float:
    """A number that programs are compiled for."""
    if isinstance(value, jax.Array):
        raise TypeError(f"{name}: expected a number of Python, which is fixed, got {value}")
    return float(value)


def check_policies(size: int | jax.Array, block: int, half_life: float | None) -> None:
    if isinstance(size, jax.Array):
        check_dtype("integer", size=size)
        if size.ndim:
            raise ValueError(f"size: expected one number, got shape {size.shape}; jax.vmap for one an example")
    else:
        check_whole("size", size, 0)
    check_whole("block", block, 1, 2**31 - 1)
    if half_life is not None:
        check_range("half_life", fixed("half_life", half_life), 0.0, math.inf, open_low=True)


def check_mask(mask: jax.Array, shape: tuple[int, ...]) -> None:
    check_dtype("boolean", mask=mask)
    if mask.shape != shape:
        raise ValueError(f"mask: expected shape {shape}, got {mask.shape}")
