"""A weight of 2, 4 or 8 bits: packed integer codes and the scales that turn them into numbers."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, NoReturn, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from rlx._numerics import wide

from ._operations import contract_last, take_rows

Activations = Literal["dynamic_int8", "float"]

# The least and greatest code. TensorFlow Lite's specification leaves -128 out at 8 bits, so that negating a
# weight is exact; 4 bits follow it (-7..7, as its quantisers write them). At 2 bits that would waste a quarter
# of the codes: all four are used.
_NARROW = np.float32(255 / np.finfo(np.float32).max)  # of a row narrower than this, 255 / (high - low) is infinite
RANGE = {8: (-127, 127), 4: (-7, 7), 2: (-2, 1)}


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class QuantizedWeight:
    """Integer codes times a scale: `w[o, i] = scale[o] * code[o, i]`; `quantize.quantize` makes it.

    With `activations="dynamic_int8"` a product is what TensorFlow Lite computes on a CPU: each
    row of activations is rounded to 8 bits with a scale and zero point of its own, integers are
    multiplied, and the sum is scaled. The gradient passes straight through the rounding of the
    activations. Codes are integers and have no gradient; scales have theirs.

    Attributes:
      codes: `[out, ceil(in * bits / 8)]` uint8: two's complement, the lowest bits first, each row padded to a byte.
      scale: `[out]` float32, or `[out, in / block]`.
      bits: 2, 4 or 8: what a code takes here.
      inputs: `in`.
      block: how many neighbouring inputs share a scale; None is one scale for each output.
      activations: "dynamic_int8", or "float" to multiply by `dense()`.
      dtype: of the array it stands for. Products are computed in float32 and have the dtype of `x`.
      layer_bits: of a stack whose layers have different bits, `[layers]` uint8: what the codes of each layer need,
        and take in an exported file. `bits` is then the most of them, so that a scan slices arrays of one shape.
        None where all have `bits`. Products do not ask.

    Example:
      >>> import jax.numpy as jnp
      >>> from rlx import quantize
      >>> w = quantize.quantize(jnp.array([[0.7, -0.3, 0.1]]), 4, activations="float")
      >>> w.shape, w.codes.tolist(), w.integers().tolist()
      ((1, 3), [[215, 1]], [[7, -3, 1]])

    References:
      Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient
      Integer-Arithmetic-Only Inference", equation 1, with the zero point of weights at 0.
    """

    codes: jax.Array
    scale: jax.Array
    bits: int = field(metadata={"static": True})
    inputs: int = field(metadata={"static": True})
    block: int | None = field(default=None, metadata={"static": True})
    activations: Activations = field(default="dynamic_int8", metadata={"static": True})
    dtype: Any = field(default=np.dtype(np.float32), metadata={"static": True})
    layer_bits: jax.Array | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """`(..., out, in)`."""
        return (*self.codes.shape[:-1], self.inputs)

    __array_ufunc__ = None  # an array of NumPy leaves `@` to `__rmatmul__`

    def __rmatmul__(self, x: Any) -> NoReturn:
        raise TypeError(
            "x @ w: a QuantizedWeight is multiplied by weights.matmul(x, w), which is x @ w.T for w [out, in]"
        )

    def integers(self) -> jax.Array:
        """The codes unpacked: `[..., out, in]` int8."""
        return unpack(self.codes, self.bits, self.inputs)

    def matmul(self, x: jax.Array) -> jax.Array:
        """`x @ dense.T` with activations as said: `[..., in] -> [..., out]`."""
        exporter = _exporter.get()
        if exporter is not None:
            return exporter.matmul(x, self)
        return product(x, self.integers().astype(jnp.float32), self.scale, self.block, self.activations)

    def take(self, ids: jax.Array) -> jax.Array:
        """Rows of the dense array: `[...] -> [..., in]`; an id outside gives NaN."""
        exporter = _exporter.get()
        if exporter is not None:
            return exporter.take(self, ids)
        codes = jnp.asarray(self.codes).at[ids].get(mode="clip", wrap_negative_indices=False)
        rows = unpack(codes, self.bits, self.inputs).astype(jnp.float32)
        return (rows * spread(take_rows(self.scale, ids), self.block, codes.ndim)).astype(self.dtype)

    def dense(self) -> jax.Array:
        """`scale * code`, rounded once to `dtype`."""
        exporter = _exporter.get()
        return exporter.dense(self) if exporter is not None else self._values().astype(self.dtype)

    def _values(self) -> jax.Array:
        return self.integers().astype(jnp.float32) * spread(self.scale, self.block, self.codes.ndim)


def product(
    x: jax.Array, integers: jax.Array, scale: jax.Array, block: int | None, activations: Activations
) -> jax.Array:
    """`x @ (scale * integers).T` with activations as said: `[..., in] -> [..., out]` in x's dtype.

    Args:
      x: activations `[..., in]`.
      integers: `[out, in]`, whole float32 numbers.
      scale: `[out]`, or `[out, in / block]`.
      block: how many inputs share a scale, or None.
      activations: "dynamic_int8" or "float".
    """
    if activations == "float":
        values = integers * spread(scale, block, integers.ndim)
        return contract_last(x, values.astype(wide(x.dtype))).astype(x.dtype)
    rows, step = dynamic_int8(x.astype(jnp.float32))
    if block is not None:
        return (contract_last(rows, integers * spread(scale, block, integers.ndim)) * step).astype(x.dtype)
    # Whole numbers are summed, exactly while |sum| < 2^24, then scaled in the order of the kernels.
    total = contract_last(rows, integers) * step
    return (total * scale.reshape((1,) * (total.ndim - 1) + scale.shape)).astype(x.dtype)


def spread(scale: jax.Array, block: int | None, ndim: int) -> jax.Array:
    """A scale for each input, or one that broadcasts over them."""
    return scale.reshape(*scale.shape, 1) if block is None else jnp.repeat(scale, block, axis=ndim - 1)


@partial(jax.jit, static_argnames="bits")
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


def dynamic_int8(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Round each row to 8 bits, asymmetric, with the operations and the order of TensorFlow Lite's CPU delegate.

    m = 255 / (high - low),  zero = round(-128 - m low),  code = clip(round(m x) + zero, -128, 127)

    with `low <= 0 <= high` the range of the row. Multiplying by `m`, not dividing by a step,
    matters where activations lie on a grid (pixels): a tie then falls as it does on the device.

    Args:
      x: `[..., in]` float32.

    Returns:
      `code - zero`, `[..., in]` whole numbers whose gradient is that of `m x`; and `1 / m`, `[..., 1]`.

    References:
      XNNPACK, `xnn_f32_qd8_asymmetric_quantization_params` and its `f32-qs8-vcvt` kernels.
    """
    fixed = lax.stop_gradient(x)
    low = jnp.minimum(jnp.min(fixed, axis=-1, keepdims=True), 0.0)
    high = jnp.maximum(jnp.max(fixed, axis=-1, keepdims=True), 0.0)
    flat = high - low <= _NARROW  # what the device does is as with zeros
    m = jnp.where(flat, 1.0, 255.0 / jnp.where(flat, 1.0, high - low))
    least, most = low * m, high * m
    zero = jnp.where((-128.0 + least) + (127.0 + most) > 0, -128.0 - least, 127.0 - most)
    zero = jnp.round(jnp.clip(zero, -128.0, 127.0))
    scaled = x * m
    codes = jnp.clip(jnp.round(scaled) + zero, -128.0, 127.0) - zero
    return lax.stop_gradient(codes) + (scaled - lax.stop_gradient(scaled)), 1.0 / m


class Exporter(Protocol):
    """What stands in for the three operations while a function is traced for export."""

    def matmul(self, x: jax.Array, w: QuantizedWeight) -> jax.Array:
        """As `QuantizedWeight.matmul`."""
        ...

    def take(self, w: QuantizedWeight, ids: jax.Array) -> jax.Array:
        """As `QuantizedWeight.take`."""
        ...

    def dense(self, w: QuantizedWeight) -> jax.Array:
        """As `QuantizedWeight.dense`."""
        ...


_exporter: ContextVar[Exporter | None] = ContextVar("exporter", default=None)
# jax.jit keeps what it has traced. This makes a trace under an exporter one of its own, so that it is
# neither taken from an earlier call of the function nor left behind for a later one.
_trace_of_its_own = jax.make_user_context()


def exported() -> bool:
    """Whether a function is being traced for export."""
    return _exporter.get() is not None


@contextmanager
def exporting(exporter: Exporter) -> Iterator[None]:
    """Inside this block quantised weights are multiplied, looked up and written out by `exporter`."""
    token = _exporter.set(exporter)
    try:
        with _trace_of_its_own(object()):
            yield
    finally:
        _exporter.reset(token)
