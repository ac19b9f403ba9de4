"""cuDNN's attention by way of `jax.nn.dot_product_attention`, for what it does without a mask."""

import jax
import jax.numpy as jnp

from kernels_pallas.block_sparse_attention.rules import Inputs, Rules


def refused(x: Inputs, rules: Rules, wants_logsumexp: bool) -> str | None:
    """Why it cannot, or None.

    Padding and segments are refused: with a mask its backward pass has been reported to give NaN (T % 128 = 64, a
    log-sum-exp below -88.7). Where it is asked for, they are computed here instead.
    """
    (length, _, d), (keys, _, e) = x.q.shape[1:], x.v.shape[1:]
    reasons = {
        f"needs a GPU, the backend is {jax.default_backend()}": jax.default_backend() != "gpu",
        f"needs bfloat16 or float16, got {x.q.dtype.name}": x.q.dtype not in (jnp.bfloat16, jnp.float16),
        f"needs heads of at most 256, a multiple of 8, one size for k and v, got D={d} and E={e}": d > 256
        or d % 8
        or d != e,
        "needs a query and a key": not x.q.size or not x.k.size,
        "has no soft cap": rules.softcap is not None,
        "has no sinks here": x.sinks is not None,
        "has no segments or lengths here": x.segments is not None,
        "gives no log-sum-exp with a gradient": wants_logsumexp,
        "has a window only where attention is causal": rules.window is not None and not rules.causal,
        f"is causal here only from position 0 and where T = S, got offset={rules.offset}, T={length}, S={keys}": (
            rules.causal and (rules.offset != 0 or length != keys)
        ),
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


def attend(x: Inputs, rules: Rules) -> jax.Array:
    """The output `[B, T, H, E]`."""
    window = None if rules.window is None else (rules.window - 1, 0)
    return jax.nn.dot_product_attention(
        x.q, x.k, x.v, scale=rules.scale, is_causal=rules.causal, local_window_size=window, implementation="cudnn"
    )
