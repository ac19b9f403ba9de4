"""A block of queries against some listed blocks of keys at a time; the backward pass computes the scores again."""

from functools import partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax import lax

from kernels_pallas._vary import vary_together

from .lists import Lists, ordered
from .reference import BlockSparseAttention, without_padding
from .rules import Inputs, Rules, wide
from .steps import Keys, Step, at_once, in_blocks, in_steps, joined, steps_of


class Kernel(Protocol):
    """Computes the values, and where it `has_backward` the gradients of queries, keys and values."""

    @property
    def has_backward(self) -> bool:
        """Whether `backward` can be called."""
        ...

    def __call__(self, x: Inputs, lists: Lists, rules: Rules) -> BlockSparseAttention:
        """The output and the log-sum-exp of lists in order."""
        ...

    def backward(
        self, x: Inputs, lists: Lists, rules: Rules, to_y: jax.Array, logsumexp: jax.Array, through: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """The gradients of queries, keys and values."""
        ...


def blocked(x: Inputs, rules: Rules, kernel: Kernel | None = None) -> BlockSparseAttention:
    """As `reference`; memory beside the arrays is that of one block of queries and `COLUMNS` keys.

    A kernel may compute the values, and the gradient where it has one.
    """
    lists = ordered(x.blocks, rules, x.q.shape[1], x.k.shape[1], x.segments, x.key_segments)
    x, lists = vary_together((x, lists))
    y, logsumexp = _attend(x.q, x.k, x.v, x.sinks, lists, x.segments, x.key_segments, rules, kernel)
    return without_padding(y, logsumexp, x)


@partial(jax.custom_vjp, nondiff_argnums=(7, 8))
def _attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    sinks: jax.Array | None,
    lists: Lists,
    segments: jax.Array | None,
    key_segments: jax.Array | None,
    rules: Rules,
    kernel: Kernel | None,
) -> tuple[jax.Array, jax.Array]:
    x = Inputs(q, k, v, lists.index, segments, key_segments, sinks)
    if kernel is not None:
        (y, logsumexp), _ = vary_together((kernel(x, lists, rules), q))
        return y, logsumexp
    keys = in_blocks(x, rules)
    y, logsumexp = lax.map(partial(_forward, rules, keys, k.shape[1]), steps_of(x, lists, rules))
    return joined(y, x, rules), joined(logsumexp[..., None], x, rules)[..., 0]


def _save(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    sinks: jax.Array | None,
    lists: Lists,
    segments: jax.Array | None,
    key_segments: jax.Array | None,
    rules: Rules,
    kernel: Kernel | None,
) -> tuple[tuple[jax.Array, jax.Array], Any]:
    """Kept: the arguments, the output and the log-sum-exp."""
    y, logsumexp = _attend(q, k, v, sinks, lists, segments, key_segments, rules, kernel)
    return (y, logsumexp), (q, k, v, sinks, lists, segments, key_segments, y, logsumexp)


def _backward(
    rules: Rules, kernel: Kernel | None, kept: tuple[Any, ...], slopes: tuple[jax.Array, jax.Array]
) -> tuple[Any, ...]:
    q, k, v, sinks, lists, segments, key_segments, y, logsumexp = kept
    x, dtype = Inputs(q, k, v, lists.index, segments, key_segments, sinks), logsumexp.dtype
    to_y, to_logsumexp = slopes
    nothing = logsumexp == -jnp.inf  # such a row has no gradient, whatever comes in
    to_y = jnp.where(nothing[..., None], 0, to_y)
    through = jnp.sum(to_y.astype(dtype) * y.astype(dtype), axis=-1) - jnp.where(nothing, 0, to_logsumexp)
    to_sinks = None
    if sinks is not None:
        share = jnp.exp(sinks.astype(dtype)[None, None] - jnp.where(nothing, jnp.inf, logsumexp))
        to_sinks = -jnp.sum(share * through, axis=(0, 1)).astype(sinks.dtype)
    if kernel is not None and kernel.has_backward:
        to_q, to_k, to_v = kernel.backward(x, lists, rules, to_y, logsumexp, through)
        (to_q, to_k, to_v), _ = vary_together(((to_q, to_k, to_v), q))
        return to_q, to_k, to_v, to_sinks, None, None, None
    base = jnp.where(nothing, 0, logsumexp)
    keys = in_blocks(x, rules)
    heads = lists.index.shape[1]
    to_y, base, through = (in_steps(a, heads, x.k.shape[2], rules) for a in (to_y, base[..., None], through[..., None]))
    steps = steps_of(x, lists, rules), to_y, base[..., 0], through[..., 0]
    zeros, _ = vary_together(((jnp.zeros(keys.k.shape, dtype), jnp.zeros(keys.v.shape, dtype)), x))
    (to_k, to_v), to_q = lax.scan(partial(_backward_step, rules, keys, k.shape[1]), zeros, steps)

    def whole(a: jax.Array, like: jax.Array) -> jax.Array:
        a = a.reshape(*a.shape[:2], -1, a.shape[-1]).swapaxes(1, 2)
        return a[:, : like.shape[1]].astype(like.dtype)

    return joined(to_q, x, rules), whole(to_k, k), whole(to_v, v), to_sinks, None, None, None


_attend.defvjp(_save, _backward)


def _forward(rules: Rules, keys: Keys, count: int, step: Step) -> tuple[jax.Array, jax.Array]:
    """The output `[B, K, G, C, E]` of one list, and the log-sum-exp."""
    dtype, rows = wide(step.q.dtype), step.q.shape[:-1]

    def part(i: jax.Array, past: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        top, total, mixed = past
        at, there = _part(rules, step, i)
        z, _ = _scores(rules, keys, count, step, at, there)
        highest = jnp.maximum(top, jnp.max(z, axis=-1))
        base = jnp.where(highest == -jnp.inf, 0, highest)
        weights, kept = jnp.exp(z - base[..., None]), jnp.exp(top - base)
        v = _blocks(keys.v, at)
        more = _over_keys("bkgcr,bkre->bkgce", weights.astype(v.dtype), v, dtype)
        return highest, total * kept + jnp.sum(weights, axis=-1), mixed * kept[..., None] + more

    top = jnp.full(rows, -jnp.inf, dtype)
    if step.sinks is not None:
        top = jnp.broadcast_to(step.sinks.astype(dtype)[None, :, :, None], rows)
    total = (top > -jnp.inf).astype(dtype)
    zero = jnp.zeros((*rows, keys.v.shape[-1]), dtype)
    start, _ = vary_together(((top, total, zero), (step, keys)))
    top, total, mixed = lax.fori_loop(0, -(-step.seen // at_once(rules, step.index.shape[-1])), part, start)
    nothing = total == 0
    total = jnp.where(nothing, 1, total)
    return (mixed / total[..., None]).astype(step.q.dtype), jnp.where(nothing, -jnp.inf, top + jnp.log(total))


def _backward_step(
    rules: Rules, keys: Keys, count: int, sums: tuple[jax.Array, jax.Array], inputs: tuple[Any, ...]
) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
    """The gradient of one list's queries; what its keys and values get is added to the sums, each block once."""
    step, to_y, base, through = inputs
    dtype = base.dtype

    def part(i: jax.Array, past: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        to_q, to_k, to_v = past
        at, there = _part(rules, step, i)
        z, bent = _scores(rules, keys, count, step, at, there)
        k, v = _blocks(keys.k, at), _blocks(keys.v, at)
        weights = jnp.exp(z - base[..., None])
        slope = _over_keys("bkgce,bkre->bkgcr", to_y, v, dtype) - through[..., None]
        slope = weights * slope
        if bent is not None:
            slope = slope * (1 - jnp.square(bent))
        slope = (slope * rules.scale).astype(k.dtype)
        to_q = to_q + _over_keys("bkgcr,bkrd->bkgcd", slope, k, dtype)
        from_k = _over_keys("bkgcr,bkgcd->bkrd", slope, step.q, dtype)
        from_v = _over_keys("bkgcr,bkgce->bkre", weights.astype(to_y.dtype), to_y, dtype)
        return to_q, _add(to_k, at, from_k), _add(to_v, at, from_v)

    start, _ = vary_together((jnp.zeros(step.q.shape, dtype), (step, keys, inputs)))
    trips = -(-step.seen // at_once(rules, step.index.shape[-1]))
    to_q, to_k, to_v = lax.fori_loop(0, trips, part, (start, *sums))
    return (to_k, to_v), to_q.astype(step.q.dtype)


def _scores(
    rules: Rules, keys: Keys, count: int, step: Step, at: jax.Array, there: jax.Array
) -> tuple[jax.Array, jax.Array | None]:
    """Scores `[B, K, G, C, c R]` of c blocks, -inf where nothing is seen; and the tanh of the soft cap, or None."""
    dtype = wide(step.q.dtype)
    z = _over_keys("bkgcd,bkrd->bkgcr", step.q, _blocks(keys.k, at), dtype) * rules.scale
    bent = None
    if rules.softcap is not None:
        bent = jnp.tanh(z / rules.softcap)
        z = bent * rules.softcap
    inside = jnp.arange(rules.block_k, dtype=jnp.int32)[None, None, None, :]
    columns = (at[..., None] * rules.block_k + inside).reshape(*at.shape[:2], 1, -1)
    rows = step.row + jnp.arange(step.q.shape[3], dtype=jnp.int32)[:, None]
    seen = there[:, :, None, :] & rules.sees(rows[None, None], columns, count)
    if step.segments is not None and keys.segments is not None:
        batch = jnp.arange(len(keys.segments), dtype=jnp.int32)[:, None, None]
        other = keys.segments[batch, at].reshape(*at.shape[:2], 1, -1)
        seen = seen & (step.segments[:, None, :, None] == other)
    return jnp.where(seen[:, :, None], z, -jnp.inf), bent


def _part(rules: Rules, step: Step, i: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Numbers of the next blocks `[B or 1, K or 1, c]`, and for each of their keys whether the block is there."""
    size = at_once(rules, step.index.shape[-1])
    at = lax.dynamic_slice_in_dim(step.index, i * size, size, axis=2)
    there = i * size + jnp.arange(size, dtype=jnp.int32)[None, None, :] < step.seen
    there = jnp.repeat(jnp.broadcast_to(there, at.shape), rules.block_k, axis=2)
    return at, there


def _blocks(x: jax.Array, at: jax.Array) -> jax.Array:
    """Blocks `at [B or 1, K or 1, c]` of `x [B, K, M, R, D]`, as `[B, K, c R, D]`; one past the end is the last."""
    place = (slice(None), slice(None), at[0, 0]) if at.shape[:2] == (1, 1) else (*_corner(x), at)
    found = x.at[*place].get(mode="clip")
    return found.reshape(*x.shape[:2], -1, x.shape[-1])


def _add(x: jax.Array, at: jax.Array, more: jax.Array) -> jax.Array:
    """`x` with `more [B, K, c R, D]` added to blocks `at`; one past the end gets nothing."""
    more = more.reshape(*x.shape[:2], -1, *x.shape[3:])
    if at.shape[:2] == (1, 1):
        return x.at[:, :, at[0, 0]].add(more, mode="drop")
    return x.at[*_corner(x), at].add(more, mode="drop")


def _corner(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    batch, heads = (jnp.arange(size, dtype=jnp.int32) for size in x.shape[:2])
    return batch[:, None, None], heads[None, :, None]


def _over_keys(dims: str, a: jax.Array, b: jax.Array, dtype: Any) -> jax.Array:
    return jnp.einsum(dims, a, b, preferred_element_type=dtype)
