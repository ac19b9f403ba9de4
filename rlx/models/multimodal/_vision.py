"""Images to tokens, and what is read from them."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np

from rlx._checks import check_dtype, check_shapes
from rlx._numerics import wide

from ._blocks import Params, attend, each_layer, linear, mlp, norm, split_heads
from ._config import Config
from ._parameters import check


def encode(params: Params, config: Config, pixels: jax.Array, *, kind: str) -> jax.Array:
    """Images as tokens.

    Patches of each image, normed to its own mean and spread and with each pixel's distance from the mean colour as a
    fourth channel, are mixed with their neighbours in a narrow stem of depthwise convolutions; then a rectangle of
    them is merged to one token, and layers of attention follow whose heads look near or far: the bias of a score is
    minus a learned slope times the distance of two tokens.

    Args:
      params: from `init`; any weight may be an `rlx.weights` representation.
      config: the sizes.
      pixels: `[B, H, W, 3]` uint8, or floating numbers in 0..255.
      kind: which of `config.images`.

    Returns:
      `[B, N, D]` in the dtype of the parameters, tokens in the order of rows, then columns.

    Raises:
      TypeError: pixels are neither uint8 nor floating: int8 or booleans cannot be 0..255.
      ValueError: there is no such kind, its images have another size, or the parameters are of another config.

    References:
      Dosovitskiy et al. 2020, "An Image is Worth 16x16 Words"; Xiao et al. 2021, "Early Convolutions Help
      Transformers See Better"; Liu et al. 2021, "Swin Transformer", section 3.1 (patch merging); Press et al.
      2021, "Train Short, Test Long" (ALiBi), with learned slopes and distances in two dimensions.
    """
    image = config.image(kind)
    check_shapes(pixels=(pixels, "BHWC"))
    if pixels.shape[1:] != (image.height, image.width, 3):
        raise ValueError(f"pixels: {kind!r} images are {(image.height, image.width, 3)}, got {pixels.shape[1:]}")
    if pixels.dtype != np.uint8:
        check_dtype("floating", pixels=pixels)
    check(params, config, rf"vision\.(?!merge|position)|vision\.(merge|position)\.{re.escape(kind)}(\.|$)")
    vision = params["vision"]
    position = vision["position"][kind]
    x = linear(vision, "patch_embed", _patches(pixels, config.patch).astype(position.dtype))
    for p in each_layer(vision["stem"], config.stem_layers) if config.stem_layers else ():
        y = norm(p, "norm", _neighbours(p["neighbours"], x))
        x = x + linear(p, "down_proj", jax.nn.gelu(linear(p, "up_proj", y)))
    x = linear(vision["merge"], kind, _groups(x, image.merge)) + position[None]
    distance = jnp.asarray(_distances(config.tokens(kind)))[None]
    for p in each_layer(vision, config.vision_layers) if config.vision_layers else ():
        q, k, v = jnp.split(linear(p, "qkv_proj", norm(p, "attention_norm", x)), 3, axis=-1)
        heads = config.num_attention_heads
        slope = p["nearness"].astype(wide(p["nearness"].dtype))
        bias = -slope[:, None, None] * distance.astype(slope.dtype)
        mixed = attend(split_heads(q, heads), split_heads(k, heads), split_heads(v, heads), bias[None])
        x = mlp(p, x + linear(p, "o_proj", mixed))
    return norm(vision, "norm", x)


def read(params: Params, config: Config, pixels: jax.Array, *, kind: str = "word") -> jax.Array:
    """Logits of the reader at every token, for CTC with blank 0.

    Args:
      params: from `init`.
      config: the sizes.
      pixels: `[B, H, W, 3]`, as for `encode`.
      kind: which of `config.images`: one row of tokens, from left to right.

    Returns:
      `[B, N, classes]` float32.

    Raises:
      TypeError: as `encode`.
      ValueError: as `encode`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from rlx.models import multimodal
      >>> config = multimodal.Config(vocab_size=8, classes=3, vision_layers=1)
      >>> params = multimodal.init(jax.random.key(0), config)
      >>> multimodal.read(params, config, jnp.zeros((1, 32, 128, 3), jnp.uint8)).shape
      (1, 32, 3)

    References:
      Graves et al. 2006, "Connectionist Temporal Classification".
    """
    logits = linear(params, "reader", encode(params, config, pixels, kind=kind))
    return logits.astype(wide(logits.dtype))


def embed_image(params: Params, tokens: jax.Array) -> jax.Array:
    """Tokens `[B, N, D]` of `encode` as unit vectors `[B, E]`, by the mean over tokens."""
    check_shapes(tokens=(tokens, "BND"))
    return unit(linear(params, "image_projection", jnp.mean(tokens, axis=1)))


def unit(x: jax.Array) -> jax.Array:
    """`x` over its norm, along the last dim, in float32 or wider."""
    x = x.astype(wide(x.dtype))
    return x * jax.lax.rsqrt(jnp.sum(x * x, axis=-1, keepdims=True) + 1e-12)


def _patches(pixels: jax.Array, side: int) -> jax.Array:
    """`[B, H, W, 3] -> [B, H / side, W / side, 4 side²]`.

    The three channels have zero mean each and unit spread an image. The fourth is how far a pixel is from the mean
    colour: a shape looks the same in it whatever its colour is.
    """
    x = pixels.astype(jnp.float32) / 255
    x = x - jnp.mean(x, axis=(1, 2), keepdims=True)
    x = x * jax.lax.rsqrt(jnp.mean(x * x, axis=(1, 2, 3), keepdims=True) + 1e-3)
    far = jnp.sqrt(jnp.sum(x * x, axis=3, keepdims=True) + 1e-6)
    x = jnp.concatenate([x, far - jnp.mean(far, axis=(1, 2), keepdims=True)], axis=3)
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // side, side, width // side, side * channels).transpose(0, 1, 3, 2, 4)
    return x.reshape(batch, height // side, width // side, side * side * channels)


def _neighbours(kernel: jax.Array, x: jax.Array) -> jax.Array:
    """A depthwise convolution of `[B, H, W, C]` with `[3, 3, C]`, zeros outside: as sums, which are faster on a CPU."""
    height, width = x.shape[1:3]
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    parts = [
        padded[:, i : i + height, j : j + width] * kernel[i, j][None, None, None] for i in range(3) for j in range(3)
    ]
    return sum(parts[1:], parts[0])


def _groups(x: jax.Array, merge: tuple[int, int]) -> jax.Array:
    """`[B, H, W, C] -> [B, N, rows columns C]`: rectangles, joined."""
    batch, height, width, channels = x.shape
    rows, columns = merge
    x = x.reshape(batch, height // rows, rows, width // columns, columns * channels).transpose(0, 1, 3, 2, 4)
    return x.reshape(batch, height // rows * (width // columns), rows * columns * channels)


def _distances(grid: tuple[int, int]) -> np.ndarray:
    """`[N, N]` float32: how far apart two tokens are, in tokens."""
    places = np.stack(np.meshgrid(*map(np.arange, grid), indexing="ij"), axis=-1).reshape(math.prod(grid), 2)
    return np.linalg.norm(places[:, None] - places[None], axis=-1).astype(np.float32)
