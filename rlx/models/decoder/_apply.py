"""Logits of whole sequences."""

import jax
import jax.numpy as jnp

from kernels_pallas import linear_logprob
from rlx import reversible, weights
from rlx._checks import check_dtype, check_shapes
from rlx._numerics import wide

from . import _blocks
from ._blocks import Params
from ._config import Config


def apply(
    params: Params,
    config: Config,
    input_ids: jax.Array,
    *,
    attention_mask: jax.Array | None = None,
    unroll: bool = False,
) -> jax.Array:
    """Logits of the next token at every position.

    Each layer is y1 = x1 + attention(norm(x2)), y2 = x2 + mlp(norm(y1)) with x1 = x2 the
    embedding at the start; the gradient recomputes activations from outputs.

    Args:
      params: from `init`; any weight may be an `rlx.weights` representation.
      config: the sizes.
      input_ids: tokens `[B, T]`, integers in `[0, vocab_size)`; one outside gives NaN logits.
      attention_mask: `[B, T]`, true (or 1) for tokens and false for padding on either side;
        None when there is no padding. Positions count tokens, not padding.
      unroll: run the layers as separate operations, not as a scan, which is what an exporter
        wants that writes each layer's weights. No reversible gradient.

    Returns:
      `[B, T, vocab_size]` float32.

    Raises:
      TypeError: `input_ids` is not an integer array.
      ValueError: the mask has another shape than the tokens.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from rlx.models import decoder
      >>> config = decoder.Config(
      ...     vocab_size=16, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16
      ... )
      >>> decoder.apply(decoder.init(jax.random.key(0), config), config, jnp.array([[1, 2, 3]])).shape
      (1, 3, 16)

    References:
      Vaswani et al. 2017; Zhang & Sennrich 2019 (RMS norm); Shazeer 2020 (gated MLP); Gomez et
      al. 2017 (the coupling).
    """
    return _blocks.head(params, _hidden(params, config, input_ids, attention_mask, unroll))


def token_log_probs(
    params: Params, config: Config, input_ids: jax.Array, *, attention_mask: jax.Array | None = None
) -> jax.Array:
    """Log-probability of each token given those before it; no array of `[B, T, vocab_size]` exists.

    Args:
      params: as for `apply`.
      config: the sizes.
      input_ids: tokens `[B, T]`, T at least 2.
      attention_mask: `[B, T]`, false for padding.

    Returns:
      `[B, T - 1]` float32, in nats: entry t is of token t + 1.

    Raises:
      TypeError: `input_ids` is not an integer array.
      ValueError: the mask has another shape than the tokens.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from rlx.models import decoder
      >>> config = decoder.Config(
      ...     vocab_size=16, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16
      ... )
      >>> params = decoder.init(jax.random.key(0), config)
      >>> decoder.token_log_probs(params, config, jnp.array([[1, 2, 3]])).shape
      (1, 2)
    """
    mask = None if attention_mask is None else attention_mask[:, :-1]
    hidden = _hidden(params, config, input_ids[:, :-1], mask, unroll=False)
    table = weights.dense(params["model"]["embed_tokens"]["weight"])
    out = linear_logprob(hidden.reshape(-1, hidden.shape[-1]), table, input_ids[:, 1:].reshape(-1))
    return out.logp.reshape(hidden.shape[:2])


def _hidden(
    params: Params, config: Config, input_ids: jax.Array, attention_mask: jax.Array | None, unroll: bool
) -> jax.Array:
    """The normed sum of the two streams after the last layer, `[B, T, D]`."""
    check_shapes(input_ids=(input_ids, "BT"))
    check_dtype("integer", input_ids=input_ids)
    batch, length = input_ids.shape
    causal = jnp.tril(jnp.ones((length, length), bool))[None]
    if attention_mask is None:
        positions = jnp.broadcast_to(jnp.arange(length)[None], (batch, length))
        visible = jnp.broadcast_to(causal, (batch, length, length))
    else:
        check_shapes(input_ids=(input_ids, "BT"), attention_mask=(attention_mask, "BT"))
        valid = attention_mask.astype(bool)
        positions = jnp.maximum(jnp.cumsum(valid, axis=1) - 1, 0)
        visible = causal & valid[:, None, :]

    def attention(p: Params, x: jax.Array, key: jax.Array | None) -> jax.Array:
        q, k, v = _blocks.project(p, x, positions, config)
        return _blocks.attend(p, q, [(k, v, visible)])

    def mlp(p: Params, x: jax.Array, key: jax.Array | None) -> jax.Array:
        return _blocks.mlp(p, x, config)

    x = _blocks.embed(params, input_ids)
    blocks = _blocks.halves(params["model"]["layers"])
    if not unroll:
        y1, y2 = reversible.stack(reversible.additive(attention, mlp), blocks, (x, x))
        return _blocks.final_norm(params, y1, y2, config)
    y1 = y2 = x
    for layer in range(config.num_hidden_layers):
        p = jax.tree.map(lambda leaf, index=layer: leaf[index], blocks)
        y1 = y1 + attention(p["f"], y2, None)
        y2 = y2 + mlp(p["g"], y1, None)
    return _blocks.final_norm(params, y1, y2, config)


def log_probs(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Log-probability of each target token, in nats.

    Args:
      logits: `[..., V]`, floating.
      targets: integers `[...]` in `[0, V)`; one outside gives NaN.

    Returns:
      `[...]` float32.

    Raises:
      ValueError: the leading dims disagree.

    Example:
      >>> import jax.numpy as jnp
      >>> log_probs(jnp.zeros((1, 2)), jnp.array([1]))
      Array([-0.6931472], dtype=float32)
    """
    check_dtype("integer", targets=targets)
    if logits.shape[:-1] != targets.shape:
        raise ValueError(f"targets: shape {targets.shape} disagrees with logits of shape {logits.shape}")
    logits = logits.astype(wide(logits.dtype))
    # The gradient of this select is a select; that of a gather is a scatter, which is slow.
    ids = targets[..., None].astype(jnp.int32)
    hit = jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1) == ids
    chosen = jnp.where(jnp.any(hit, axis=-1), jnp.sum(jnp.where(hit, logits, 0), axis=-1), jnp.nan)
    return chosen - jax.nn.logsumexp(logits, axis=-1)
