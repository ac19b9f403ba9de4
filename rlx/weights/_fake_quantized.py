"""A float weight that computes as its rounding would, with scales that are learned."""

from collections.abc import Callable
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp

from ._lowbit import RANGE, Activations, exported, product, spread
from ._operations import Over, dense, take, take_rows


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class FakeQuantized(Over):
    """A float weight in training for few bits: every product is that of its codes, gradients go to weight and scale.

    code = round(clip(w / s, low, high)),  y = x @ (s code).T

    Rounding passes gradients straight through; what is clipped has none. The gradient of a scale is that
    of LSQ: `code - w / s` inside the range and the bound outside, times `1 / sqrt(N high)` for the N weights
    that share it. `quantize.qat` attaches it, and freezes it to the `QuantizedWeight` whose product is the same.

    Attributes:
      base: the float weight `[out, in]`, an array or another representation.
      scale: `[out]` float32, or `[out, in / block]`. Its sign does not count, and zero stands for one.
      bits: 2, 4 or 8; of a stack with `layer_bits`, the most of them.
      block: how many neighbouring inputs share a scale; None is one scale for each output.
      activations: as in `QuantizedWeight`.
      layer_bits: as in `QuantizedWeight`: each layer of a stack is rounded to its own range. Integers have no
        gradient: differentiate for the float weights and the scales, not for a stack that has these.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> w = FakeQuantized(base=jnp.array([[0.9, -3.0]]), scale=jnp.array([1.0]), bits=2, activations="float")
      >>> w.dense().tolist(), jax.grad(lambda w: w.dense().sum())(w).base.tolist()
      ([[1.0, -2.0]], [[1.0, 0.0]])

    References:
      Esser et al. 2019, "Learned Step Size Quantization", equations 1-5 and section 2.2. One scale for an
      output or a block, not for a layer; and the range at 2 bits is that of `QuantizedWeight`, -2 to 1.
    """

    scale: jax.Array
    bits: int = field(metadata={"static": True})
    block: int | None = field(default=None, metadata={"static": True})
    activations: Activations = field(default="dynamic_int8", metadata={"static": True})
    layer_bits: jax.Array | None = None

    def matmul(self, x: jax.Array) -> jax.Array:
        """The product of the rounded weight: `[..., in] -> [..., out]`."""
        self._check()
        return product(x, self.codes(), self._step(), self.block, self.activations)

    def take(self, ids: jax.Array) -> jax.Array:
        """Rows of the rounded weight: `[...] -> [..., in]`; an id outside gives NaN."""
        self._check()
        rows = take(self.base, ids)
        step = take_rows(self._step(), ids)
        return (self._round(rows, step) * spread(step, self.block, rows.ndim)).astype(self.dtype)

    def dense(self) -> jax.Array:
        """The rounded weight, `scale * code`, rounded once to its dtype."""
        self._check()
        codes = self.codes()
        return (codes * spread(self._step(), self.block, codes.ndim)).astype(self.dtype)

    def codes(self) -> jax.Array:
        """The codes, `[..., out, in]` whole float32 numbers with the gradients of training."""
        return self._round(dense(self.base), self._step())

    def positive_scale(self) -> jax.Array:
        """The scales as products use them, float32."""
        scale = self.scale.astype(jnp.float32)
        return jnp.where(scale == 0, 1.0, jnp.abs(scale))

    def _step(self) -> jax.Array:
        scale, shared = self.positive_scale(), self.block or self.base.shape[-1]
        return _with_gradient(scale, self._by_bits(lambda low, high: (shared * high) ** -0.5, scale.ndim))

    def _round(self, w: jax.Array, step: jax.Array) -> jax.Array:
        low, high = (self._by_bits(lambda *ends, i=i: ends[i], w.ndim) for i in (0, 1))
        return _straight(jnp.clip(w.astype(jnp.float32) / spread(step, self.block, w.ndim), low, high))

    def _by_bits(self, number: Callable[[int, int], float], ndim: int) -> jax.Array:
        """A number that depends on the least and the greatest code, of each layer, to broadcast over `ndim` axes."""
        if self.layer_bits is None:
            return jnp.float32(number(*RANGE[self.bits]))
        bits = jnp.asarray(self.layer_bits)
        bits = bits.reshape(*bits.shape, *(1,) * (ndim - bits.ndim))
        of = {b: jnp.float32(number(*RANGE[b])) for b in (2, 4, 8)}
        return jnp.where(bits == 2, of[2], jnp.where(bits == 4, of[4], of[8]))

    def _check(self) -> None:
        if exported():
            raise TypeError(
                "a weight in quantisation-aware training is not exported: freeze it first (qat(...).freeze)"
            )


@jax.custom_jvp
def _straight(x: jax.Array) -> jax.Array:
    """Round, with the derivative of not rounding. As `x + stop(round(x) - x)` it would not be exact."""
    return jnp.round(x)


@_straight.defjvp
def _straight_jvp(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    return jnp.round(primals[0]), tangents[0]


@jax.custom_jvp
def _with_gradient(x: jax.Array, factor: jax.Array) -> jax.Array:
    """The same number with its derivative times a factor."""
    return x


@_with_gradient.defjvp
def _with_gradient_jvp(
    primals: tuple[jax.Array, jax.Array], tangents: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    return primals[0], tangents[0] * primals[1]
