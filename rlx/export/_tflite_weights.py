"""What quantised weights do while a function is traced for TensorFlow Lite: a product takes an argument's place."""

import hashlib
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np

from rlx import weights
from rlx.weights._lowbit import RANGE, pack, spread


@dataclass(frozen=True, kw_only=True)
class Codes:
    """What the file will hold for one weight.

    Attributes:
      integers: `[out, in]` int8.
      scale: `[out]` float32.
      bits: 2, 4 or 8.
      dynamic: whether activations are rounded to int8, or codes turned into floats.
    """

    integers: np.ndarray
    scale: np.ndarray
    bits: int
    dynamic: bool


class Recorder:
    """Products with quantised weights, traced twice.

    First on shapes alone, to find which weights there are; then with a float argument for each.
    An argument cannot be folded into anything or be mistaken for another constant, and in the
    converted graph it is a named input, whose place the codes take.

    Attributes:
      found: the weights that were multiplied by, by a digest of their codes, in order.
      arguments: their stand-ins while the second trace lasts.
    """

    def __init__(self) -> None:
        self.found: dict[str, Codes] = {}
        self.arguments: dict[str, jax.Array] | None = None

    def matmul(self, x: jax.Array, w: weights.QuantizedWeight) -> jax.Array:
        """A float product of two-dimensional operands, which becomes one fully connected operation."""
        w = _own(w)
        if w.block is not None:
            raise NotImplementedError("a weight with a scale for each block is not exported: quantise with block=None")
        if w.bits == 2 and w.activations == "float":
            raise NotImplementedError(
                'LiteRT does not turn 2-bit codes into floats: quantise with activations="dynamic_int8"'
            )
        codes = Codes(
            integers=integers_of(w),
            scale=np.asarray(w.scale, np.float32),
            bits=w.bits,
            dynamic=w.activations == "dynamic_int8",
        )
        key = _digest(codes)
        if self.arguments is None:
            self.found.setdefault(key, codes)
            dense = jnp.zeros(codes.integers.shape, jnp.float32)
        else:
            dense = self.arguments[key]
        rows = weights.matmul(x.astype(jnp.float32).reshape(-1, x.shape[-1]), dense)
        return rows.reshape(*x.shape[:-1], dense.shape[0]).astype(x.dtype)

    def take(self, w: weights.QuantizedWeight, ids: jax.Array) -> jax.Array:
        """Rows of packed codes, unpacked by float arithmetic: there are no builtins for shifts of bytes."""
        w = _own(w)
        integers_of(w)
        inside = (ids >= 0) & (ids < w.shape[0])
        safe = jnp.clip(ids, 0, w.shape[0] - 1)
        packed = jnp.asarray(np.asarray(w.codes)).at[safe].get(mode="promise_in_bounds")
        size = float(2**w.bits)
        shifted = [jnp.floor(packed.astype(jnp.float32) * size**-i) for i in range(8 // w.bits)]
        raw = [part - jnp.floor(part / size) * size for part in shifted]
        signed = [jnp.where(part >= size / 2, part - size, part) for part in raw]
        codes = jnp.stack(signed, axis=-1).reshape(*ids.shape, -1)[..., : w.inputs]
        scale = jnp.asarray(np.asarray(w.scale, np.float32)).at[safe].get(mode="promise_in_bounds")
        scale = jnp.where(inside if w.block is None else inside[..., None], scale, jnp.nan)
        return (codes * spread(scale, w.block, codes.ndim)).astype(w.dtype)

    def dense(self, w: weights.QuantizedWeight) -> jax.Array:
        """A float constant."""
        integers, scale = integers_of(w), np.asarray(w.scale, np.float32)
        spread_out = scale[..., None] if w.block is None else np.repeat(scale, w.block, axis=-1)
        return jnp.asarray((integers.astype(np.float32) * spread_out).astype(w.dtype))


def _own(w: weights.QuantizedWeight) -> weights.QuantizedWeight:
    """A layer out of a stack of mixed bits, at its own."""
    if w.layer_bits is None or isinstance(w.layer_bits, jax.core.Tracer) or np.ndim(w.layer_bits):
        return w
    bits = int(w.layer_bits)
    integers, (low, high) = integers_of(w), RANGE[bits]
    if integers.min() < low or integers.max() > high:
        raise ValueError(f"a quantised weight has codes outside [{low}, {high}], for layer_bits={bits}")
    with jax.ensure_compile_time_eval():
        codes = pack(jnp.asarray(integers), bits)
    return replace(w, codes=codes, bits=bits, layer_bits=None)


def integers_of(w: weights.QuantizedWeight) -> np.ndarray:
    """The codes `[out, in]` int8 as NumPy's, also while a function is traced."""
    if isinstance(w.codes, jax.core.Tracer) or isinstance(w.scale, jax.core.Tracer):
        raise TypeError(
            "a quantised weight is traced, so its codes cannot be written: it is inside a scan, an argument of a "
            "jitted function, or made or sliced inside the exported function. Unroll the layers, and close over "
            "NumPy arrays: jax.tree.map(np.asarray, params)"
        )
    codes = np.asarray(w.codes)
    if w.bits == 8:
        return codes.view(np.int8)
    # In NumPy, since jax2onnx puts operations of its own in the place of jnp's.
    parts = codes[..., None] >> (np.arange(8 // w.bits) * w.bits).astype(np.uint8) & np.uint8(2**w.bits - 1)
    raw = parts.reshape(*codes.shape[:-1], -1)[..., : w.inputs].astype(np.int8)
    half = np.int8(2 ** (w.bits - 1))
    return (raw ^ half) - half


def _digest(codes: Codes) -> str:
    content = hashlib.sha256(f"{codes.bits} {codes.dynamic} {codes.integers.shape}".encode())
    content.update(codes.integers.tobytes())
    content.update(codes.scale.tobytes())
    return content.hexdigest()
