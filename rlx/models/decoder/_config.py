"""The decoder's configuration and its parameters at the start."""

from dataclasses import dataclass, fields
from typing import Any

import jax
import jax.numpy as jnp

from rlx._tree import key_at


@dataclass(frozen=True, kw_only=True)
class Config:
    """Sizes of a decoder; the names are Hugging Face's.

    Attributes:
      vocab_size: number of tokens.
      hidden_size: width of each of the two streams.
      num_hidden_layers: depth.
      num_attention_heads: heads; each has `hidden_size / num_attention_heads` dims, an even number.
      intermediate_size: inner width of the gated MLP.
      rope_theta: base of the rotary frequencies.
      rms_norm_eps: added to the mean square in the norms.
      initializer_range: standard deviation of the embedding; projections use 1/sqrt(inputs).

    Raises:
      ValueError: a size is not positive, or the width does not divide by the heads.
    """

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    rope_theta: float = 10_000.0
    rms_norm_eps: float = 1e-6
    initializer_range: float = 0.02

    def __post_init__(self) -> None:
        for field in fields(self):
            if not getattr(self, field.name) > 0:
                raise ValueError(f"{field.name}: must be positive, got {getattr(self, field.name)}")
        if self.hidden_size % (2 * self.num_attention_heads):
            heads, width = self.num_attention_heads, self.hidden_size
            raise ValueError(f"num_attention_heads: hidden_size={width} must divide by twice the {heads} heads")

    @property
    def head_dim(self) -> int:
        """Dims of one head."""
        return self.hidden_size // self.num_attention_heads


def init(key: jax.Array, config: Config) -> dict[str, Any]:
    """Random parameters.

    Projections are drawn with standard deviation 1/sqrt(inputs), the two that end a residual
    branch are divided by sqrt(2 layers), norms start at 1.

    Args:
      key: a random key; each leaf's own is folded in from its path.
      config: the sizes.

    Returns:
      A nested dict of float32 arrays; `params["model"]["layers"]` has the layers on axis 0.

    Example:
      >>> import jax
      >>> from rlx.models import decoder
      >>> config = decoder.Config(
      ...     vocab_size=16, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16
      ... )
      >>> decoder.init(jax.random.key(0), config)["model"]["layers"]["self_attn"]["q_proj"]["weight"].shape
      (2, 8, 8)
    """
    width, inner, depth = config.hidden_size, config.intermediate_size, config.num_hidden_layers

    def linear(path: str, outputs: int, inputs: int, *, scale: float = 1.0) -> dict[str, jax.Array]:
        draw = jax.random.normal(key_at(key, path), (depth, outputs, inputs), jnp.float32)
        return {"weight": draw * (scale / inputs**0.5)}

    def norm() -> dict[str, jax.Array]:
        return {"weight": jnp.ones((depth, width), jnp.float32)}

    last = (2 * depth) ** -0.5
    embedding = jax.random.normal(key_at(key, "model.embed_tokens"), (config.vocab_size, width), jnp.float32)
    return {
        "model": {
            "embed_tokens": {"weight": embedding * config.initializer_range},
            "layers": {
                "input_layernorm": norm(),
                "self_attn": {
                    "q_proj": linear("q_proj", width, width),
                    "k_proj": linear("k_proj", width, width),
                    "v_proj": linear("v_proj", width, width),
                    "o_proj": linear("o_proj", width, width, scale=last),
                },
                "post_attention_layernorm": norm(),
                "mlp": {
                    "gate_proj": linear("gate_proj", inner, width),
                    "up_proj": linear("up_proj", inner, width),
                    "down_proj": linear("down_proj", width, inner, scale=last),
                },
            },
            "norm": {"weight": jnp.ones((width,), jnp.float32)},
        }
    }
