"""Attention that opens what matters of the past and sees the rest in summaries."""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from rlx._checks import check_dtype, check_shapes, check_whole
from rlx._compat import vary_together
from rlx._numerics import wide

from ._descent import look, mix
from ._tree import Nodes, Shape, grow, leaf_sums, means


def hierarchical_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    slots: jax.Array | None = None,
    *,
    block: int = 64,
    beam: int = 8,
    window: int = 1,
    fan: int = 2,
    mask: jax.Array | None = None,
    scale: float | None = None,
) -> jax.Array:
    """Causal attention in O(T log T): token by token where it matters, by summaries elsewhere, all in one softmax.

    o[t] = sum_i w[t, i] v[i],  w[t, i] = softmax_i(scale q[t] k[i] + log n[i])

    over the tokens of the last `window` blocks and the query's own (n = 1), the tokens of `beam` leaves, and the
    summaries of all other nodes on the way to them (n, the tokens that it stands for). Every past token is in it
    exactly once. Blocks of `block` tokens are the leaves of a tree, which a block joins when it is complete. Each
    query goes down it from the nodes that its prefix is made of, opening on each level the `beam` nodes with the
    largest estimated mass. With `beam >= T / block` it is dense attention.

    A node has m summaries: tokens belong to slot i in shares softmax_i(slots[i] k), and a summary is the mean key
    and the mean value of its share. Slots are parameters; they learn through the softmax in which summaries stand.
    The choice itself has no gradient.

    Args:
      q: `[..., T, H, D]`, floating.
      k: `[..., T, K, D]`; H is a multiple of K, and H / K neighbouring query heads share a key head and a choice.
      v: `[..., T, K, E]`.
      slots: `[m, K, D]`; None is one summary a node, the mean.
      block: tokens of a leaf.
      beam: nodes opened on a level, so also leaves that are seen token by token.
      window: blocks before the query's own that are always seen token by token.
      fan: children of a node. Larger is a flatter tree with more summaries a level.
      mask: `[..., T]` bool, false for padding, whatever it holds.
      scale: of the scores; 1 / sqrt(D) if None.

    Returns:
      `[..., T, H, E]` in the dtype of `q`. Memory is linear in T, of the gradient too; a step takes
      `block * (beam * block + summaries)` keys and values a key head at a time.

    Raises:
      TypeError, ValueError: name the argument whose dtype, shape or value is wrong.

    Example:
      >>> import jax
      >>> from rlx.attention import attention, hierarchical_attention
      >>> q, k, v = jax.random.normal(jax.random.key(0), (3, 20, 2, 8))            # [T, H, D]
      >>> dense = hierarchical_attention(q, k, v, block=4, beam=5)
      >>> bool(abs(dense - attention(q, k, v, causal=True)).max() < 1e-5)
      True
      >>> hierarchical_attention(q, k, v, block=4, beam=1).shape
      (20, 2, 8)

    References:
      Zhu & Soricut 2021, "H-Transformer-1D"; Yuan et al. 2025, "Native Sparse Attention" (arXiv 2502.11089); Zhou et
      al. 2025, "Log-linear Sparse Attention" (arXiv 2512.16615). Deviations: one softmax, in which summaries count
      for the tokens they stand for, as in MRA; a query chooses for itself, causally; summaries by slots.
    """
    batch, scale = check(q, k, v, slots, mask, block, beam, window, fan, scale)
    length, count = q.shape[-3:-1]
    if length == 0 or math.prod(batch) == 0 or v.shape[-1] == 0 or count == 0:
        return jnp.zeros_like(q, shape=(*q.shape[:-1], v.shape[-1]))
    blocks, shared = -(-length // block), k.shape[-2]
    shape = Shape(block=block, blocks=blocks, fan=fan, beam=beam, window=min(window, blocks - 1))

    def cut(x: jax.Array, heads: int) -> jax.Array:
        """`[..., T, heads G, D]` -> `[B, heads, N, C, G, D]`."""
        x = x.reshape(-1, length, heads, x.shape[-2] // heads, x.shape[-1])
        x = jnp.pad(x, ((0, 0), (0, blocks * block - length), (0, 0), (0, 0), (0, 0)))
        return x.reshape(x.shape[0], blocks, block, *x.shape[2:]).transpose(0, 3, 1, 2, 4, 5)

    if mask is not None:  # a weight of zero would still carry a NaN
        q, k, v = (jnp.where(mask[..., None, None], x, 0) for x in (q, k, v))
    cut_q, cut_k, cut_v = cut(q, shared), cut(k, shared)[..., 0, :], cut(v, shared)[..., 0, :]
    cut_mask = None
    if mask is not None:
        cut_mask = jnp.pad(mask.reshape(-1, length), ((0, 0), (0, blocks * block - length)))
        cut_mask = cut_mask.reshape(-1, blocks, block)
    slots = jnp.zeros_like(k, shape=(1, shared, k.shape[-1])) if slots is None else slots
    one = partial(_one, shape, scale)
    heads = jax.vmap(one, in_axes=(0, 0, 0, 1, None))  # over K
    batched = jax.vmap(heads, in_axes=(0, 0, 0, None, None if mask is None else 0))
    out = batched(*vary_together((cut_q, cut_k, cut_v, slots, cut_mask)))  # [B, K, N, C, G, E]
    out = out.transpose(0, 2, 3, 1, 4, 5).reshape(out.shape[0], blocks * block, count, -1)[:, :length]
    return out.reshape(*batch, *out.shape[1:])


def check(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    slots: jax.Array | None,
    mask: jax.Array | None,
    block: int,
    beam: int,
    window: int,
    fan: int,
    scale: float | None,
) -> tuple[tuple[int, ...], float]:
    """Check the arguments; the leading dims and the scale."""
    check_dtype("floating", q=q, k=k, v=v)
    check_shapes(q=(q, "*THD"), k=(k, "*TKD"), v=(v, "*TKE"))
    batch = q.shape[:-3]
    for name, other in (("k", k), ("v", v)):
        if other.shape[:-3] != batch:
            raise ValueError(f"{name}: leading dims {other.shape[:-3]} disagree with {batch} of q")
        if other.dtype != q.dtype:
            raise TypeError(f"{name}: dtype {other.dtype} disagrees with {q.dtype} of q; cast one of them")
    if k.shape[-2] == 0 or q.shape[-2] % k.shape[-2]:
        raise ValueError(f"k: {k.shape[-2]} heads do not divide the {q.shape[-2]} heads of q")
    if slots is not None:
        check_dtype("floating", slots=slots)
        if check_shapes(slots=(slots, "mKD"), k=(k, "*TKD"))["m"] == 0:
            raise ValueError("slots: at least one is needed; None is the mean")
    if mask is not None:
        check_dtype("boolean", mask=mask)
        if mask.shape != q.shape[:-2]:
            raise ValueError(f"mask: expected shape {q.shape[:-2]}, got {mask.shape}")
    for name, value, least in (("block", block, 1), ("beam", beam, 1), ("window", window, 0), ("fan", fan, 2)):
        check_whole(name, value, least)
    if isinstance(scale, jax.Array):
        raise TypeError("scale: expected a number of Python, which is fixed; multiply q for a learned scale")
    if q.shape[-1] == 0:
        raise ValueError("q: D is 0; scores need at least one feature")
    return batch, q.shape[-1] ** -0.5 if scale is None else scale


def _one(
    shape: Shape, scale: float, q: jax.Array, k: jax.Array, v: jax.Array, slots: jax.Array, mask: jax.Array | None
) -> jax.Array:
    """One example, one key head: `q [N, C, G, D]`, `k [N, C, D]`, `v [N, C, E]`, `slots [m, D]`, `mask [N, C]`."""
    nodes = means(grow(leaf_sums(slots, k, v, mask), shape), k)
    return _attend(shape, scale, q, k, v, nodes, mask)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attend(
    shape: Shape, scale: float, q: jax.Array, k: jax.Array, v: jax.Array, nodes: Nodes, mask: jax.Array | None
) -> jax.Array:
    def step(carry: None, inputs: tuple[jax.Array, jax.Array]) -> tuple[None, jax.Array]:
        own, index = inputs
        _, _, seen, shown = look(shape, scale, own, _positions(shape, index), index, k, v, nodes, mask)
        return carry, mix(scale, own, seen, shown)

    return lax.scan(step, None, (q, jnp.arange(shape.blocks, dtype=jnp.int32)))[1]


def _positions(shape: Shape, index: jax.Array) -> jax.Array:
    return index * shape.block + jnp.arange(shape.block, dtype=jnp.int32)


def _save(
    shape: Shape, scale: float, q: jax.Array, k: jax.Array, v: jax.Array, nodes: Nodes, mask: jax.Array | None
) -> tuple[jax.Array, Any]:
    return _attend(shape, scale, q, k, v, nodes, mask), (q, k, v, nodes, mask)


def _backward(shape: Shape, scale: float, saved: Any, cotangent: jax.Array) -> Any:
    """Block after block again: the same choice, the gradient of its softmax, added where the keys came from."""
    q, k, v, nodes, mask = saved
    dtype = wide(q.dtype)

    def step(carry: Any, inputs: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[Any, jax.Array]:
        own, d_own, index = inputs
        dk, dv, dnodes = carry
        found, first, seen, shown = look(shape, scale, own, _positions(shape, index), index, k, v, nodes, mask)
        _, pullback = jax.vjp(lambda own, seen: mix(scale, own, seen, shown), own, seen)
        dq, d = pullback(d_own)
        dk, dv = (
            _add_rows(x.at[found.leaves].add(leaf.astype(dtype)), near, first)
            for x, leaf, near in ((dk, d.leaf_k, d.near_k), (dv, d.leaf_v, d.near_v))
        )
        pieces = Nodes(d.log_mass, d.node_k, d.node_v)
        dnodes = jax.tree.map(lambda x, piece: x.at[found.nodes].add(piece.astype(dtype)), dnodes, pieces)
        return (dk, dv, dnodes), dq

    zeros = jax.tree.map(lambda x: jnp.zeros_like(x, dtype=dtype), (k, v, nodes))
    blocks = (q, cotangent, jnp.arange(shape.blocks, dtype=jnp.int32))
    sums, dq = lax.scan(step, zeros, blocks)
    dk, dv, dnodes = jax.tree.map(lambda d, x: d.astype(x.dtype), sums, (k, v, nodes))
    return dq, dk, dv, dnodes, None


def _add_rows(x: jax.Array, rows: jax.Array, first: jax.Array) -> jax.Array:
    """`x [N, C, D]` with `rows [n C, D]` added from block `first` on."""
    rows = rows.reshape(-1, *x.shape[1:]).astype(x.dtype)
    return lax.dynamic_update_slice_in_dim(x, lax.dynamic_slice_in_dim(x, first, len(rows)) + rows, first, 0)


_attend.defvjp(_save, _backward)
