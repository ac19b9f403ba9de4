"""A weight that tells what it was multiplied by."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from rlx._numerics import wide

from ._operations import Over, dense, matmul, take


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Observed(Over):
    """A weight whose activations are summed up in a gradient: that of `moment` is `sum_rows x x.T`.

    The forward pass is the base's. In the backward pass the cotangent of `moment` is not a derivative but
    the second moment of the rows that came in, which is how it gets out of scans, checkpoints and maps
    without a side effect. Rows with a cotangent of zero, which the result does not depend on
    (padding that is masked out of the loss), count nothing. `quantize.calibrate` attaches it.

    Attributes:
      base: the weight `[out, in]`.
      moment: `[in, in]` float32, zeros.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> w = Observed(base=jnp.ones((1, 2)), moment=jnp.zeros((2, 2)))
      >>> jax.grad(lambda w: w.matmul(jnp.array([[1.0, 2.0], [0.0, 1.0]])).sum())(w).moment.tolist()
      [[1.0, 2.0], [2.0, 5.0]]
    """

    moment: jax.Array

    def matmul(self, x: jax.Array) -> jax.Array:
        """The base's product."""
        # A sum over nothing: zero, of x's kind, so that shard_map sums the moments of its shards.
        nothing = jnp.sum(x.reshape(-1)[:0]).astype(self.moment.dtype)
        return matmul(_watch(x, self.moment + nothing), self.base)

    def take(self, ids: jax.Array) -> jax.Array:
        """The base's rows."""
        return take(self.base, ids)

    def dense(self) -> jax.Array:
        """The base's array."""
        return dense(self.base)


@jax.custom_vjp
def _watch(x: jax.Array, moment: jax.Array) -> jax.Array:
    return x


def _watch_forward(x: jax.Array, moment: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return x, (x, moment)


def _watch_backward(saved: tuple[jax.Array, jax.Array], g: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, moment = saved
    rows = jnp.where(jnp.any(g != 0, axis=-1, keepdims=True), x, jnp.zeros((), x.dtype)).reshape(-1, x.shape[-1])
    total = jax.lax.dot_general(rows, rows, (((0,), (0,)), ((), ())), preferred_element_type=wide(x.dtype))
    return g, total.astype(moment.dtype)


_watch.defvjp(_watch_forward, _watch_backward)
