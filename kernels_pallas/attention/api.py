"""Choose how to compute it."""

from dataclasses import replace
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kernels_pallas._arguments import arrays, check_config, flag, optional
from kernels_pallas._dispatch import choose, needs_hopper
from kernels_pallas.block_sparse_attention import Config, all_blocks, causal_blocks, window_blocks
from kernels_pallas.block_sparse_attention.api import attend
from kernels_pallas.block_sparse_attention.config import default_config, recorded
from kernels_pallas.block_sparse_attention.reference import check, flat, rules_of
from kernels_pallas.block_sparse_attention.rules import Inputs, Rules

from . import cudnn
from .reference import reference

Implementation = Literal["auto", "xla", "cudnn", "mosaic_gpu", "reference"]
BLOCK = 128
"""Queries and keys of a block of the kernel: two warpgroups, one step."""
XLA_BLOCK = 256


class Attention(NamedTuple):
    """What `attention` returns.

    Attributes:
      y: `[..., T, H, E]`, in the dtype of the queries.
      logsumexp: `[..., T, H]`, log of the softmax's denominator in nats; None unless it is asked for.
    """

    y: jax.Array
    logsumexp: jax.Array | None


def attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
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
    logsumexp: bool = False,
    implementation: Implementation = "auto",
    config: Config | None = None,
) -> Attention:
    """Dense softmax attention, and the log-sum-exp.

    y[t] = sum_s exp(z[t, s] - L[t]) v[s],  L[t] = log(exp(sink) + sum_s exp(z[t, s])),
    z = softcap tanh(scale q k^T / softcap), over the keys s that t may see

    A query that sees no key has y = 0 and L = -inf (or the sink), and gives and gets no gradient from the keys.

    Args:
      q: `[..., T, H, D]`, floating.
      k: `[..., S, K, D]`; H is a multiple of K, and H / K neighbouring query heads share a key head.
      v: `[..., S, K, E]`.
      causal, window, offset, segments, key_segments, lengths, key_lengths, sinks, softcap, scale: as of
        `block_sparse_attention`.
      logsumexp: whether the log-sum-exp is wanted, which has a gradient then.
      implementation: "reference" holds all scores; "xla" those of one block of queries and 256 keys, in the backward
        pass too, and passes over blocks that no query sees; "cudnn" is `jax.nn.dot_product_attention`, for what that
        does without a mask; "mosaic_gpu" is the kernel of `block_sparse_attention`, backward too where
        `config.back_groups` is not 0 (else that pass is that of "xla"). "auto" is "cudnn" on a GPU where it can, else
        "xla"; and the kernel where a recorded run on this kind of device says that it is faster.
      config: of "mosaic_gpu"; None is the recorded one, else one by the shapes.

    Returns:
      `Attention(y, logsumexp)`. Memory grows with T + S.

    Raises:
      TypeError, ValueError: name the argument whose dtype, shape or value is wrong.
      NotImplementedError: an implementation that is not here, with those that are; or it cannot run on this device,
        these shapes, dtypes or rules: says why.

    Example:
      >>> import jax.numpy as jnp
      >>> v = jnp.array([[[1.0]], [[3.0]]])                        # [T, H, E]: the scores are equal, so causal means
      >>> attention(jnp.zeros((2, 1, 4)), jnp.zeros((2, 1, 4)), v, causal=True).y[:, 0, 0]
      Array([1., 2.], dtype=float32)

    References:
      Dao 2023, "FlashAttention-2", algorithms 1 and 2; Shah et al. 2024, "FlashAttention-3" (arXiv 2407.08608),
      section 3.1, for the warpgroups that take turns. Deviation: the log-sum-exp is an output with a gradient.
    """
    q, k, v = arrays(q=q, k=k, v=v)
    segments, key_segments, sinks = optional(segments=segments, key_segments=key_segments, sinks=sinks)
    lengths, key_lengths = optional(lengths=lengths, key_lengths=key_lengths)
    check(q, k, v)
    check_config(config, Config)
    logsumexp = flag("logsumexp", logsumexp)
    rules = rules_of(q.shape[-1], causal, window, softcap, scale, offset, BLOCK, BLOCK)
    none = jnp.full((1, 1, 1, 1), -1, jnp.int32)
    x = flat(q, k, v, none, segments, key_segments, lengths, key_lengths, sinks)
    chosen = config or default_config(x, rules)
    ways = {
        "xla": None,
        "cudnn": cudnn.refused(x, rules, logsumexp),
        "mosaic_gpu": needs_hopper() or chosen.check(x, rules),
        "reference": None,
    }
    otherwise = "cudnn" if ways["cudnn"] is None else "xla"
    taken, tuned = choose("attention", implementation, ways, shape=sizes(x, rules), dtype=q.dtype, otherwise=otherwise)
    if taken == "cudnn":
        return Attention(cudnn.attend(x, rules).reshape(*q.shape[:-1], v.shape[-1]), None)
    if taken == "reference":
        out = reference(x, rules)
    else:
        if taken == "xla":
            rules = replace(rules, block_q=XLA_BLOCK, block_k=XLA_BLOCK)
        out = attend(x._replace(blocks=lists(x, rules)), rules, taken, config or recorded(tuned, chosen))
    y, total = (leaf.reshape(*q.shape[:-3], *leaf.shape[1:]) for leaf in out)
    return Attention(y, total if logsumexp else None)


def lists(x: Inputs, rules: Rules) -> jax.Array:
    """The blocks that some query of a block sees by position, `[1, 1, N, n]`."""
    length, keys = x.q.shape[1], x.k.shape[1]
    blocks = {"block_q": rules.block_q, "block_k": rules.block_k}
    if rules.window is not None:
        found = window_blocks(length, keys, **blocks, window=rules.window, causal=rules.causal, offset=rules.offset)
    elif rules.causal:
        found = causal_blocks(length, keys, **blocks, offset=rules.offset)
    else:
        found = all_blocks(length, keys, **blocks)
    if not found.shape[-1]:  # no query sees a key: a list has one place at least
        found = np.full((*found.shape[:-1], 1), -1, np.int32)
    return jnp.asarray(found)[None]


def sizes(x: Inputs, rules: Rules) -> dict[str, int]:
    """By name, as in the table.

    `seen` is how many keys a query sees at most, halved where half are later; `capped` is 2 with a soft cap.
    """
    (b, t, h, d), (s, k) = x.q.shape, x.k.shape[1:3]
    seen = s if rules.window is None else min(s, rules.window)
    found = {"b": b, "t": t, "s": s, "h": h, "k": k, "d": d, "seen": -(-seen // 2) if rules.causal else seen}
    return found | {"capped": 1 if rules.softcap is None else 2}
