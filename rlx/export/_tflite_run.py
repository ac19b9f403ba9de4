"""Run a TensorFlow Lite file with the LiteRT interpreter."""

import copy
from pathlib import Path
from typing import Any

import jax
import numpy as np

from rlx._checks import check_whole

from ._file import unsealed
from ._quiet import quiet
from ._tflite_metadata import read_metadata

Detail = tuple[str, tuple[int, ...], np.dtype]


def _detail(name: str, detail: Any) -> Detail:
    return name, tuple(int(n) for n in detail["shape"]), np.dtype(detail["dtype"])


class TFLite:
    """A loaded file; `model(signature, *arrays)` runs it. `load_tflite` makes it.

    Args:
      model: the path of the file, or its bytes.
      threads: of the interpreter.

    Raises:
      FileNotFoundError: there is no such file.
      ModuleNotFoundError: LiteRT is missing; says which extra has it.
      RuntimeError: the interpreter cannot run an operation of it.
      ValueError: it is not a TensorFlow Lite file, or it is damaged.
    """

    def __init__(self, model: str | Path | bytes, *, threads: int = 1) -> None:
        try:
            from ai_edge_litert.interpreter import Interpreter
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError("running a TFLite file needs LiteRT: pip install 'rlx[export]'") from error
        check_whole("threads", threads, 1)
        content = model if isinstance(model, bytes) else Path(model).read_bytes()
        if content[4:8] != b"TFL3":
            name = "these bytes are" if isinstance(model, bytes) else f"{model} is"
            raise ValueError(f"model: {name} not a TensorFlow Lite file")
        name = "the file" if isinstance(model, bytes) else str(model)
        try:
            intact = unsealed(content)
        except ValueError as error:
            raise ValueError(f"model: {name} {error}") from error
        with quiet():
            self._interpreter = Interpreter(model_content=content, num_threads=threads)
            self._interpreter.allocate_tensors()  # here the delegate announces itself
            names = self._interpreter.get_signature_list()
            self._runners = {name: self._interpreter.get_signature_runner(name) for name in names}
        self._inputs = {name: self.details(name)[0] for name in names}
        self._manifest, self._metadata = read_metadata(content)
        if intact is None and self._manifest is not None:
            raise ValueError(f"model: {name} was truncated, or changed since rlx wrote it: no SHA-256 is at its end")

    @property
    def signatures(self) -> tuple[str, ...]:
        """The names of the signatures."""
        return tuple(self._runners)

    @property
    def metadata(self) -> dict[str, Any]:
        """What was given as `to_tflite(..., metadata=)`; SHA-256 of each entry was checked when the file was loaded."""
        return copy.deepcopy(self._metadata)

    @property
    def manifest(self) -> dict[str, Any] | None:
        """What rlx says of the file, or None if something else wrote it.

        `rlx` is the version; `signatures` has, by name, `inputs` and `outputs` in order, each with its `name`
        in the file, its `path` in the exported function, `shape` and `dtype`; `bits` those of each quantised
        weight; `metadata` the `kind`, `bytes` and `sha256` of each entry.
        """
        return copy.deepcopy(self._manifest)

    def details(self, signature: str) -> tuple[list[Detail], list[Detail]]:
        """Name in the file, shape and dtype of each input and of each output of a signature, in order.

        Raises:
          ValueError: no such signature.
        """
        runner = self._runner(signature)
        sides = runner.get_input_details(), runner.get_output_details()
        inputs, outputs = ([_detail(name, side[name]) for name in sorted(side)] for side in sides)
        return inputs, outputs

    def _runner(self, signature: str) -> Any:
        if signature not in self._runners:
            raise ValueError(f"signature: {signature!r} is not one of {', '.join(map(repr, self._runners))}")
        return self._runners[signature]

    def __call__(self, signature: str, *arrays: Any) -> list[np.ndarray]:
        """The arrays of the result, in the order in which the exported function gave them.

        Args:
          signature: its name.
          arrays: its arguments, in the order of the exported function; a tree counts as its leaves.

        Raises:
          ValueError: no such signature, or an argument of another number, shape or dtype.
        """
        runner, details = self._runner(signature), self._inputs[signature]
        leaves = jax.tree.leaves(arrays)
        if len(leaves) != len(details):
            raise ValueError(f"arrays: {signature!r} takes {len(details)}, got {len(leaves)}")
        inputs = {}
        for i, ((name, shape, dtype), array) in enumerate(zip(details, leaves, strict=True)):
            value = np.asarray(array)
            if value.shape != shape or value.dtype != dtype:
                want, got = f"{dtype}{shape}", f"{value.dtype}{value.shape}"
                raise ValueError(f"arrays: argument {i} of {signature!r} is {want}, got {got}")
            inputs[name] = value
        results = runner(**inputs)
        return [results[name] for name in sorted(results)]


def load_tflite(path: str | Path, *, threads: int = 1) -> TFLite:
    """Load a TensorFlow Lite file, for many calls.

    Args:
      path: the file.
      threads: of the interpreter.

    Returns:
      A `TFLite`: `model(signature, *arrays)` gives the arrays of the result, in order; `model.metadata`
      and `model.manifest` what travels with them.

    Raises:
      FileNotFoundError: there is no such file.
      ModuleNotFoundError: LiteRT is missing; says which extra has it.
      ValueError: it is not a TensorFlow Lite file, or it is damaged.
    """
    return TFLite(path, threads=threads)


def run_tflite(path: str | Path, signature: str, *arrays: Any) -> list[np.ndarray]:
    """Load a TensorFlow Lite file and run one signature once.

    Args:
      path: the file.
      signature: which of its signatures.
      arrays: its arguments, in the order of the exported function; a tree counts as its leaves.

    Returns:
      The arrays of the result, in the order in which the exported function gave them.

    Raises:
      FileNotFoundError: there is no such file.
      ModuleNotFoundError: LiteRT is missing; says which extra has it.
      ValueError: it is not a TensorFlow Lite file, has no such signature, or an argument is of
        another number, shape or dtype.
    """
    return load_tflite(path)(signature, *arrays)
