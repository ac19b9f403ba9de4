"""The definition: all logits at once, in float32."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from kernels_pallas._arguments import check_bits, check_dtypes


class LinearLogprob(NamedTuple):
    """What `linear_logprob` returns, each `[N]` float32 (float64 for float64 inputs), in nats.

    Attributes:
      logp: log-probability of the target.
      entropy: entropy of the distribution.
      logsumexp: log of the sum of exponentiated logits.
    """

    logp: jax.Array
    entropy: jax.Array
    logsumexp: jax.Array


def check(hidden: jax.Array, weight: jax.Array, targets: jax.Array) -> None:
    """Check shapes and dtypes; the errors name the argument."""
    for name, value, dims in (("hidden", hidden, "[N, D]"), ("weight", weight, "[V, D]")):
        if value.ndim != 2:
            raise ValueError(f"{name}: expected dims {dims}, got shape {value.shape}")
        if not jnp.issubdtype(value.dtype, jnp.floating):
            raise TypeError(f"{name}: expected a floating dtype, got {value.dtype}")
    check_dtypes(hidden=hidden, weight=weight)
    check_bits(hidden=hidden, weight=weight)
    if not len(weight):
        raise ValueError(f"weight: expected dims [V, D] with a word or more, got shape {weight.shape}")
    if hidden.shape[1] != weight.shape[1]:
        raise ValueError(f"weight: dim D={weight.shape[1]} disagrees with D={hidden.shape[1]} of hidden")
    if targets.shape != hidden.shape[:1]:
        raise ValueError(f"targets: expected shape {hidden.shape[:1]}, one a row of hidden, got {targets.shape}")
    if not jnp.issubdtype(targets.dtype, jnp.integer):
        raise TypeError(f"targets: expected an integer dtype, got {targets.dtype}")


def reference(hidden: jax.Array, weight: jax.Array, targets: jax.Array) -> LinearLogprob:
    """`logits = hidden @ weight.T`; then each quantity from its formula."""
    dtype = np.result_type(np.float32, hidden.dtype, weight.dtype)
    common = np.result_type(hidden.dtype, weight.dtype)
    dims = (((1,), (1,)), ((), ()))
    logits = lax.dot_general(hidden.astype(common), weight.astype(common), dims, preferred_element_type=dtype)
    total = jax.nn.logsumexp(logits, axis=1)
    hit = lax.broadcasted_iota(jnp.int32, logits.shape, 1) == targets[:, None]
    inside = (targets >= 0) & (targets < weight.shape[0])
    chosen = jnp.where(inside, jnp.sum(jnp.where(hit, logits, 0), axis=1), jnp.nan)
    logp = logits - total[:, None]
    return LinearLogprob(chosen - total, -jnp.sum(jnp.exp(logp) * logp, axis=1), total)
