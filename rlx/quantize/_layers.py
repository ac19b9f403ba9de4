"""Layers of one stack with bits of their own."""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from rlx import weights
from rlx._names import is_stacked, join_name, split_name

from ._quantize import Activations, Bits, packed

LayerBits: TypeAlias = Bits | tuple[Bits, ...]


def layer_names(path: str, shape: Sequence[int], *, told: bool = False) -> tuple[str, ...]:
    """The name of each layer of a weight `[..., out, in]`; its path, where it is no stack of layers.

    Args:
      path: of the weight in its tree.
      shape: of the weight.
      told: whether its leading axes are known to be layers, whatever the path says.

    Returns:
      Hugging Face's names where the path runs through `layers` or the like; else the path and the number.

    >>> layer_names("model.layers.mlp.up_proj.weight", (2, 8, 4))
    ('model.layers.0.mlp.up_proj.weight', 'model.layers.1.mlp.up_proj.weight')
    >>> layer_names("model.layers.3.mlp.experts", (2, 8, 4)), layer_names("Dense_0.kernel", (2, 8, 4), told=True)
    (('model.layers.3.mlp.experts',), ('Dense_0.kernel.0', 'Dense_0.kernel.1'))
    """
    if len(shape) < 3:
        return (path,)
    if is_stacked(path) and split_name(path)[1] is None:
        return tuple(join_name(path, i) for i in range(shape[0]))
    return tuple(f"{path}.{i}" for i in range(shape[0])) if told else (path,)


def over_layers(fn: Callable[..., Any], bits: LayerBits, *arrays: jax.Array) -> Any:
    """`fn(bits, *arrays)`, of all layers with the same bits at once, and its arrays in the order of the layers."""
    if not isinstance(bits, tuple):
        return fn(bits, *arrays)
    groups = [(one, np.flatnonzero(np.array(bits) == one)) for one in sorted(set(bits))]
    found = [fn(one, *(jnp.asarray(array)[at] for array in arrays)) for one, at in groups]
    back = np.argsort(np.concatenate([at for _, at in groups]))
    return jax.tree.map(lambda *parts: jnp.concatenate(parts)[back], *found)


def quantized(
    low: Callable[..., weights.QuantizedWeight], bits: LayerBits, w: jax.Array, *others: jax.Array
) -> weights.QuantizedWeight:
    """`low(bits, w, *others)`, layer by layer where bits differ."""
    if not isinstance(bits, tuple):
        return low(bits, w, *others)
    kind: list[tuple[int | None, Activations]] = []

    def codes(one: Bits, *arrays: jax.Array) -> tuple[jax.Array, jax.Array]:
        part = low(one, *arrays)
        kind.append((part.block, part.activations))
        return part.integers(), part.scale

    integers, scale = over_layers(codes, bits, w, *others)
    block, activations = kind[0]
    most, own = storage(bits, w.shape)
    return packed(w, integers, scale, bits=most, block=block, activations=activations, layer_bits=own)


def storage(bits: LayerBits, shape: Sequence[int]) -> tuple[Bits, jax.Array | None]:
    """The bits that codes are kept at, and the `layer_bits` of a weight `[..., out, in]`."""
    if not isinstance(bits, tuple):
        return bits, None
    lead = tuple(shape[:-2])
    own = np.array(bits, np.uint8).reshape(-1, *(1,) * (len(lead) - 1))
    return max(bits), jnp.asarray(np.broadcast_to(own, lead))
