"""Pairs of chunks one after another: the online softmax forward, the scores computed again backward."""

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from rlx._compat import vary_together
from rlx._numerics import wide
from rlx._symbolic import materialised, primals

from ._rules import Inputs, Rules


@dataclass(frozen=True)
class _Layout:
    """Sizes of the chunks: `rows` queries and `columns` keys at a time, of `length` and `keys`."""

    rules: Rules
    rows: int
    columns: int
    length: int
    keys: int

    def pairs(self) -> np.ndarray:
        """`[2, N]`: the pairs (chunk of queries, chunk of keys) that are not hidden as a whole, queries outermost."""
        i, j = np.arange(-(-self.length // self.rows))[:, None], np.arange(-(-self.keys // self.columns))[None, :]
        first = i * self.rows + self.rules.offset
        last = np.minimum((i + 1) * self.rows, self.length) - 1 + self.rules.offset
        left, right = j * self.columns, np.minimum((j + 1) * self.columns, self.keys) - 1
        seen = np.ones((i.size, j.size), bool)
        if self.rules.causal:
            seen &= left <= last
        if self.rules.window is not None:
            seen &= (right > first - self.rules.window) & (left < last + self.rules.window)
        return np.stack(np.nonzero(seen)).astype(np.int32)


class _Chunks(NamedTuple):
    """The arrays cut in chunks on axis 0; K heads of keys, G query heads each.

    Attributes:
      q: `[N, B, K, G, C, D]`.
      k: `[M, B, K, R, D]`.
      v: `[M, B, K, R, E]`.
      bias: `[B, K, G, T, S]`, whole, each dim full or 1.
      sinks: `[K, G]`.
      segments: `[N, B, C]`.
      key_segments: `[M, B, R]`.
      mask: `[M, B, R]`.
    """

    q: jax.Array
    k: jax.Array
    v: jax.Array
    bias: jax.Array | None
    sinks: jax.Array | None
    segments: jax.Array | None
    key_segments: jax.Array | None
    mask: jax.Array | None


def chunked(x: Inputs, rules: Rules, *, chunk: int) -> jax.Array:
    """As `reference`, with the scores of `chunk` queries and `chunk` keys at a time, forward and backward."""
    batch, length, count, _ = x.q.shape
    keys, shared = x.k.shape[1:3]
    out_shape = (batch, length, count, x.v.shape[-1])
    if length == 0 or keys == 0:
        return jnp.zeros_like(x.q, shape=out_shape)
    layout = _Layout(rules, min(chunk, length), min(chunk, keys), length, keys)
    group = count // shared

    def cut(y: jax.Array, size: int) -> jax.Array:
        y = jnp.pad(y, ((0, 0), (0, -y.shape[1] % size), *((0, 0),) * (y.ndim - 2)))
        return jnp.moveaxis(y.reshape(batch, -1, size, *y.shape[2:]), 1, 0)

    def cut_optional(y: jax.Array | None, size: int) -> jax.Array | None:
        return None if y is None else cut(y, size)

    bias = x.bias
    if bias is not None:
        heads = (1, 1) if bias.shape[1] == 1 else (shared, group)
        room = [(0, -size % step if size > 1 else 0) for size, step in zip(bias.shape[2:], _steps(layout), strict=True)]
        bias = jnp.pad(bias.reshape(bias.shape[0], *heads, *bias.shape[2:]), ((0, 0), (0, 0), (0, 0), *room))
    chunks = _Chunks(
        q=cut(x.q.reshape(batch, length, shared, group, -1), layout.rows).transpose(0, 1, 3, 4, 2, 5),
        k=cut(x.k, layout.columns).swapaxes(2, 3),
        v=cut(x.v, layout.columns).swapaxes(2, 3),
        bias=bias,
        sinks=None if x.sinks is None else x.sinks.reshape(shared, group),
        segments=cut_optional(x.segments, layout.rows),
        key_segments=cut_optional(x.key_segments, layout.columns),
        mask=cut_optional(x.mask, layout.columns),
    )
    out = _attend(layout, vary_together(chunks))  # [N, B, K, G, C, E]
    return out.transpose(1, 0, 4, 2, 3, 5).reshape(batch, -1, *out_shape[2:])[:, :length]


def _steps(layout: _Layout) -> tuple[int, int]:
    return layout.rows, layout.columns


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(layout: _Layout, x: _Chunks) -> jax.Array:
    return _forward(layout, x)[0]


def _scores(layout: _Layout, x: _Chunks, i: jax.Array, j: jax.Array, q: jax.Array, k: jax.Array) -> Any:
    """The scores `[B, K, G, C, R]` of one pair, -inf where nothing is seen; and the tanh of the soft cap, or None."""
    rules, dtype = layout.rules, wide(q.dtype)
    scores = jnp.einsum("bkgcd,bkrd->bkgcr", q, k, preferred_element_type=dtype) * rules.scale
    bent = None
    if rules.softcap is not None:
        bent = jnp.tanh(scores / rules.softcap)
        scores = bent * rules.softcap
    if x.bias is not None:
        scores = scores + _piece(layout, x.bias, i, j).astype(dtype)
    columns = j * layout.columns + jnp.arange(layout.columns, dtype=jnp.int32)
    rows = i * layout.rows + jnp.arange(layout.rows, dtype=jnp.int32)
    seen = (rules.sees(rows, columns) & (columns < layout.keys)[None, :])[None]
    if x.segments is not None and x.key_segments is not None:
        seen = seen & (x.segments[i][:, :, None] == x.key_segments[j][:, None, :])
    if x.mask is not None:
        seen = seen & x.mask[j][:, None, :]
    return jnp.where(seen[:, None, None], scores, -jnp.inf), bent


def _corner(layout: _Layout, bias: jax.Array, i: jax.Array, j: jax.Array) -> tuple[list[Any], list[int]]:
    """Where the pair's part of the bias starts, and its sizes."""
    places = zip((i, j), _steps(layout), bias.shape[3:], strict=True)
    starts, sizes = zip(*((at * step if n > 1 else 0, step if n > 1 else 1) for at, step, n in places), strict=True)
    return [jnp.asarray(start, jnp.int32) for start in (0, 0, 0, *starts)], [*bias.shape[:3], *sizes]


def _piece(layout: _Layout, bias: jax.Array, i: jax.Array, j: jax.Array) -> jax.Array:
    return lax.dynamic_slice(bias, *_corner(layout, bias, i, j))


def _forward(layout: _Layout, x: _Chunks) -> tuple[jax.Array, jax.Array]:
    """The result `[N, B, K, G, C, E]` and the log of the softmax's denominator `[N, B, K, G, C]`, inf if it is 0."""
    dtype = wide(x.q.dtype)
    rows = x.q.shape[1:-1]
    top0 = jnp.full_like(x.q, -jnp.inf, shape=rows, dtype=dtype)
    if x.sinks is not None:
        top0 = jnp.broadcast_to(x.sinks.astype(dtype)[None, :, :, None], rows)
    total0 = (top0 > -jnp.inf).astype(dtype)
    mixed0 = jnp.zeros_like(x.q, shape=(*rows, x.v.shape[-1]), dtype=dtype)

    def step(carry: Any, pair: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[Any, None]:
        out, norm, (top, total, mixed) = carry
        i, j, first = pair
        top, total, mixed = (jnp.where(first, a, b) for a, b in ((top0, top), (total0, total), (mixed0, mixed)))
        scores, _ = _scores(layout, x, i, j, x.q[i], x.k[j])
        new = jnp.maximum(top, jnp.max(scores, axis=-1))
        base = jnp.where(new == -jnp.inf, 0, new)
        weights, kept = jnp.exp(scores - base[..., None]), jnp.exp(top - base)
        total = total * kept + jnp.sum(weights, axis=-1)
        v = x.v[j]
        term = jnp.einsum("bkgcr,bkre->bkgce", weights.astype(v.dtype), v, preferred_element_type=dtype)
        mixed = mixed * kept[..., None] + term
        nothing = total == 0
        total1 = jnp.where(nothing, 1, total)
        out = out.at[i].set((mixed / total1[..., None]).astype(out.dtype))
        norm = norm.at[i].set(jnp.where(nothing, jnp.inf, base + jnp.log(total1)))
        return (out, norm, (new, total, mixed)), None

    out = jnp.zeros_like(x.q, shape=(*x.q.shape[:-1], x.v.shape[-1]))
    norm = jnp.full_like(x.q, jnp.inf, shape=x.q.shape[:-1], dtype=dtype)
    i, j = layout.pairs()
    first = np.concatenate([[True], i[1:] != i[:-1]])[: len(i)]
    carry = (out, norm, (top0, total0, mixed0))
    (out, norm, _), _ = lax.scan(step, carry, (jnp.asarray(i), jnp.asarray(j), jnp.asarray(first)))
    return out, norm


def _save(layout: _Layout, x: Any) -> tuple[jax.Array, Any]:
    """Forward; what is kept grows with the length only. A bias that is not differentiated gets no gradient array."""
    x, trained = primals(x)
    bias_is_trained = x.bias is not None and trained.bias
    out, norm = _forward(layout, x)
    return out, (x, out, norm, (jnp.zeros(()),) if bias_is_trained else ())


def _backward(layout: _Layout, saved: Any, cotangent: Any) -> tuple[_Chunks]:
    x, out, norm, bias_is_trained = saved
    cotangent = materialised(cotangent)
    rules, dtype = layout.rules, norm.dtype
    through = jnp.sum(cotangent.astype(dtype) * out.astype(dtype), axis=-1)  # [N, B, K, G, C]

    def step(carry: Any, pair: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[Any, None]:
        dq, dk, dv, dbias, (dk1, dv1) = carry
        i, j, first = pair
        dk1, dv1 = (jnp.where(first, 0, a) for a in (dk1, dv1))
        q, k, v, do = x.q[i], x.k[j], x.v[j], cotangent[i]
        scores, bent = _scores(layout, x, i, j, q, k)
        weights = jnp.exp(scores - norm[i][..., None])
        dv1 = dv1 + jnp.einsum("bkgcr,bkgce->bkre", weights.astype(do.dtype), do, preferred_element_type=dtype)
        dweights = jnp.einsum("bkgce,bkre->bkgcr", do, v, preferred_element_type=dtype)
        dscores = weights * (dweights - through[i][..., None])
        if dbias is not None:
            starts, _ = _corner(layout, dbias, i, j)
            piece = _piece(layout, dbias, i, j)
            wide_axes = tuple(axis for axis, size in enumerate(piece.shape) if size == 1)
            piece = piece + jnp.sum(dscores, axis=wide_axes, keepdims=True)
            dbias = lax.dynamic_update_slice(dbias, piece, starts)
        if bent is not None:
            dscores = dscores * (1 - jnp.square(bent))
        dscores = (dscores * rules.scale).astype(q.dtype)
        dq = dq.at[i].add(jnp.einsum("bkgcr,bkrd->bkgcd", dscores, k, preferred_element_type=dtype))
        dk1 = dk1 + jnp.einsum("bkgcr,bkgcd->bkrd", dscores, q, preferred_element_type=dtype)
        dk, dv = dk.at[j].set(dk1.astype(dk.dtype)), dv.at[j].set(dv1.astype(dv.dtype))
        return (dq, dk, dv, dbias, (dk1, dv1)), None

    i, j = layout.pairs()
    order = np.lexsort((i, j))
    i, j = i[order], j[order]
    first = np.concatenate([[True], j[1:] != j[:-1]])[: len(j)]
    dbias = jnp.zeros_like(x.bias, dtype=dtype) if bias_is_trained else None
    one = tuple(jnp.zeros_like(y, shape=y.shape[1:], dtype=dtype) for y in (x.k, x.v))
    carry = (jnp.zeros_like(x.q, dtype=dtype), jnp.zeros_like(x.k), jnp.zeros_like(x.v), dbias, one)
    (dq, dk, dv, dbias, _), _ = lax.scan(step, carry, (jnp.asarray(i), jnp.asarray(j), jnp.asarray(first)))
    dsinks = None
    if x.sinks is not None:
        share = jnp.exp(x.sinks.astype(dtype)[None, None, :, :, None] - norm)
        dsinks = -jnp.sum(share * through, axis=(0, 1, 4)).astype(x.sinks.dtype)
    if x.bias is not None:
        dbias = jnp.zeros_like(x.bias) if dbias is None else dbias.astype(x.bias.dtype)
    gradient = _Chunks(
        q=dq.astype(x.q.dtype),
        k=dk,
        v=dv,
        bias=dbias,
        sinks=dsinks,
        segments=_none(x.segments),
        key_segments=_none(x.key_segments),
        mask=_none(x.mask),
    )
    return (gradient,)


def _none(x: jax.Array | None) -> Any:
    """The cotangent of what has none."""
    return None if x is None else np.zeros(x.shape, jax.dtypes.float0)


_attend.defvjp(_save, _backward, symbolic_zeros=True)
