"""A function to a TensorFlow Lite file."""

import importlib
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from rlx._compat import jax2tf
from rlx.weights._lowbit import exporting

from ._file import sealed, writable, write_whole
from ._lint import check, lint
from ._paths import argument_paths, result_paths
from ._quiet import quiet
from ._signatures import check_signatures
from ._tflite_codes import write_codes
from ._tflite_metadata import encode, manifest, write_metadata
from ._tflite_reason import reason
from ._tflite_run import TFLite
from ._tflite_tree import pack, unpack
from ._tflite_weights import Codes, Recorder

Signature = tuple[Callable[..., Any], Sequence[Any]]
Specs = list[tuple[tuple[int, ...], str]]

_DTYPES = ("float32", "int32", "int64", "int16", "int8", "uint8", "bool")


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What was written.

    Attributes:
      path: the file.
      bytes: its size.
      inputs: per signature, shape and dtype of each array of its arguments, in order.
      outputs: per signature, shape and dtype of each array of its result, in order.
      quantized: the weights that stand in the file as integer codes: bits by the name of the tensor,
        `quantized{number}_{out}x{in}`. A weight that several products share is there once.
    """

    path: Path
    bytes: int
    inputs: dict[str, Specs]
    outputs: dict[str, Specs]
    quantized: dict[str, int]


def to_tflite(
    signatures: Mapping[str, Signature],
    path: str | Path,
    *,
    metadata: Mapping[str, Any] | None = None,
    allow: Sequence[str] = (),
) -> Exported:
    """Write functions as signatures of one TensorFlow Lite file, with builtin operations only.

    A `weights.QuantizedWeight` that a function multiplies by is stored as exactly its codes and
    scales, and the interpreter's product is the one that `weights.matmul` computes, to float
    rounding. Rows that are looked up in one are stored packed too. All else is float32. Before it
    is written, the file is loaded and each signature is run once, on zeros.

    Args:
      signatures: by name, `(fn, arguments)`: a pure function that closes over its parameters, and a
        `ShapeDtypeStruct` (or a tree of them) for each of its arguments. Shapes are static. Layers
        with quantised weights are unrolled (the decoder's `apply(..., unroll=True)`) and close over
        NumPy arrays, so that slicing a stack of layers is not traced. A layer of a stack of different bits is
        stored at its own.
      path: where; written whole or not at all.
      metadata: what travels in the file, by name: bytes, a string, or anything that JSON has. Names
        stand in the file as they are, for readers that do not know rlx. `TFLite.metadata` gives
        back the same values. A manifest is always there: `TFLite.manifest`; and a SHA-256 of all at the end of
        the file, which interpreters do not mind.
      allow: operations that `lint` finds to differ and that are meant so: "infinity", "rem", ...

    Returns:
      An `Exported`.

    Raises:
      ModuleNotFoundError: TensorFlow or LiteRT is missing; says which extra has it.
      TypeError: signatures that are not `(fn, arguments)` by name, a dtype that the format has not, a quantised
        weight that is traced, or metadata that is neither bytes, a string nor JSON.
      NotImplementedError: a quantised weight that LiteRT has no product for: in blocks, or 2 bits
        with float activations.
      FileNotFoundError, IsADirectoryError, PermissionError: `path` cannot be written; known before the work is done.
      ValueError: no signature, a shape that is not static, a name that is no identifier, operations without a
        builtin or that differ (all that `lint` finds, with their lines), others that the converter or LiteRT
        refuses (names it), a quantised weight in a loop, or metadata that would not be read back as it is.

    Example:
      >>> import jax, jax.numpy as jnp, os, tempfile
      >>> from rlx import export, quantize, weights
      >>> w = quantize.quantize(jnp.eye(4), 8)
      >>> signatures = {"y": (lambda x: weights.matmul(x, w), [jax.ShapeDtypeStruct((1, 4), jnp.float32)])}
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     written = export.to_tflite(signatures, os.path.join(folder, "model.tflite"))
      ...     (y,) = export.run_tflite(written.path, "y", jnp.array([[0.0, 1.0, 2.0, 3.0]]))
      >>> written.quantized, y.round(4).tolist()
      ({'quantized0_4x4': 8}, [[0.0, 1.0, 2.0, 3.0]])
    """
    check_signatures(signatures)
    if isinstance(allow, str):
        raise TypeError(f"allow: expected names of operations, as in ({allow!r},), got a string")
    path = writable(path)
    entries = encode(metadata)
    traced = {name: _Traced(name, fn, arguments) for name, (fn, arguments) in signatures.items()}
    check(lint(signatures), allow)
    tree = unpack(_convert(traced))
    quantized = write_codes(tree, {name: one.weights for name, one in traced.items()})
    described = {name: one.described for name, one in traced.items()}
    write_metadata(tree, entries, manifest(described, quantized, entries))
    model = sealed(pack(tree))
    _check_runs(model, traced)
    write_whole(path, model)
    return Exported(
        path=path,
        bytes=len(model),
        inputs={name: one.inputs for name, one in traced.items()},
        outputs={name: one.outputs for name, one in traced.items()},
        quantized=quantized,
    )


class _Traced:
    """One signature: the shapes of what goes in and comes out, and its quantised weights by name."""

    def __init__(self, name: str, fn: Callable[..., Any], arguments: Sequence[Any]) -> None:
        leaves, self._structure = jax.tree.flatten(tuple(arguments))
        self._fn, self._recorder = fn, Recorder()
        for i, leaf in enumerate(leaves):
            if str(leaf.dtype) not in _DTYPES:
                known = ", ".join(_DTYPES)
                raise TypeError(f"signatures: argument {i} of {name!r} is {leaf.dtype}; TensorFlow Lite takes {known}")
        with exporting(self._recorder):
            tree = jax.eval_shape(fn, *arguments)
        results = jax.tree.leaves(tree)
        if not results:
            raise ValueError(f"signatures: {name!r} returns no array")
        self.inputs: Specs = [(tuple(leaf.shape), str(leaf.dtype)) for leaf in leaves]
        self.outputs: Specs = [(tuple(leaf.shape), str(leaf.dtype)) for leaf in results]
        self.weights: dict[str, Codes] = {
            f"weight{i:04}": codes for i, codes in enumerate(self._recorder.found.values())
        }
        self.described = {
            "inputs": _described("arg", argument_paths(fn, arguments), self.inputs),
            "outputs": _described("out", result_paths(tree), self.outputs),
        }

    def __call__(self, *flat: Any) -> dict[str, Any]:
        """The function of plain arrays, then of stand-ins for the weights; TensorFlow sorts results by name."""
        count = len(self.inputs)
        self._recorder.arguments = dict(zip(self._recorder.found, flat[count:], strict=True))
        with exporting(self._recorder):
            results = self._fn(*jax.tree.unflatten(self._structure, flat[:count]))
        return {f"out{i:04}": leaf for i, leaf in enumerate(jax.tree.leaves(results))}

    def arguments(self) -> dict[str, jax.ShapeDtypeStruct]:
        """What it is called with, by name."""
        given = {f"arg{i:04}": jax.ShapeDtypeStruct(*spec) for i, spec in enumerate(self.inputs)}
        return given | {n: jax.ShapeDtypeStruct(c.integers.shape, np.float32) for n, c in self.weights.items()}


def _described(prefix: str, paths: Sequence[str], specs: Specs) -> list[dict[str, Any]]:
    """What the manifest says of the arrays on one side: the name in the file, and the path in JAX."""
    return [
        {"name": f"{prefix}{i:04}", "path": path, "shape": list(shape), "dtype": dtype}
        for i, (path, (shape, dtype)) in enumerate(zip(paths, specs, strict=True))
    ]


def _convert(traced: Mapping[str, _Traced]) -> bytes:
    with quiet() as noise, tempfile.TemporaryDirectory() as folder:
        convert = jax2tf().convert
        tf: Any = importlib.import_module("tensorflow")
        error_type: Any = importlib.import_module("tensorflow.lite.python.convert_phase").ConverterError
        functions = {}
        for name, one in traced.items():
            staged = convert(one, with_gradient=False)
            specs = [tf.TensorSpec(a.shape, a.dtype, name=n) for n, a in one.arguments().items()]
            named = tf.function(staged, input_signature=specs, autograph=False)
            functions[name] = named.get_concrete_function()
        tf.saved_model.save(tf.Module(), folder, signatures=functions)
        converter = tf.lite.TFLiteConverter.from_saved_model(folder, signature_keys=list(functions))
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
        try:
            return bytes(converter.convert())
        except error_type as error:
            lowered = "".join(jax.jit(one).lower(*one.arguments().values()).as_text() for one in traced.values())
            raise ValueError(f"signatures: {reason(str(error), noise(), lowered)}") from error


def _check_runs(model: bytes, traced: Mapping[str, _Traced]) -> None:
    try:
        loaded = TFLite(model)
        ran = {name: loaded(name, *[np.zeros(*spec) for spec in one.inputs]) for name, one in traced.items()}
    except RuntimeError as error:
        operation = re.search(r"Node number \d+ \((\w+)\)", str(error))
        what = operation[1] if operation else "what was converted"
        raise ValueError(f"signatures: LiteRT cannot run {what}: {error}") from error
    for name, one in traced.items():
        actual = [(tuple(result.shape), str(result.dtype)) for result in ran[name]]
        if actual != one.outputs:
            raise ValueError(f"signatures: {name!r} returns {actual} in TensorFlow Lite, for {one.outputs} in JAX")
