"""A function of tokens, a chunk of them at a time."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from rlx._checks import check_dtype, check_whole


def in_chunks(fn: Callable[[Any, jax.Array], jax.Array], params: Any, x: jax.Array, *, size: int) -> jax.Array:
    """`fn(params, x)` for a function of each token alone, such as an MLP, whose insides are never there for all tokens.

    The backward pass computes a chunk's insides again. For the loss of a vocabulary head,
    `kernels_pallas.linear_logprob` does the same.

    Args:
      fn: `fn(params, x [N, D]) -> [N, E]`, each row from its row alone.
      params: what it needs; gradients are summed over the chunks in the parameters' dtypes, so keep them in float32
        and cast in `fn`.
      x: `[..., D]`.
      size: tokens of a chunk.

    Returns:
      `[..., E]`.

    Raises:
      ValueError: size is less than 1.

    Example:
      >>> import jax.numpy as jnp
      >>> x = jnp.arange(10.0).reshape(5, 2)
      >>> bool(jnp.all(in_chunks(lambda p, x: p * x, jnp.array(3.0), x, size=2) == 3 * x))
      True

    References:
      Kitaev et al. 2020, "Reformer", section 3 (chunked feed-forward layers).
    """
    check_dtype("numeric", x=x)
    if x.ndim < 2:
        raise ValueError(f"x: expected dims [..., D] with tokens before D, got shape {x.shape}")
    check_whole("size", size, 1)
    rows = x.reshape(-1, x.shape[-1])
    whole = len(rows) // size * size
    piece = jax.ShapeDtypeStruct((min(size, len(rows)), x.shape[-1]), x.dtype)
    out = jax.eval_shape(fn, params, piece)
    if not hasattr(out, "shape") or out.shape[:1] != piece.shape[:1]:
        raise ValueError(f"fn: {piece.shape[0]} rows must give as many, got {out}")
    parts = []
    if whole:
        some = lax.map(lambda piece: jax.checkpoint(fn)(params, piece), rows[:whole].reshape(-1, size, x.shape[-1]))
        parts.append(some.reshape(whole, *some.shape[2:]))
    if whole < len(rows) or not whole:
        parts.append(jax.checkpoint(fn)(params, rows[whole:]))
    y = jnp.concatenate(parts) if len(parts) > 1 else parts[0]
    return y.reshape(*x.shape[:-1], *y.shape[1:])
