"""The parameters: nested dicts by dotted names, repeated layers stacked on axis 0."""

import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rlx._names import at, nest
from rlx._tree import key_at

from ._config import Config


def shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter by its path."""
    C, D, M = config.stem_size, config.hidden_size, config.intermediate_size
    found: dict[str, tuple[int, ...]] = {
        "vision.patch_embed.weight": (C, 4 * config.patch**2),
        "vision.patch_embed.bias": (C,),
    }
    stem = config.stem_layers
    if stem:
        found |= {
            "vision.stem.layers.neighbours": (stem, 3, 3, C),
            "vision.stem.layers.norm.weight": (stem, C),
            "vision.stem.layers.up_proj.weight": (stem, config.stem_expansion * C, C),
            "vision.stem.layers.down_proj.weight": (stem, C, config.stem_expansion * C),
        }
    for name, image in config.images:
        found[f"vision.merge.{name}.weight"] = (D, math.prod(image.merge) * C)
        found[f"vision.position.{name}"] = (math.prod(config.tokens(name)), D)

    def layers(prefix: str, count: int, *, nearness: bool = False, cross: bool = False) -> None:
        if not count:
            return
        found[f"{prefix}.attention_norm.weight"] = (count, D)
        found[f"{prefix}.qkv_proj.weight"] = (count, 3 * D, D)
        found[f"{prefix}.o_proj.weight"] = (count, D, D)
        if nearness:
            found[f"{prefix}.nearness"] = (count, config.num_attention_heads)
        if cross:
            found[f"{prefix}.cross_norm.weight"] = (count, D)
            found[f"{prefix}.cross_q_proj.weight"] = (count, D, D)
            found[f"{prefix}.cross_kv_proj.weight"] = (count, 2 * D, D)
            found[f"{prefix}.cross_o_proj.weight"] = (count, D, D)
        found[f"{prefix}.mlp_norm.weight"] = (count, D)
        found[f"{prefix}.up_proj.weight"] = (count, M, D)
        found[f"{prefix}.down_proj.weight"] = (count, D, M)

    layers("vision.layers", config.vision_layers, nearness=True)
    found["vision.norm.weight"] = (D,)
    found["reader.weight"], found["reader.bias"] = (config.classes, D), (config.classes,)
    found["embed_tokens.weight"] = (config.vocab_size, D)
    found["position_embedding.weight"] = (config.max_length, D)
    layers("text.layers", config.text_layers)
    found["text.norm.weight"] = (D,)
    layers("decoder.layers", config.decoder_layers, cross=True)
    found["decoder.norm.weight"] = (D,)
    found["lm_head.weight"] = (config.vocab_size, D)
    found["image_projection.weight"] = found["text_projection.weight"] = (config.embedding_size, D)
    found["logit_scale"] = ()
    return found


def check(params: Any, config: Config, used: str) -> None:
    """Check that the parameters whose paths match a regular expression are there, in the shapes of a config.

    Indexing would otherwise take the first of too many layers, or the last again for one that is missing.

    Raises:
      ValueError: names the parameter, and both shapes.
    """
    for path, shape in shapes(config).items():
        if not re.match(used, path):
            continue
        leaf = at(params, path)
        if leaf is None:
            raise ValueError(f"params: there is no {path!r}; give all that init makes for this config")
        if tuple(leaf.shape) != shape:
            raise ValueError(f"params: {path!r} has shape {tuple(leaf.shape)}, the config says {shape}")


def init(key: jax.Array, config: Config) -> dict[str, Any]:
    """Random parameters, float32; a layer more moves no other draw.

    Args:
      key: of `jax.random`.
      config: the sizes.

    Returns:
      Nested dicts; see `shapes`.

    Example:
      >>> import jax
      >>> from rlx.models import multimodal
      >>> config = multimodal.Config(vocab_size=100, classes=63)
      >>> params = multimodal.init(jax.random.key(0), config)
      >>> sum(leaf.size for leaf in jax.tree.leaves(params))
      2033804
    """
    depth = 2 * max(config.vision_layers, config.text_layers + config.decoder_layers, 1)

    def draw(path: str, shape: tuple[int, ...]) -> jax.Array:
        if path.endswith("norm.weight"):
            return jnp.ones(shape, jnp.float32)
        if path.endswith("bias"):
            return jnp.zeros(shape, jnp.float32)
        if path == "logit_scale":
            return jnp.log(jnp.float32(10.0))
        if path.endswith("nearness"):  # from far-sighted to near-sighted heads, as in ALiBi
            slopes = np.geomspace(0.1, 2.0, shape[1], dtype=np.float32)
            return jnp.broadcast_to(jnp.asarray(slopes), shape)
        noise = jax.random.normal(key_at(key, path), shape, jnp.float32)
        if path.startswith(("vision.position", "embed_tokens", "position_embedding")):
            return noise * 0.05
        if path.endswith("neighbours"):
            return noise / 3
        width = shape[-1]
        if path.endswith(("o_proj.weight", "down_proj.weight")):
            width *= depth
        return noise * width**-0.5

    return nest({path: draw(path, shape) for path, shape in shapes(config).items()})
