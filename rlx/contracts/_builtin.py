"""Terms that contract files can name; a file cannot hold code."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from ._terms import Batch, register


@register("rlx.signal@1")
def signal(batch: Batch, *, signal: str) -> jax.Array:
    """A signal as it is: a score that was computed elsewhere, `[B]` or, token by token, `[B, T]`."""
    return batch[signal]


@register("rlx.length_share@1")
def length_share(batch: Batch) -> jax.Array:
    """The share of the room for a text that it fills, `[B]` in [0, 1]."""
    mask = batch["mask"].astype(jnp.float32)
    return jnp.clip(jnp.sum(mask, axis=1) / mask.shape[1], 0.0, 1.0)


@register("rlx.contains@1")
def contains(batch: Batch, *, tokens: Sequence[int]) -> jax.Array:
    """1 for a text with any of these tokens, else 0: `[B]`."""
    return jnp.any(_among(batch["tokens"], tokens) & batch["mask"].astype(jnp.bool_), axis=1).astype(jnp.float32)


@register("rlx.token_is@1")
def token_is(batch: Batch, *, tokens: Sequence[int]) -> jax.Array:
    """1 where the token is one of these, else 0: `[B, T]`."""
    return _among(batch["tokens"], tokens).astype(jnp.float32)


@register("rlx.probability@1")
def probability(batch: Batch, *, signal: str = "ref_logp") -> jax.Array:
    """The geometric mean of the tokens' probabilities, `[B]` in [0, 1], from log-probabilities in nats."""
    mask = batch["mask"].astype(jnp.float32)
    total = jnp.sum(jnp.where(mask > 0, batch[signal], 0.0), axis=1)
    return jnp.clip(jnp.exp(total / jnp.maximum(jnp.sum(mask, axis=1), 1.0)), 0.0, 1.0)


def _among(ids: jax.Array, tokens: Sequence[int]) -> jax.Array:
    found = jnp.zeros(ids.shape, jnp.bool_)
    for token in tokens:
        found = found | (ids == jnp.asarray(token, ids.dtype))
    return found
