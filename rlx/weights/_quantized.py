"""A weight of 2, 4 or 8 bits: packed integer codes and one scale for each output."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ._operations import contract_last, take_rows

Activations = Literal["dynamic_int8", "float"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class QuantizedWeight:
    """Integer codes times one scale for each output: `w[o, i] = scale[o] * code[o, i]`; make it with `quantize`.

    With `activations="dynamic_int8"` a product is what TensorFlow Lite's CPU kernels compute:
    each row of activations is rounded to 8 bits with its own scale and zero point. The gradient
    passes straight through that rounding; codes and scales are frozen.

    Attributes:
      codes: `[out, ceil(in * bits / 8)]` uint8, two's complement, the lowest bits first.
      scale: `[out]`.
      bits: 2, 4 or 8.
      inputs: `in`.
      activations: "dynamic_int8" or "float".

    References:
      Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient
      Integer-Arithmetic-Only Inference", equation 1.
    """

    codes: jax.Array
    scale: jax.Array
    bits: int = field(metadata={"static": True})
    inputs: int = field(metadata={"static": True})
    activations: Activations = field(default="dynamic_int8", metadata={"static": True})

    @property
    def shape(self) -> tuple[int, ...]:
        """`(..., out, in)`."""
        return (*self.scale.shape, self.inputs)

    @property
    def dtype(self) -> Any:
        """The dtype of the scales."""
        return self.scale.dtype

    def integers(self) -> jax.Array:
        """The codes unpacked: `[..., out, in]` int8."""
        return unpack(self.codes, self.bits, self.inputs)

    def matmul(self, x: jax.Array) -> jax.Array:
        """`x @ dense.T` with activations as said: `[..., in] -> [..., out]`."""
        log = _exported.get()
        if log is not None:
            return log.matmul(x, self)
        frozen = lax.stop_gradient(self.dense())
        rows = x.astype(jnp.float32)
        if self.activations == "dynamic_int8":
            rows = rows + lax.stop_gradient(dynamic_int8(rows) - rows)
        return contract_last(rows, frozen.astype(jnp.float32)).astype(x.dtype)

    def take(self, ids: jax.Array) -> jax.Array:
        """Rows of the dense array: `[...] -> [..., in]`."""
        codes = jnp.asarray(self.codes).at[ids].get(mode="clip", wrap_negative_indices=False)
        scale = take_rows(self.scale, ids)
        return unpack(codes, self.bits, self.inputs).astype(scale.dtype) * scale[..., None]

    def dense(self) -> jax.Array:
        """`scale * code`, exact in float32."""
        return self.integers().astype(self.scale.dtype) * self.scale[..., None]


def pack(integers: jax.Array, bits: int) -> jax.Array:
    """Pack int8 codes along the last axis into bytes, the lowest bits first."""
    per_byte = 8 // bits
    room = -integers.shape[-1] % per_byte
    padded = jnp.pad(integers, [(0, 0)] * (integers.ndim - 1) + [(0, room)])
    raw = lax.bitcast_convert_type(padded, jnp.uint8) & np.uint8(2**bits - 1)
    groups = raw.reshape(*raw.shape[:-1], -1, per_byte)
    out = groups[..., 0]
    for i in range(1, per_byte):
        out = out | (groups[..., i] << np.uint8(i * bits))
    return out


def unpack(codes: jax.Array, bits: int, inputs: int) -> jax.Array:
    """Undo `pack`."""
    if bits == 8:
        return lax.bitcast_convert_type(codes, jnp.int8)
    parts = [(codes >> np.uint8(i * bits)) & np.uint8(2**bits - 1) for i in range(8 // bits)]
    raw = jnp.stack(parts, axis=-1).reshape(*codes.shape[:-1], -1)[..., :inputs]
    half = np.int8(2 ** (bits - 1))
    return (raw.astype(jnp.int8) ^ half) - half


def dynamic_int8(x: jax.Array) -> jax.Array:
    """Each row rounded to 8 bits, asymmetric, as TensorFlow Lite's hybrid kernels do, and back in float.

    Args:
      x: `[..., in]` float32.

    Returns:
      `[..., in]`: what the integer kernel multiplies by.
    """
    low = jnp.minimum(jnp.min(x, axis=-1, keepdims=True), 0.0)
    high = jnp.maximum(jnp.max(x, axis=-1, keepdims=True), 0.0)
    step = (high - low) / 255.0
    step = jnp.where(step > 0, step, 1.0)
    zero = jnp.clip(jnp.round(-128.0 - low / step), -128.0, 127.0)
    return (jnp.clip(jnp.round(x / step) + zero, -128.0, 127.0) - zero) * step


class ExportLog:
    """While a function is traced for export, quantised weights become constants that are remembered here.

    Attributes:
      used: the quantised weights, by the bytes of the float32 constant that stands for each.
    """

    def __init__(self) -> None:
        self.used: dict[bytes, tuple[np.ndarray, np.ndarray, int]] = {}

    def matmul(self, x: jax.Array, w: QuantizedWeight) -> jax.Array:
        """A plain product with a constant, two-dimensional, which converts to one fully connected operation."""
        if isinstance(w.codes, jax.core.Tracer):
            raise TypeError("a quantised weight inside scan, or one that is an argument, cannot be exported: unroll it")
        if w.activations != "dynamic_int8":
            raise NotImplementedError('only activations="dynamic_int8" is exported; quantise with it')
        with jax.ensure_compile_time_eval():
            integers, scale = np.asarray(w.integers()), np.asarray(w.scale, np.float32)
        constant = integers.astype(np.float32) * scale[:, None]
        self.used[constant.tobytes()] = integers, scale, w.bits
        rows = contract_last(x.reshape(-1, x.shape[-1]), jnp.asarray(constant))
        return rows.reshape(*x.shape[:-1], constant.shape[0]).astype(x.dtype)


_exported: ContextVar[ExportLog | None] = ContextVar("exported", default=None)


@contextmanager
def exporting() -> Iterator[ExportLog]:
    """Trace inside this block to have quantised weights stand as constants in the graph."""
    log = ExportLog()
    token = _exported.set(log)
    try:
        yield log
    finally:
        _exported.reset(token)
