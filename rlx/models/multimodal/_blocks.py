"""What the layers over image tokens and over text share."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from rlx import weights
from rlx._names import at
from rlx._numerics import wide
from rlx.models._layers import rms_norm

Params = dict[str, Any]
EPS = 1e-6


def linear(p: Params, name: str, x: jax.Array) -> jax.Array:
    """The linear layer at a dotted name, of rows: the gradient of a product of matrices is twice as fast on a CPU."""
    layer = at(p, name)
    if layer is None:
        raise ValueError(f"params: there is no {name!r}; give all that init makes for this config")
    rows = weights.linear(x.reshape(-1, x.shape[-1]), layer["weight"], layer.get("bias"))
    return rows.reshape(*x.shape[:-1], rows.shape[-1])


def norm(p: Params, name: str, x: jax.Array) -> jax.Array:
    """RMS norm with the gain at a dotted name."""
    return rms_norm(x, at(p, name)["weight"], EPS)


def each_layer(p: Params, count: int) -> Iterator[Params]:
    """The layers of a stack one by one: an exporter writes the weights of each, and a CPU runs them faster."""
    for i in range(count):
        yield jax.tree.map(lambda leaf, i=i: leaf[i], p["layers"])


def split_heads(x: jax.Array, heads: int) -> jax.Array:
    """`[B, T, H D] -> [B, H, T, D]`."""
    return x.reshape(*x.shape[:-1], heads, x.shape[-1] // heads).transpose(0, 2, 1, 3)


def attend(q: jax.Array, k: jax.Array, v: jax.Array, bias: jax.Array | None = None) -> jax.Array:
    """`softmax(q k' / sqrt(D) + bias) v` of `[B, H, T, D]` over `[B, H, S, D]`: `[B, T, H D]`.

    The bias is `[B, H, T, S]`, where B and H may be 1.
    """
    dtype = wide(q.dtype)
    scores = jnp.einsum("bhtd,bhsd->bhts", q, k, preferred_element_type=dtype) * q.shape[-1] ** -0.5
    shares = jax.nn.softmax(scores if bias is None else scores + bias.astype(dtype), axis=-1)
    mixed = jnp.einsum("bhts,bhsd->bhtd", shares.astype(v.dtype), v, preferred_element_type=dtype).astype(q.dtype)
    return mixed.transpose(0, 2, 1, 3).reshape(q.shape[0], q.shape[2], q.shape[1] * q.shape[3])


def mlp(p: Params, x: jax.Array) -> jax.Array:
    """`x + down(gelu(up(norm(x))))`."""
    return x + linear(p, "down_proj", jax.nn.gelu(linear(p, "up_proj", norm(p, "mlp_norm", x))))
