"""The two residual blocks of a layer and what surrounds them."""

from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange

from rlx import weights
from rlx._numerics import wide

from ._config import Config

Params = dict[str, Any]


def rms_norm(x: jax.Array, weight: jax.Array, eps: float) -> jax.Array:
    """`x / sqrt(mean(x²) + eps) * weight` over the last dim, in float32 or wider."""
    y = x.astype(wide(x.dtype))
    scale = jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + eps)
    gain = weight.astype(y.dtype).reshape((1,) * (x.ndim - 1) + weight.shape)
    return (y * scale * gain).astype(x.dtype)


def rotate(x: jax.Array, positions: jax.Array, theta: float) -> jax.Array:
    """Rotary position embedding, first half against second half: `x [B, T, H, D]`, `positions [B, T]`.

    References:
      Su et al. 2021, "RoFormer", equation 34, in the half-split layout of Hugging Face's files.
    """
    half = x.shape[-1] // 2
    frequency = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angle = positions.astype(jnp.float32)[:, :, None, None] * frequency[None, None, None, :]
    dtype = wide(x.dtype)
    cos, sin = jnp.cos(angle).astype(dtype), jnp.sin(angle).astype(dtype)
    first, second = x[..., :half].astype(dtype), x[..., half:].astype(dtype)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x.dtype)


def project(p: Params, x: jax.Array, positions: jax.Array, config: Config) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Queries, keys and values `[B, T, H, D]` of the normed stream; queries and keys are rotated."""
    x = rms_norm(x, p["input_layernorm"]["weight"], config.rms_norm_eps)
    q, k, v = (
        rearrange(
            weights.matmul(x, p["self_attn"][name]["weight"]), "b t (h d) -> b t h d", h=config.num_attention_heads
        )
        for name in ("q_proj", "k_proj", "v_proj")
    )
    return rotate(q, positions, config.rope_theta), rotate(k, positions, config.rope_theta), v


Part = tuple[jax.Array, jax.Array, jax.Array]


def attend(p: Params, q: jax.Array, parts: list[Part]) -> jax.Array:
    """Attention of `q [B, T, H, D]` over keys and values in parts, then the output projection.

    A part is `(keys [B, S, H, D], values [B, S, H, D], visible [B, T, S])`; the softmax, in
    float32 or wider, runs over all of them. So cached and new tokens need not be copied
    together. A query that sees nothing (padding) attends evenly; its result is not used.
    """
    dtype = wide(q.dtype)
    scores = []
    for keys, _, visible in parts:
        product = jnp.einsum("bthd,bshd->bhts", q, keys, preferred_element_type=dtype) * q.shape[-1] ** -0.5
        scores.append(jnp.where(visible[:, None], product, jnp.finfo(dtype).min))
    shares = jax.nn.softmax(jnp.concatenate(scores, axis=-1), axis=-1)
    mixed, start = jnp.zeros((), dtype), 0
    for _, values, visible in parts:
        share = shares[..., start : start + visible.shape[-1]].astype(values.dtype)
        mixed += jnp.einsum("bhts,bshd->bthd", share, values, preferred_element_type=dtype)
        start += visible.shape[-1]
    mixed = rearrange(mixed.astype(q.dtype), "b t h d -> b t (h d)")
    return weights.matmul(mixed, p["self_attn"]["o_proj"]["weight"])


def mlp(p: Params, x: jax.Array, config: Config) -> jax.Array:
    """The gated MLP of the normed stream: `down(silu(gate(x)) * up(x))`."""
    x = rms_norm(x, p["post_attention_layernorm"]["weight"], config.rms_norm_eps)
    gate = weights.matmul(x, p["mlp"]["gate_proj"]["weight"])
    up = weights.matmul(x, p["mlp"]["up_proj"]["weight"])
    return weights.matmul(jax.nn.silu(gate) * up, p["mlp"]["down_proj"]["weight"])


def embed(params: Params, input_ids: jax.Array) -> jax.Array:
    """Token embeddings `[B, T] -> [B, T, D]`."""
    return weights.take(params["model"]["embed_tokens"]["weight"], input_ids)


def final_norm(params: Params, y1: jax.Array, y2: jax.Array, config: Config) -> jax.Array:
    """The two streams' sum, normed: `[B, T, D]`."""
    return rms_norm(y1 + y2, params["model"]["norm"]["weight"], config.rms_norm_eps)


def head(params: Params, hidden: jax.Array) -> jax.Array:
    """Logits in float32 or wider; the head is the embedding."""
    logits = weights.matmul(hidden, params["model"]["embed_tokens"]["weight"])
    return logits.astype(wide(logits.dtype))


def halves(layers: Params) -> dict[str, Params]:
    """A layer's parameters (stacked or one layer's) as the two blocks that `reversible.stack` couples."""
    return {
        "f": {name: layers[name] for name in ("input_layernorm", "self_attn")},
        "g": {name: layers[name] for name in ("post_attention_layernorm", "mlp")},
    }
