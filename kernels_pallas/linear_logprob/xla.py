"""Rows in chunks: the logits of one chunk are all that exists, forward and backward."""

import jax
import jax.numpy as jnp
from jax import lax

from .reference import LinearLogprob, reference


def chunked(hidden: jax.Array, weight: jax.Array, targets: jax.Array, *, rows: int) -> LinearLogprob:
    """`reference` over chunks of `rows` rows; the backward pass computes a chunk's logits again."""
    count = hidden.shape[0]
    rows = max(1, min(rows, count))
    room = -count % rows
    hidden = jnp.pad(hidden, ((0, room), (0, 0))).reshape(-1, rows, hidden.shape[1])
    targets = jnp.pad(targets, (0, room)).reshape(-1, rows)

    @jax.checkpoint
    def one(chunk: tuple[jax.Array, jax.Array]) -> LinearLogprob:
        return reference(chunk[0], weight, chunk[1])

    parts = lax.map(one, (hidden, targets))
    return LinearLogprob(*(part.reshape(-1)[:count] for part in parts))
