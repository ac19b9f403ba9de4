"""ONNX through jax2onnx."""

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rlx import weights
from rlx._checks import check_whole
from rlx.weights._lowbit import exporting, product, spread

from ._file import writable, write_whole
from ._paths import argument_paths, result_paths
from ._tflite_weights import integers_of


def to_onnx(fn: Callable[..., Any], arguments: Sequence[Any], path: str | Path, *, opset: int = 23) -> int:
    """Write a function with its parameters as an ONNX file.

    A `weights.QuantizedWeight` that it multiplies by stands in the file as int8 codes (one byte each, for
    2 and 4 bits too) and float32 scales; products are those of `weights.matmul`, activations rounded
    in float arithmetic as there, not ONNX's own integer products. All else is float32.

    Args:
      fn: a pure function; it closes over its parameters. Layers with quantised weights are unrolled.
      arguments: a `ShapeDtypeStruct`, or an array, or a tree of them, for each of its arguments. A dim
        may be symbolic, `jax.export.symbolic_shape("b, 16")`: the file then takes any size.
      path: where; written whole or not at all, below 2 GiB.
      opset: of ONNX.

    Returns:
      The size of the file in bytes. Inputs are called by their paths in the arguments ("tokens",
      "cache.keys"), outputs by theirs in the result (one array: "result").

    Raises:
      ModuleNotFoundError: jax2onnx is missing; says which extra has it.
      TypeError: a quantised weight that is traced.
      ValueError: an operation that jax2onnx does not know (says which), or a file of more than 2 GiB.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from rlx import export
      >>> b, _ = jax.export.symbolic_shape("b, 4")
      >>> size = export.to_onnx(jnp.sin, [jax.ShapeDtypeStruct((b, 4), jnp.float32)], "sin.onnx")  # doctest: +SKIP
    """
    check_whole("opset", opset, 13)
    try:
        jax2onnx: Any = importlib.import_module("jax2onnx")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("ONNX export needs jax2onnx: pip install 'rlx[onnx]'") from error
    path = writable(path)
    leaves, structure = jax.tree.flatten(tuple(arguments))
    with exporting(_Codes()):
        results = jax.eval_shape(fn, *arguments)

    def flat(*arrays: Any) -> tuple[Any, ...]:
        with exporting(_Codes()):
            return tuple(jax.tree.leaves(fn(*jax.tree.unflatten(structure, arrays))))

    try:
        model: Any = jax2onnx.to_onnx(
            flat,
            inputs=[jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves],
            model_name=getattr(fn, "__name__", "model"),
            opset=opset,
            input_names=argument_paths(fn, arguments),
            output_names=[name or "result" for name in result_paths(results)],
        )
    except NotImplementedError as error:
        raise ValueError(f"fn: jax2onnx cannot convert it: {error}") from error
    if model.ByteSize() >= 2**31:
        raise ValueError(f"fn: {model.ByteSize()} bytes are more than the 2 GiB that one ONNX file holds")
    content = model.SerializeToString()
    write_whole(path, content)
    return len(content)


class _Codes:
    """Quantised weights as int8 constants that are turned into floats in the graph."""

    def matmul(self, x: jax.Array, w: weights.QuantizedWeight) -> jax.Array:
        """As `QuantizedWeight.matmul`."""
        return product(x, self._floats(w), self._scale(w), w.block, w.activations)

    def take(self, w: weights.QuantizedWeight, ids: jax.Array) -> jax.Array:
        """As `QuantizedWeight.take`."""
        inside = (ids >= 0) & (ids < w.shape[0])
        safe = jnp.clip(ids, 0, w.shape[0] - 1)
        rows = jnp.asarray(integers_of(w)).at[safe].get(mode="promise_in_bounds").astype(jnp.float32)
        scale = self._scale(w).at[safe].get(mode="promise_in_bounds")
        scale = jnp.where(inside if w.block is None else inside[..., None], scale, jnp.nan)
        return (rows * spread(scale, w.block, rows.ndim)).astype(w.dtype)

    def dense(self, w: weights.QuantizedWeight) -> jax.Array:
        """As `QuantizedWeight.dense`."""
        return (self._floats(w) * spread(self._scale(w), w.block, len(w.shape))).astype(w.dtype)

    def _floats(self, w: weights.QuantizedWeight) -> jax.Array:
        return jnp.asarray(integers_of(w)).astype(jnp.float32)

    def _scale(self, w: weights.QuantizedWeight) -> jax.Array:
        return jnp.asarray(np.asarray(w.scale, np.float32))
