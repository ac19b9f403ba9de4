"""Choose how to compute it."""

import math
from typing import Any, Literal

import jax

from kernels_pallas._arguments import arrays, check_config, optional
from kernels_pallas._dispatch import choose, needs_hopper

from .config import Config, default_config, recorded
from .reference import BlockSparseAttention, check, check_blocks, flat, reference, rules_of
from .rules import Inputs, Rules
from .xla import Kernel, blocked

Implementation = Literal["auto", "xla", "mosaic_gpu", "reference"]


def block_sparse_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    blocks: Any,
    *,
    block_q: int,
    block_k: int,
    causal: bool = False,
    window: int | None = None,
    offset: int = 0,
    segments: jax.Array | None = None,
    key_segments: jax.Array | None = None,
    lengths: jax.Array | None = None,
    key_lengths: jax.Array | None = None,
    sinks: jax.Array | None = None,
    softcap: float | None = None,
    scale: float | None = None,
    implementation: Implementation = "auto",
    config: Config | None = None,
) -> BlockSparseAttention:
    """Softmax attention of each block of queries to the blocks of keys in its list, and the log-sum-exp.

    y[t] = sum_s exp(z[t, s] - L[t]) v[s],  L[t] = log(exp(sink) + sum_s exp(z[t, s])),
    z = softcap tanh(scale q k^T / softcap), over the keys s that are in the list of t's block and that t may see

    A query that sees no key has y = 0 and L = -inf (or the sink), and gives and gets no gradient from the keys.

    Args:
      q: `[..., T, H, D]`, floating.
      k: `[..., S, K, D]`; H is a multiple of K, and H / K neighbouring query heads share a key head.
      v: `[..., S, K, E]`.
      blocks: `[..., H or K or 1, N, n]` integers: which blocks of keys each of the `N = ceil(T / block_q)` blocks of
        queries attends to, for each query head, each key head or all heads. A number outside `[0, S / block_k)`, as
        -1, is none; one that comes twice counts once. The leading dims are those of q, or none for one list for all.
      block_q, block_k: queries and keys of a block; the last may be shorter.
      causal: whether query t sees only keys up to position `offset + t`.
      window: whether it sees only keys less than so many positions away, itself counted; None is all.
      offset: position of the first query, counted from the first key.
      segments: `[..., T]` integers; a query sees the keys of its own segment, a negative one is padding.
      key_segments: `[..., S]`; `segments` if not given and T = S.
      lengths: `[...]` integers, how many queries of each row are not padding, which may hold anything (NaN too).
      key_lengths: `[...]`, and of keys; `lengths` if not given and T = S.
      sinks: `[H]`, a logit a head that takes a share of the softmax and has no value.
      softcap: bound of the scores.
      scale: of the scores; 1 / sqrt(D) if None.
      implementation: "reference" holds all scores; "xla" those of one block of queries and 256 keys, in the backward
        pass too; "mosaic_gpu" is a kernel for Hopper, backward too where `config.back_groups` is not 0 (else that pass
        is that of "xla"); "auto" is "xla", and the kernel where a recorded run on this kind of device says that it is
        faster.
      config: of "mosaic_gpu"; None is the recorded one, else one by the shapes.

    Returns:
      `BlockSparseAttention(y, logsumexp)`: `[..., T, H, E]` in the dtype of q, and `[..., T, H]` in float32 or wider.
      Both have gradients. Work grows with the longest list of a block of queries, memory with T + S. Sums are in a
      fixed order: no two additions race, forward or backward.

    Raises:
      TypeError, ValueError: name the argument whose dtype, shape or value is wrong.
      NotImplementedError: an implementation that is not here, with those that are; or the kernel cannot run on this
        device, these shapes or dtypes: says why.

    Example:
      >>> import jax.numpy as jnp
      >>> zero, v = jnp.zeros((4, 1, 8)), jnp.arange(4.0).reshape(4, 1, 1)            # [T, H, D], [S, K, E]
      >>> out = block_sparse_attention(zero, zero, v, jnp.array([[[0], [1]]]), block_q=2, block_k=2)
      >>> out.y[:, 0, 0]                                                              # each block its own mean
      Array([0.5, 0.5, 2.5, 2.5], dtype=float32)

    References:
      Dao 2023, "FlashAttention-2", algorithms 1 and 2; Yuan et al. 2025, "Native Sparse Attention" (arXiv 2502.11089),
      section 3.4, for lists shared by the heads of a group. Deviations: a list may be any, so the keys' gradient is
      added list by list; the log-sum-exp is an output with a gradient. Sinks: Xiao et al. 2023, as in gpt-oss.
    """
    q, k, v = arrays(q=q, k=k, v=v)
    segments, key_segments, sinks = optional(segments=segments, key_segments=key_segments, sinks=sinks)
    lengths, key_lengths = optional(lengths=lengths, key_lengths=key_lengths)
    check(q, k, v)
    check_config(config, Config)
    rules = rules_of(q.shape[-1], causal, window, softcap, scale, offset, block_q, block_k)
    lists = check_blocks(blocks, q, k, rules)
    x = flat(q, k, v, lists, segments, key_segments, lengths, key_lengths, sinks)
    chosen = config or default_config(x, rules)
    ways = {"xla": None, "mosaic_gpu": needs_hopper() or chosen.check(x, rules), "reference": None}
    taken, tuned = choose("block_sparse_attention", implementation, ways, shape=sizes(x, rules), dtype=q.dtype)
    out = attend(x, rules, taken, config or recorded(tuned, chosen))
    return BlockSparseAttention(*(leaf.reshape(*q.shape[:-3], *leaf.shape[1:]) for leaf in out))


def sizes(x: Inputs, rules: Rules) -> dict[str, int]:
    """By name, as in the table: `n` is the length of a list."""
    (b, t, h, d), (s, k), n = x.q.shape, x.k.shape[1:3], x.blocks.shape[-1]
    return {"b": b, "t": t, "s": s, "h": h, "k": k, "d": d, "n": n, "block_q": rules.block_q, "block_k": rules.block_k}


def attend(x: Inputs, rules: Rules, taken: str, config: Config) -> BlockSparseAttention:
    """One batch dim, by "reference", "xla" or "mosaic_gpu"."""
    if taken == "reference" or math.prod((*x.q.shape, x.k.shape[1], x.v.shape[-1])) == 0:
        return reference(x, rules)
    return blocked(x, rules, _kernel(config) if taken == "mosaic_gpu" else None)


def _kernel(config: Config) -> Kernel:
    from .mosaic_gpu import Mosaic  # here: Pallas takes a moment to load

    return Mosaic(config)
