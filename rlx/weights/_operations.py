"""Multiply by a weight, look rows up in it, write it out: the three things a layer does."""

from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, runtime_checkable

import jax
import jax.numpy as jnp
from jax import lax

from rlx._checks import check_dtype, is_array
from rlx._numerics import common, wide


@runtime_checkable
class Representation(Protocol):
    """A pytree that stands for a dense `[out, in]` array.

    Register a frozen dataclass with `jax.tree_util.register_dataclass`, give it these five,
    and every model, adapter and exporter takes it as a weight.
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """`(out, in)` of the array it stands for, after any leading axes of stacked layers."""
        ...

    @property
    def dtype(self) -> Any:
        """The dtype of the array it stands for."""
        ...

    def matmul(self, x: jax.Array) -> jax.Array:
        """`x @ dense.T`: `[..., in] -> [..., out]`, in x's dtype."""
        ...

    def take(self, ids: jax.Array) -> jax.Array:
        """Rows of the dense array: `[...] -> [..., in]`."""
        ...

    def dense(self) -> jax.Array:
        """The array itself, `[out, in]`, rounded once."""
        ...


Weight: TypeAlias = jax.Array | Representation


@dataclass(frozen=True, kw_only=True)
class Over:
    """What the representations over another weight have in common: they stand for an array like it."""

    base: Weight

    @property
    def shape(self) -> tuple[int, ...]:
        """`(..., out, in)` of the base."""
        return self.base.shape

    @property
    def dtype(self) -> Any:
        """The dtype of the base."""
        return self.base.dtype

    def bias_of(self, bias: jax.Array | None) -> jax.Array | None:
        """The layer's bias as the base has it."""
        return bias_of(self.base, bias)


@dataclass(frozen=True, kw_only=True)
class Adapted(Over):
    """A representation that an adapter puts over a weight, which is what remains when the adapter is taken away."""


def matmul(x: jax.Array, w: Weight) -> jax.Array:
    """Multiply activations by a weight, whatever it is made of.

    y[..., o] = sum_i x[..., i] w[o, i]

    Half-precision inputs are accumulated in float32 and rounded once at the end.

    Args:
      x: activations `[..., in]`, floating.
      w: a dense `[out, in]` array or a `Representation` of one.

    Returns:
      `[..., out]` in the dtype of `x`.

    Raises:
      TypeError: `x` is not floating, or `w` is neither an array nor a representation.
      ValueError: the last dim of `x` is not the last dim of `w`.

    Example:
      >>> import jax.numpy as jnp
      >>> w = jnp.array([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]])
      >>> matmul(jnp.array([3.0, 4.0]), w)
      Array([3., 8., 7.], dtype=float32)
      >>> from rlx.weights import LoRA
      >>> adapted = LoRA(base=w, a=jnp.ones((1, 2)), b=jnp.ones((3, 1)), scale=jnp.array(0.5))
      >>> matmul(jnp.array([3.0, 4.0]), adapted)
      Array([ 6.5, 11.5, 10.5], dtype=float32)
    """
    check_dtype("floating", x=x)
    _check_weight(w)
    if x.ndim == 0 or x.shape[-1] != w.shape[-1]:
        raise ValueError(f"x: its last dim must be the weight's {w.shape[-1]} inputs, got shape {x.shape}")
    if isinstance(w, Representation):
        return w.matmul(x)
    return contract_last(x, w).astype(x.dtype)


def linear(x: jax.Array, w: Weight, bias: jax.Array | None = None) -> jax.Array:
    """A whole linear layer: multiply by a weight and add its bias.

    y[..., o] = sum_i x[..., i] w[o, i] + bias[o]

    A representation that changes the bias too (IA3 rescales the whole output, a LoRA may bring a
    bias of its own) says so with a method `bias_of(bias) -> bias`; others leave it.

    Args:
      x: activations `[..., in]`, floating.
      w: a dense `[out, in]` array or a `Representation` of one.
      bias: `[out]`, or None.

    Returns:
      `[..., out]` in the dtype of `x`.

    Raises:
      TypeError: as `matmul`.
      ValueError: as `matmul`, or a bias that is not `[out]`.

    Example:
      >>> import jax.numpy as jnp
      >>> from rlx.weights import IA3
      >>> linear(jnp.ones(2), IA3(base=jnp.eye(2), output_scale=jnp.array([1.0, 10.0])), jnp.ones(2))
      Array([ 2., 20.], dtype=float32)
    """
    if bias is not None and (not is_array(bias) or tuple(bias.shape) != (w.shape[-2],)):
        raise ValueError(f"bias: expected dims [out={w.shape[-2]}], got {getattr(bias, 'shape', type(bias).__name__)}")
    y = matmul(x, w)
    added = bias_of(w, bias)
    if added is None:
        return y
    dtype = wide(y.dtype)
    return (y.astype(dtype) + added.astype(dtype).reshape((1,) * (y.ndim - 1) + added.shape)).astype(y.dtype)


def bias_of(w: Weight, bias: jax.Array | None) -> jax.Array | None:
    """The bias that a weight's representation makes of its layer's bias: `[..., out]` or None for none."""
    change = getattr(w, "bias_of", None)
    return bias if change is None else change(bias)


def take(w: Weight, ids: jax.Array) -> jax.Array:
    """Look up rows of a weight, as an embedding does.

    y[..., :] = w[ids[...], :]

    Args:
      w: a dense `[vocabulary, width]` array or a `Representation` of one.
      ids: integers `[...]` in `[0, vocabulary)`. An index outside gives a row of NaN, so that
        it is seen; it never wraps around or clamps to another token's row.

    Returns:
      `[..., width]` in the dtype of `w`.

    Raises:
      TypeError: `ids` is not an integer array, or `w` is neither an array nor a representation.

    Example:
      >>> import jax.numpy as jnp
      >>> take(jnp.array([[1.0, 2.0], [3.0, 4.0]]), jnp.array([1, 1, 0]))
      Array([[3., 4.],
             [3., 4.],
             [1., 2.]], dtype=float32)
    """
    check_dtype("integer", ids=ids)
    _check_weight(w)
    return w.take(ids) if isinstance(w, Representation) else take_rows(w, ids)


def dense(w: Weight) -> jax.Array:
    """Write a weight out as the array it stands for; a dense array is returned as it is.

    Args:
      w: a dense `[out, in]` array or a `Representation` of one.

    Returns:
      `[out, in]`, computed in float32 (or wider) and rounded once to the dtype of `w`.

    Raises:
      TypeError: `w` is neither an array nor a representation, or stands for more than one array.

    Example:
      >>> import jax.numpy as jnp
      >>> from rlx.weights import LoRA
      >>> base = jnp.eye(2)
      >>> dense(LoRA(base=base, a=jnp.ones((1, 2)), b=jnp.ones((2, 1)), scale=jnp.array(2.0)))
      Array([[3., 2.],
             [2., 3.]], dtype=float32)
    """
    _check_weight(w)
    return w.dense() if isinstance(w, Representation) else w


def _check_weight(w: Any) -> None:
    if is_array(w):
        check_dtype("floating", w=w)
    elif not isinstance(w, Representation):
        raise TypeError(f"w: expected an array [out, in] or a Representation of one, got {type(w).__name__}")


def contract_last(x: jax.Array, w: jax.Array) -> jax.Array:
    """`x @ w.T` in the accumulator's dtype (float32 for half precision); no transpose is formed."""
    if w.ndim != 2:
        raise ValueError(
            f"w: expected dims [out, in], got shape {w.shape}; stacked layers are sliced by lax.scan first"
        )
    dtype = common(x.dtype, w.dtype)
    dims = (((x.ndim - 1,), (1,)), ((), ()))
    return lax.dot_general(x.astype(dtype), w.astype(dtype), dims, preferred_element_type=wide(dtype))


def take_rows(w: jax.Array, ids: jax.Array) -> jax.Array:
    """Rows of a dense array; an index outside gives NaN, also a negative one."""
    return jnp.asarray(w).at[ids].get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)
