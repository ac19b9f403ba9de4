"""Many adapters in one batch: each example multiplies by its own low-rank update of one base."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import lax

from rlx._numerics import common, wide

from ._lowrank import check_factors
from ._operations import Adapted, matmul, take, take_rows


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class PerExample(Adapted):
    """A bank of LoRA adapters over one base; example `i` of the batch uses adapter `ids[i]`.

    y[i] = x[i] @ base.T + scale[ids[i]] * (x[i] @ a[ids[i]].T) @ b[ids[i]].T

    Which adapter an example uses is data: another choice never recompiles. Mixed ranks are
    padded with zero rows to the largest; a bank entry of zeros is the base itself.

    Attributes:
      base: the shared weight `[out, in]`.
      a: `[adapters, rank, in]`.
      b: `[adapters, out, rank]`.
      scale: `[adapters]`.
      ids: `[batch]` integers; the first dim of the activations is the batch.

    Example:
      >>> import jax.numpy as jnp
      >>> bank = PerExample(
      ...     base=jnp.zeros((1, 2)), a=jnp.ones((2, 1, 2)), b=jnp.array([[[1.0]], [[10.0]]]),
      ...     scale=jnp.ones(2), ids=jnp.array([1, 0]),
      ... )
      >>> bank.matmul(jnp.ones((2, 2)))
      Array([[20.],
             [ 2.]], dtype=float32)

    References:
      Chen et al. 2023, "Punica: Multi-Tenant LoRA Serving", section 3 (there as a kernel, SGMV).
    """

    a: jax.Array
    b: jax.Array
    scale: jax.Array
    ids: jax.Array

    def matmul(self, x: jax.Array) -> jax.Array:
        """Each example by its own weight: `[batch, ..., in] -> [batch, ..., out]`."""
        self._check_batch("x", x)
        check_factors(self.base, self.a, self.b)
        rows = x.reshape(x.shape[0], -1, x.shape[-1])
        a, b = take_rows(self.a, self.ids), take_rows(self.b, self.ids)
        term = _batched(_batched(rows, a), b) * self._scale()
        term = term.reshape(*x.shape[:-1], term.shape[-1])
        return (matmul(x, self.base).astype(term.dtype) + term).astype(x.dtype)

    def take(self, ids: jax.Array) -> jax.Array:
        """Each example's rows from its own table: `[batch, ...] -> [batch, ..., in]`."""
        self._check_batch("ids", ids)
        check_factors(self.base, self.a, self.b)
        rows = take(self.base, ids)
        flat = ids.reshape(ids.shape[0], -1)
        a, b = take_rows(self.a, self.ids), take_rows(self.b, self.ids)
        chosen = jax.vmap(take_rows)(b, flat)
        term = _batched(chosen, jnp.swapaxes(a, 1, 2)) * self._scale()
        return (rows.astype(term.dtype) + term.reshape(rows.shape)).astype(rows.dtype)

    def dense(self) -> jax.Array:
        """There is no one array that a bank stands for.

        Raises:
          TypeError: always; says how to write one adapter out.
        """
        raise TypeError(
            "PerExample stands for one weight an example; to write adapter i out use "
            "dense(LoRA(base=w.base, a=w.a[i], b=w.b[i], scale=w.scale[i]))"
        )

    def _scale(self) -> jax.Array:
        scale = take_rows(self.scale, self.ids)
        return scale.astype(wide(scale.dtype))[:, None, None]

    def _check_batch(self, name: str, value: jax.Array) -> None:
        if value.ndim == 0 or value.shape[0] != self.ids.shape[0]:
            raise ValueError(
                f"{name}: its first dim must be the batch of {self.ids.shape[0]} adapter ids, got shape {value.shape}"
            )


def _batched(x: jax.Array, w: jax.Array) -> jax.Array:
    """`[batch, n, in] x [batch, out, in] -> [batch, n, out]`, accumulated in float32 or wider."""
    dtype = common(x.dtype, w.dtype)
    dims = (((2,), (2,)), ((0,), (0,)))
    return lax.dot_general(x.astype(dtype), w.astype(dtype), dims, preferred_element_type=wide(dtype))
