"""Exact attention: the arguments checked and brought to one form, then an implementation chosen."""

import math
from typing import Literal, get_args

import jax
import jax.numpy as jnp

from rlx._checks import check_dtype, check_range, check_shapes, check_whole

from ._chunked import chunked
from ._reference import reference
from ._rules import Inputs, Rules

Implementation = Literal["auto", "reference", "chunked"]


def attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    causal: bool = False,
    window: int | None = None,
    bias: jax.Array | None = None,
    mask: jax.Array | None = None,
    segments: jax.Array | None = None,
    key_segments: jax.Array | None = None,
    sinks: jax.Array | None = None,
    softcap: float | None = None,
    scale: float | None = None,
    offset: int = 0,
    implementation: Implementation = "auto",
    chunk: int = 256,
) -> jax.Array:
    """Exact softmax attention whose memory grows with the length, not with its square.

    o[t] = sum_s w[t, s] v[s],  w[t, s] = exp(z[t, s]) / (exp(sink) + sum_r exp(z[t, r])),
    z = softcap tanh(scale q k^T / softcap) + bias, over the keys that t may see

    A query that may see no key gets zeros, and gives no gradient.

    Args:
      q: `[..., T, H, D]`, floating.
      k: `[..., S, K, D]`; H is a multiple of K, and H / K neighbouring query heads share a key head.
      v: `[..., S, K, E]`.
      causal: whether query t sees only keys up to position `offset + t`.
      window: whether it sees only keys less than so many positions away, itself counted; None is all.
      bias: broadcasts against `[..., H, T, S]`; added after the soft cap. It may hold -inf where nothing is to be
        seen, so any mask can be given as one.
      mask: `[..., S]` bool, false for keys that are padding, whatever they hold.
      segments: `[..., T]` integers; a query sees the keys of its own segment (packed sequences).
      key_segments: `[..., S]`; `segments` if not given and T = S.
      sinks: `[H]`, a logit a head that takes a share of the softmax and has no value.
      softcap: bound of the scores.
      scale: of the scores; 1 / sqrt(D) if None.
      offset: position of the first query, counted from the first key: `S - T` when the last query sees all keys.
      implementation: "reference" holds all scores; "chunked" those of one pair of chunks at a time, backward too, and
        passes over pairs that causality or the window hides; "auto" is "chunked", the only one for every backend.
      chunk: how many queries, and keys, "chunked" takes at a time.

    Returns:
      `[..., T, H, E]` in the dtype of `q`; softmax and sums are in float32 or wider.

    Raises:
      TypeError, ValueError: name the argument whose dtype, shape or value is wrong.
      NotImplementedError: an implementation that is not here, with those that are.

    Example:
      >>> import jax.numpy as jnp
      >>> from rlx.attention import attention
      >>> v = jnp.array([[[1.0]], [[3.0]]])                       # [T, H, E]: the scores are equal, so causal means
      >>> attention(jnp.zeros((2, 1, 4)), jnp.zeros((2, 1, 4)), v, causal=True)[:, 0, 0]
      Array([1., 2.], dtype=float32)

    References:
      Rabe & Staats 2021, "Self-attention does not need O(n^2) memory"; Dao 2023, "FlashAttention-2", algorithms 1
      and 2. Deviation: one scan over pairs of chunks, in XLA. Sinks: Xiao et al. 2023, as in gpt-oss.
    """
    if implementation not in get_args(Implementation):
        known = ", ".join(repr(name) for name in get_args(Implementation))
        raise NotImplementedError(f"implementation: {implementation!r} is not one of {known}")
    check_whole("chunk", chunk, 1)
    check_shapes(q=(q, "*THD"), k=(k, "*SKD"), v=(v, "*SKE"))
    if q.shape[-1] == 0:
        raise ValueError("q: D is 0; scores need at least one feature")
    if math.prod((*q.shape[:-1], v.shape[-1])) == 0 and k.shape[-2] > 0:
        return jnp.zeros_like(q, shape=(*q.shape[:-1], v.shape[-1]))
    inputs, batch = _flat(q, k, v, bias, mask, segments, key_segments, sinks)
    rules = _rules(q.shape[-1], causal, window, softcap, scale, offset)
    out = reference(inputs, rules) if implementation == "reference" else chunked(inputs, rules, chunk=chunk)
    return out.reshape(*batch, *out.shape[1:])


def _rules(
    width: int, causal: bool, window: int | None, softcap: float | None, scale: float | None, offset: int
) -> Rules:
    for name, value in (("scale", scale), ("softcap", softcap), ("window", window), ("offset", offset)):
        if isinstance(value, jax.Array):
            raise TypeError(f"{name}: expected a number of Python, which is fixed; multiply q for a learned scale")
    for name, value in (("window", window), ("offset", offset)):
        if value is not None:
            check_whole(name, value)
    if scale is not None:
        check_range("scale", scale, -math.inf, math.inf, open_low=True, open_high=True)
    if window is not None and window < 1:
        raise ValueError(f"window: {window}; at least 1, the position itself, or None for all")
    if softcap is not None:
        check_range("softcap", softcap, 0.0, math.inf, open_low=True, open_high=True)
    scale = width**-0.5 if scale is None else scale
    return Rules(scale=scale, causal=causal, window=window, softcap=softcap, offset=offset)


def _flat(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    bias: jax.Array | None,
    mask: jax.Array | None,
    segments: jax.Array | None,
    key_segments: jax.Array | None,
    sinks: jax.Array | None,
) -> tuple[Inputs, tuple[int, ...]]:
    """Check the arrays and give them one batch dim."""
    check_dtype("floating", q=q, k=k, v=v)
    sizes = check_shapes(q=(q, "*THD"), k=(k, "*SKD"), v=(v, "*SKE"))
    batch, count = q.shape[:-3], math.prod(q.shape[:-3])
    T, S, H, K = (sizes[letter] for letter in "TSHK")
    for name, other in (("k", k), ("v", v)):
        if other.shape[:-3] != batch:
            raise ValueError(f"{name}: leading dims {other.shape[:-3]} disagree with {batch} of q")
        if other.dtype != q.dtype:
            raise TypeError(f"{name}: dtype {other.dtype} disagrees with {q.dtype} of q; cast one of them")
    if K == 0 or H % K:
        raise ValueError(f"k: {K} heads do not divide the {H} heads of q")
    if segments is None and key_segments is not None:
        raise ValueError("key_segments: needs segments, those of the queries")
    if segments is not None and key_segments is None:
        if T != S:
            raise ValueError(f"key_segments: needed, since T={T} and S={S} differ")
        key_segments = segments
    for name, value, kind, size in (
        ("mask", mask, "boolean", S),
        ("segments", segments, "integer", T),
        ("key_segments", key_segments, "integer", S),
    ):
        if value is not None:
            check_dtype(kind, **{name: value})
            if value.shape != (*batch, size):
                raise ValueError(f"{name}: expected shape {(*batch, size)}, got {value.shape}")
    if sinks is not None:
        check_dtype("floating", sinks=sinks)
        check_shapes(sinks=(sinks, "H"), q=(q, "*THD"))
    if mask is not None:  # a weight of zero would still carry a NaN
        k, v = (jnp.where(mask[..., None, None], x, 0) for x in (k, v))
    return Inputs(
        q.reshape(count, *q.shape[-3:]),
        k.reshape(count, *k.shape[-3:]),
        v.reshape(count, *v.shape[-3:]),
        _bias(bias, batch, (H, T, S)),
        sinks,
        None if segments is None else segments.reshape(count, T),
        None if key_segments is None else key_segments.reshape(count, S),
        None if mask is None else mask.reshape(count, S),
    ), batch


def _bias(bias: jax.Array | None, batch: tuple[int, ...], scores: tuple[int, ...]) -> jax.Array | None:
    """`[B, H, T, S]`, each dim full or 1."""
    if bias is None:
        return None
    check_dtype("floating", bias=bias)
    full = (*batch, *scores)
    shape = (1,) * (len(full) - bias.ndim) + bias.shape
    if len(shape) != len(full) or any(size not in (1, whole) for size, whole in zip(shape, full, strict=True)):
        raise ValueError(f"bias: shape {bias.shape} does not broadcast against [..., H, T, S] = {full}")
    leading = shape[: len(batch)]
    if any(size != 1 for size in leading):
        leading = batch
    bias = jnp.broadcast_to(bias.reshape(shape), (*leading, *shape[len(batch) :]))
    return bias.reshape(math.prod(leading), *shape[len(batch) :])
