"""A function to a TensorFlow Lite file."""

import importlib
import os
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from rlx._compat import jax2tf
from rlx.weights._quantized import exporting

from ._quiet import quiet
from ._tflite_codes import write_codes

Signature = tuple[Callable[..., Any], Sequence[jax.ShapeDtypeStruct]]


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What was written.

    Attributes:
      path: the file.
      bytes: its size.
      inputs: per signature, shape and dtype of each argument.
      outputs: per signature, shape and dtype of each leaf of the result, in order.
      quantized: how many weights stand in the file as integer codes, by bits.
    """

    path: Path
    bytes: int
    inputs: dict[str, list[tuple[tuple[int, ...], str]]]
    outputs: dict[str, list[tuple[tuple[int, ...], str]]]
    quantized: dict[int, int]


def to_tflite(signatures: Mapping[str, Signature], path: str | Path) -> Exported:
    """Write functions as signatures of one TensorFlow Lite file, with builtin operations only.

    A `weights.QuantizedWeight` that a function multiplies by is stored as exactly its codes and
    scales, and the interpreter's product is the one that `weights.matmul` computes, to float
    rounding. All else is float32.

    Args:
      signatures: by name, `(fn, arguments)`. `fn` takes the arguments, closes over its parameters
        and returns a tree of arrays; shapes are static. A weight under a scan cannot be written as
        codes: unroll (the decoder's `apply(..., unroll=True)`).
      path: where; written whole or not at all.

    Returns:
      An `Exported`.

    Raises:
      ModuleNotFoundError: TensorFlow is missing; says which extra has it.
      ValueError: no signature, a name that is no identifier, an operation without a builtin
        (names it), or a quantised weight that did not become one fully connected operation.

    Example:
      >>> import tempfile, jax, jax.numpy as jnp
      >>> from rlx import export
      >>> arguments = [jax.ShapeDtypeStruct((1, 4), jnp.float32)]
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     written = export.to_tflite({"double": (lambda x: 2 * x, arguments)}, f"{folder}/double.tflite")
      ...     export.run_tflite(written.path, "double", jnp.ones((1, 4)))[0].tolist()
      [[2.0, 2.0, 2.0, 2.0]]
    """
    if not signatures:
        raise ValueError("signatures: at least one is needed")
    for name in signatures:
        if not re.fullmatch(r"[A-Za-z_]\w*", name):
            raise ValueError(f"signatures: {name!r} is not an identifier")
    path = Path(path)
    with quiet() as noise:
        convert = jax2tf().convert
        tf: Any = importlib.import_module("tensorflow")

        functions, inputs, outputs = {}, {}, {}
        with exporting() as log, tempfile.TemporaryDirectory() as folder:
            for name, (fn, arguments) in signatures.items():
                shapes = jax.tree.leaves(jax.eval_shape(fn, *arguments))
                inputs[name] = [(tuple(a.shape), str(a.dtype)) for a in arguments]
                outputs[name] = [(tuple(o.shape), str(o.dtype)) for o in shapes]
                converted = convert(_flat(fn))
                specs = [
                    tf.TensorSpec(a.shape, tf.as_dtype(np.dtype(a.dtype)), name=f"arg{i}")
                    for i, a in enumerate(arguments)
                ]
                named = tf.function(_named(converted), input_signature=specs, autograph=False)
                functions[name] = named.get_concrete_function()
            module = tf.Module()
            tf.saved_model.save(module, folder, signatures=functions)
            converter = tf.lite.TFLiteConverter.from_saved_model(folder, signature_keys=list(functions))
            converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
            try:
                model = converter.convert()
            except Exception as error:  # the converter has no error type of its own; it is narrowed and raised again
                raise ValueError(_reason(str(error), noise())) from error
        model, counts = write_codes(bytes(model), log.used)
    temporary = path.with_name(path.name + ".part")
    temporary.write_bytes(model)
    os.replace(temporary, path)
    return Exported(path=path, bytes=len(model), inputs=inputs, outputs=outputs, quantized=counts)


def _flat(fn: Callable[..., Any]) -> Callable[..., list[Any]]:
    return lambda *arguments: jax.tree.leaves(fn(*arguments))


def _named(converted: Callable[..., list[Any]]) -> Callable[..., dict[str, Any]]:
    """TensorFlow sorts results by name, so that names keep the order."""

    def call(*arguments: Any) -> dict[str, Any]:
        return {f"out{i:04}": value for i, value in enumerate(converted(*arguments))}

    return call


def _reason(message: str, noise: str) -> str:
    operations = sorted(set(re.findall(r"(?:stablehlo|chlo|tf|vhlo)\.[A-Za-z_]\w*", message + noise)))
    tail = message.strip().splitlines()[-1] if message.strip() else "no message"
    named = f"no TensorFlow Lite builtin for {', '.join(operations)}" if operations else "the converter failed"
    return f"signatures: {named}; {tail[:300]}"
