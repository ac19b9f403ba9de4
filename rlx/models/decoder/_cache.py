"""The same layers over a key-value cache, for prompts and for one token at a time."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from rlx._checks import check_dtype, check_shapes

from . import _blocks
from ._blocks import Params
from ._config import Config


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Cache:
    """Keys and values of the tokens so far.

    Attributes:
      keys: `[layers, B, S, heads, head_dim]`, rotated.
      values: `[layers, B, S, heads, head_dim]`.
      valid: `[B, S]`, which slots hold a token (not padding, not free).
      length: `[]`, slots used.
    """

    keys: jax.Array
    values: jax.Array
    valid: jax.Array
    length: jax.Array


def empty_cache(config: Config, *, batch: int, slots: int, dtype: Any = jnp.float32) -> Cache:
    """A cache with room for `slots` tokens.

    Example:
      >>> from rlx.models import decoder
      >>> config = decoder.Config(
      ...     vocab_size=16, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16
      ... )
      >>> decoder.empty_cache(config, batch=3, slots=5).keys.shape
      (2, 3, 5, 2, 4)
    """
    shape = (config.num_hidden_layers, batch, slots, config.num_attention_heads, config.head_dim)
    return Cache(
        keys=jnp.zeros(shape, dtype),
        values=jnp.zeros(shape, dtype),
        valid=jnp.zeros((batch, slots), bool),
        length=jnp.zeros((), jnp.int32),
    )


def extend(
    params: Params,
    config: Config,
    input_ids: jax.Array,
    cache: Cache,
    *,
    attention_mask: jax.Array | None = None,
) -> tuple[jax.Array, Cache]:
    """Logits of new tokens given the cached ones, and the cache with them.

    Args:
      params: as for `apply`.
      config: the sizes.
      input_ids: the new tokens `[B, T]`: a whole prompt, or one a sequence.
      cache: from `empty_cache` or an earlier `extend`. Slots past its end are not written: when
        `length + T > slots` the logits are NaN, since they would be wrong.
      attention_mask: `[B, T]` for the new tokens; false for padding.

    Returns:
      `(logits [B, T, vocab_size] float32, cache)`; equal to `apply` on all tokens at once.

    Raises:
      TypeError: `input_ids` is not an integer array.
      ValueError: shapes disagree.
    """
    check_shapes(input_ids=(input_ids, "BT"), valid=(cache.valid, "BS"))
    check_dtype("integer", input_ids=input_ids)
    new = jnp.ones(input_ids.shape, bool) if attention_mask is None else attention_mask.astype(bool)
    check_shapes(input_ids=(input_ids, "BT"), attention_mask=(new, "BT"))
    slots, length = cache.valid.shape[1], input_ids.shape[1]
    if length > slots:
        raise ValueError(f"input_ids: {length} tokens do not fit a cache of {slots} slots")
    before = jnp.sum(cache.valid, axis=1, keepdims=True)
    positions = jnp.maximum(before + jnp.cumsum(new, axis=1) - 1, 0)
    valid = lax.dynamic_update_slice(cache.valid, new, (0, cache.length))
    slot = jnp.arange(slots)[None, None, :]
    visible = valid[:, None, :] & (slot <= (cache.length + jnp.arange(length))[None, :, None])

    def layer(
        state: tuple[jax.Array, jax.Array], inputs: tuple[Params, jax.Array, jax.Array]
    ) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]:
        (x1, x2), (p, keys, values) = state, inputs
        q, k, v = _blocks.project(p["f"], x2, positions, config)
        keys = lax.dynamic_update_slice(keys, k.astype(keys.dtype), (0, cache.length, 0, 0))
        values = lax.dynamic_update_slice(values, v.astype(values.dtype), (0, cache.length, 0, 0))
        y1 = x1 + _blocks.attend(p["f"], q, keys.astype(q.dtype), values.astype(q.dtype), visible)
        y2 = x2 + _blocks.mlp(p["g"], y1, config)
        return (y1, y2), (keys, values)

    x = _blocks.embed(params, input_ids)
    blocks = _blocks.halves(params["model"]["layers"])
    (y1, y2), (keys, values) = lax.scan(layer, (x, x), (blocks, cache.keys, cache.values))
    logits = _blocks.head(params, y1, y2, config)
    logits = jnp.where(cache.length + length > slots, jnp.nan, logits)
    return logits, Cache(keys=keys, values=values, valid=valid, length=cache.length + length)
