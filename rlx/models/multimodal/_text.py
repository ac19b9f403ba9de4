"""Text alone, text that looks at an image, and generation with a cache."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rlx import weights
from rlx._checks import check_dtype, check_shapes
from rlx._numerics import wide

from ._blocks import Params, attend, each_layer, linear, mlp, norm, split_heads
from ._config import Config
from ._parameters import check
from ._vision import unit

_HIDDEN = np.float32(-1e9)
# What text that looks at an image goes through.
_TOLD = r"embed_tokens|position_embedding|text\.layers|decoder|lm_head"


class Cache(NamedTuple):
    """Keys and values, `[layers, B, H, T, D / H]`: of an image from `memory`, of the text so far from `prefill`."""

    keys: Any
    values: Any


def embed_text(params: Params, config: Config, input_ids: jax.Array, lengths: jax.Array) -> jax.Array:
    """Texts as unit vectors, read from their last token by the layers that see no image.

    Args:
      params: from `init`.
      config: the sizes.
      input_ids: `[B, T]` integers; what is after the length does not count, whatever it is.
      lengths: `[B]` integers from 1 to T; another gives NaN.

    Returns:
      `[B, E]` float32.

    Raises:
      TypeError: ids or lengths are not integers.
      ValueError: the text is longer than `config.max_length`, another batch of lengths, or parameters of another
        config.
    """
    check(params, config, r"text")
    ids = _within(input_ids, lengths)
    x = _run(params, config, _start(params, config, ids), None, None)[0]
    found = unit(linear(params, "text_projection", norm(params["text"], "norm", _last(x, lengths))))
    return _nan_outside(found, lengths, input_ids.shape[1])


def memory(params: Params, config: Config, tokens: jax.Array) -> Cache:
    """What every decoder layer looks at in an image: keys and values `[layers, B, H, N, D / H]` of its tokens."""
    check_shapes(tokens=(tokens, "BND"))
    check_dtype("floating", tokens=tokens)
    check(params, config, r"decoder\.layers")
    pairs = []
    for p in each_layer(params["decoder"], config.decoder_layers) if config.decoder_layers else ():
        k, v = jnp.split(linear(p, "cross_kv_proj", tokens), 2, axis=-1)
        pairs.append((split_heads(k, config.num_attention_heads), split_heads(v, config.num_attention_heads)))
    return _stacked(pairs, config, tokens)


def apply(params: Params, config: Config, seen: Cache, input_ids: jax.Array) -> jax.Array:
    """Logits of the next token at every position of a text about an image.

    Args:
      params: from `init`.
      config: the sizes.
      seen: from `memory`, for as many images as there are texts.
      input_ids: `[B, T]` integers in `[0, vocab_size)`; one outside gives NaN. T at most `max_length`.

    Returns:
      `[B, T, vocab_size]` float32.

    Raises:
      TypeError: ids are not integers.
      ValueError: another batch, a text that is too long, or what is seen or the parameters are of another config.

    References:
      Yu et al. 2022, "CoCa": layers over text alone give the vector that is contrasted, those after them look at
      the image. Deviations: the vector is read from the last token of the text, not from one that is added.
    """
    _check_cache("seen", seen, config, config.decoder_layers, input_ids=(input_ids, "BT"))
    x, _ = _run(params, config, _start(params, config, input_ids), seen, None)
    return _logits(params, x)


def prefill(
    params: Params, config: Config, seen: Cache, input_ids: jax.Array, lengths: jax.Array
) -> tuple[jax.Array, Cache]:
    """Begin to generate: the logits after a prompt, and the cache.

    Args:
      params: from `init`.
      config: the sizes.
      seen: from `memory`.
      input_ids: `[B, T]` integers, padded at the end with whatever it is.
      lengths: `[B]` integers from 1 to T; another gives NaN.

    Returns:
      Logits `[B, vocab_size]` after the last token of each prompt, and a `Cache`. `step` goes on at
      position `lengths`.

    Raises:
      TypeError: ids or lengths are not integers.
      ValueError: a prompt that is too long, another batch, or what is seen or the parameters are of another config.
    """
    ids = _within(input_ids, lengths)
    _check_cache("seen", seen, config, config.decoder_layers, input_ids=(input_ids, "BT"))
    x, cache = _run(params, config, _start(params, config, ids), seen, None)
    logits = _nan_outside(_logits(params, _last(x, lengths)), lengths, input_ids.shape[1])
    room = ((0, 0), (0, 0), (0, 0), (0, config.max_length - input_ids.shape[1]), (0, 0))
    return logits, Cache(*(jnp.pad(leaf, room) for leaf in cache))


def step(
    params: Params, config: Config, seen: Cache, cache: Cache, token: jax.Array, position: jax.Array
) -> tuple[jax.Array, Cache]:
    """One more token.

    Args:
      params: from `init`.
      config: the sizes.
      seen: from `memory`.
      cache: from `prefill` or the last step.
      token: `[B]` integers.
      position: `[B]` integers: where the token stands, counted from 0; one outside `max_length` gives NaN.

    Returns:
      Logits `[B, vocab_size]` of the token after it, and the cache with it.

    Raises:
      TypeError: token or position is not an integer.
      ValueError: another batch, or what is seen, the cache or the parameters are of another config.
    """
    check_shapes(token=(token, "B"), position=(position, "B"))
    check_dtype("integer", token=token, position=position)
    _check_cache("seen", seen, config, config.decoder_layers, token=(token, "B"))
    layers = config.text_layers + config.decoder_layers
    _check_cache("cache", cache, config, layers, length=config.max_length, token=(token, "B"))
    token, position = token.astype(jnp.int32), position.astype(jnp.int32)
    x, cache = _run(params, config, _embed(params, token, position)[:, None], seen, (cache, position))
    return _logits(params, x[:, 0]), cache


def _within(input_ids: jax.Array, lengths: jax.Array) -> jax.Array:
    """The ids with token 0 after each text: a padding that is no token would be NaN, and NaN times 0 is one too."""
    check_shapes(input_ids=(input_ids, "BT"), lengths=(lengths, "B"))
    check_dtype("integer", input_ids=input_ids, lengths=lengths)
    inside = jnp.arange(input_ids.shape[1])[None] < lengths.astype(jnp.int32)[:, None]
    return jnp.where(inside, input_ids.astype(jnp.int32), 0)


def _last(x: jax.Array, lengths: jax.Array) -> jax.Array:
    """`[B, T, D] -> [B, D]`: the last of each text."""
    last = jnp.arange(x.shape[1])[None] == (lengths.astype(jnp.int32)[:, None] - 1)
    return jnp.einsum("bt,btd->bd", last.astype(x.dtype), x)


def _nan_outside(x: jax.Array, lengths: jax.Array, most: int) -> jax.Array:
    """`[B, D]`, NaN where a length is not from 1 to `most`: here, since int8 products make numbers of a NaN."""
    lengths = lengths.astype(jnp.int32)
    return jnp.where(((lengths >= 1) & (lengths <= most))[:, None], x, jnp.full_like(x, jnp.nan))


def _check_cache(
    name: str, cache: Any, config: Config, layers: int, *, length: int | None = None, **beside: tuple[Any, str]
) -> None:
    """Check keys and values: `[layers, B, H, N, D / H]` of this config and of the batch of what is beside them.

    N is any where no length is given.
    """
    if not isinstance(cache, Cache):
        origin = "`memory`" if name == "seen" else "`prefill` or `step`"
        raise TypeError(f"{name}: expected the Cache that {origin} returns, got {type(cache).__name__}")
    keys: Any = cache.keys
    check_shapes(**{f"{name}.keys": (keys, "LBHND"), f"{name}.values": (cache.values, "LBHND")}, **beside)
    heads, width = config.num_attention_heads, config.hidden_size // config.num_attention_heads
    expected = (layers, keys.shape[1], heads, keys.shape[3] if length is None else length, width)
    if tuple(keys.shape) != expected:
        raise ValueError(f"{name}: expected keys and values {expected} of this config, got {tuple(keys.shape)}")


def _stacked(pairs: list[tuple[jax.Array, jax.Array]], config: Config, x: jax.Array) -> Cache:
    """The keys and values of each layer, of `x` `[B, T, D]`; arrays of no layers, where there are none."""
    if not pairs:
        heads = config.num_attention_heads
        none = jnp.zeros((0, x.shape[0], heads, x.shape[1], config.hidden_size // heads), x.dtype)
        return Cache(none, none)
    return Cache(keys=jnp.stack([k for k, _ in pairs]), values=jnp.stack([v for _, v in pairs]))


def _logits(params: Params, x: jax.Array) -> jax.Array:
    logits = linear(params, "lm_head", norm(params["decoder"], "norm", x))
    return logits.astype(wide(logits.dtype))


def _embed(params: Params, ids: jax.Array, position: jax.Array) -> jax.Array:
    x = weights.take(params["embed_tokens"]["weight"], ids)
    place = weights.take(params["position_embedding"]["weight"], position).astype(x.dtype)
    return x + place.reshape((1,) * (x.ndim - place.ndim) + place.shape)


def _start(params: Params, config: Config, input_ids: jax.Array) -> jax.Array:
    check_shapes(input_ids=(input_ids, "BT"))
    check_dtype("integer", input_ids=input_ids)
    check(params, config, r"embed_tokens|position_embedding|text\.layers")
    length = input_ids.shape[1]
    if not 1 <= length <= config.max_length:
        raise ValueError(f"input_ids: a text has 1 to {config.max_length} tokens (max_length), got {length}")
    return _embed(params, input_ids, jnp.arange(length))


def _run(
    params: Params, config: Config, x: jax.Array, seen: Cache | None, past: tuple[Cache, jax.Array] | None
) -> tuple[jax.Array, Cache]:
    """Through the text layers, and the decoder's where there is an image."""
    if seen is not None:
        check(params, config, _TOLD)
    heads, length = config.num_attention_heads, x.shape[1]
    layers = list(each_layer(params["text"], config.text_layers)) if config.text_layers else []
    if seen is not None and config.decoder_layers:
        layers += each_layer(params["decoder"], config.decoder_layers)
    if past is None:
        bias = jnp.where(np.tril(np.ones((length, length), bool)), np.float32(0), _HIDDEN)[None, None]
    else:
        bias = jnp.where(jnp.arange(config.max_length)[None] <= past[1][:, None], np.float32(0), _HIDDEN)[:, None, None]
    found = []
    for i, p in enumerate(layers):
        q, k, v = (split_heads(y, heads) for y in jnp.split(linear(p, "qkv_proj", norm(p, "attention_norm", x)), 3, -1))
        if past is not None:
            here = (jnp.arange(config.max_length)[None] == past[1][:, None])[:, None, :, None]
            k, v = jnp.where(here, k, past[0].keys[i]), jnp.where(here, v, past[0].values[i])
        found.append((k, v))
        x = x + linear(p, "o_proj", attend(q, k, v, bias))
        if seen is not None and i >= config.text_layers:
            q = split_heads(linear(p, "cross_q_proj", norm(p, "cross_norm", x)), heads)
            j = i - config.text_layers
            x = x + linear(p, "cross_o_proj", attend(q, seen.keys[j], seen.values[j]))
        x = mlp(p, x)
    return x, _stacked(found, config, x)
