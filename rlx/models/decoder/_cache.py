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
from ._views import Views


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Cache:
    """Keys and values of the tokens so far.

    Attributes:
      keys: `[layers, B, S, key heads, head_dim]`, rotated.
      values: `[layers, B, S, key heads, head_dim]`.
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
    shape = (config.num_hidden_layers, batch, slots, config.kv_heads, config.width)
    return Cache(
        keys=jnp.zeros(shape, dtype),
        values=jnp.zeros(shape, dtype),
        valid=jnp.zeros((batch, slots), bool),
        length=jnp.zeros((), jnp.int32),
    )


def prefill(
    params: Params,
    config: Config,
    input_ids: jax.Array,
    *,
    slots: int,
    attention_mask: jax.Array | None = None,
    dtype: Any = jnp.float32,
    unroll: bool = False,
) -> tuple[jax.Array, Cache]:
    """Logits of prompts, and a cache that holds them: `extend` of an empty cache, which is not attended to.

    Args:
      params: as for `apply`.
      config: the sizes.
      input_ids: prompts `[B, P]`.
      slots: tokens that the cache has room for, at least P.
      attention_mask: `[B, P]`; false for padding.
      dtype: of the cache.
      unroll: as for `apply`.

    Returns:
      `(logits [B, P, vocab_size] float32, cache)`.

    Raises:
      TypeError: `input_ids` is not an integer array.
      ValueError: shapes disagree, or the prompts do not fit.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from rlx.models import decoder
      >>> config = decoder.Config(
      ...     vocab_size=16, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16
      ... )
      >>> params = decoder.init(jax.random.key(0), config)
      >>> _, cache = decoder.prefill(params, config, jnp.array([[1, 2, 3]]), slots=8)
      >>> logits, cache = decoder.extend(params, config, jnp.array([[4]]), cache)
      >>> logits.shape, int(cache.length)
      ((1, 1, 16), 4)
    """
    check_shapes(input_ids=(input_ids, "BP"))
    cache = empty_cache(config, batch=input_ids.shape[0], slots=slots, dtype=dtype)
    return _continue(params, config, input_ids, cache, attention_mask, empty=True, unroll=unroll)


def extend(
    params: Params,
    config: Config,
    input_ids: jax.Array,
    cache: Cache,
    *,
    attention_mask: jax.Array | None = None,
    unroll: bool = False,
) -> tuple[jax.Array, Cache]:
    """Logits of new tokens given the cached ones, and the cache with them.

    Args:
      params: as for `apply`.
      config: the sizes.
      input_ids: the new tokens `[B, T]`; one a sequence when sampling.
      cache: from `prefill`, `empty_cache` or an earlier `extend`. Slots past its end are not
        written: when `length + T > slots` the logits are NaN, since they would be wrong.
      attention_mask: `[B, T]` for the new tokens; false for padding.
      unroll: as for `apply`; what an exporter wants that writes each layer's weights.

    Returns:
      `(logits [B, T, vocab_size] float32, cache)`; equal to `apply` on all tokens at once.

    Raises:
      TypeError: `input_ids` is not an integer array.
      ValueError: shapes disagree, or the tokens do not fit.
    """
    return _continue(params, config, input_ids, cache, attention_mask, empty=False, unroll=unroll)


def _continue(
    params: Params,
    config: Config,
    input_ids: jax.Array,
    cache: Cache,
    attention_mask: jax.Array | None,
    *,
    empty: bool,
    unroll: bool,
) -> tuple[jax.Array, Cache]:
    check_shapes(input_ids=(input_ids, "BT"), valid=(cache.valid, "BS"))
    check_dtype("integer", input_ids=input_ids)
    new = jnp.ones(input_ids.shape, bool) if attention_mask is None else attention_mask.astype(bool)
    check_shapes(input_ids=(input_ids, "BT"), attention_mask=(new, "BT"))
    slots, length = cache.valid.shape[1], input_ids.shape[1]
    if length > slots:
        raise ValueError(f"input_ids: {length} tokens do not fit a cache of {slots} slots")
    before = jnp.sum(cache.valid, axis=1, keepdims=True)
    positions = jnp.maximum(before + jnp.cumsum(new, axis=1) - 1, 0)
    slot_positions = jnp.maximum(jnp.cumsum(cache.valid, axis=1) - 1, 0)
    cached = jnp.broadcast_to(cache.valid[:, None, :], (input_ids.shape[0], length, slots))
    causal = jnp.tril(jnp.ones((length, length), bool))[None] & new[:, None, :]
    old_views = Views(config, positions, slot_positions, cached)
    new_views = Views(config, positions, positions, causal)
    plain = config.residual == "plain"

    def layer(
        state: tuple[jax.Array, jax.Array], inputs: tuple[Params, jax.Array, jax.Array, Any]
    ) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]:
        (x1, x2), (p, keys, values, local) = state, inputs
        local = local if config.mixed else config.sliding[0]
        turn, seen = new_views.of(local)
        q, k, v = _blocks.project(p, x2, turn, config)
        past = [] if empty else [(keys.astype(q.dtype), values.astype(q.dtype), old_views.of(local)[1])]
        y1 = x1 + _blocks.attention(p, q, [*past, (k, v, seen)], config)
        y2 = (y1 if plain else x2) + _blocks.mlp(p, y1, config)
        return (y2 if plain else y1, y2), (k.astype(keys.dtype), v.astype(values.dtype))

    x = _blocks.embed(params, input_ids, positions, config)
    stacked = _blocks.layers(params, config), cache.keys, cache.values
    if unroll:
        state, new_ones = (x, x), []
        for index, local in enumerate(config.sliding):
            state, one = layer(state, (*jax.tree.map(lambda leaf, index=index: leaf[index], stacked), local))
            new_ones.append(one)
        (y1, y2), k, v = state, *(jnp.stack(parts) for parts in zip(*new_ones, strict=True))
    else:
        (y1, y2), (k, v) = lax.scan(layer, (x, x), (*stacked, jnp.array(config.sliding)))
    logits = _blocks.head(params, _blocks.final_norm(params, y2 if plain else y1 + y2, config), config)
    logits = jnp.where(cache.length + length > slots, jnp.nan, logits)
    at = (0, 0, cache.length, 0, 0)
    return logits, Cache(
        keys=lax.dynamic_update_slice(cache.keys, k, at),
        values=lax.dynamic_update_slice(cache.values, v, at),
        valid=lax.dynamic_update_slice(cache.valid, new, (0, cache.length)),
        length=cache.length + length,
    )
