"""Run a TensorFlow Lite file with the LiteRT interpreter."""

from pathlib import Path
from typing import Any

import numpy as np

from ._quiet import quiet


class TFLite:
    """A loaded file; `model(signature, *arrays)` runs it.

    Args:
      path: the file.
      threads: of the interpreter.

    Raises:
      FileNotFoundError: there is no such file.
      ModuleNotFoundError: LiteRT is missing; says which extra has it.
      ValueError: the file is no TensorFlow Lite model.
    """

    def __init__(self, path: str | Path, *, threads: int = 1) -> None:
        try:
            from ai_edge_litert.interpreter import Interpreter
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError("running a TFLite file needs LiteRT: pip install 'rlx[export]'") from error
        content = Path(path).read_bytes()
        if content[4:8] != b"TFL3":
            raise ValueError(f"path: {path} is not a TensorFlow Lite file")
        with quiet():
            self._interpreter = Interpreter(model_content=content, num_threads=threads)
            self._interpreter.allocate_tensors()  # says which delegate it made
            names = self._interpreter.get_signature_list()
            self._runners = {name: self._interpreter.get_signature_runner(name) for name in names}

    @property
    def signatures(self) -> tuple[str, ...]:
        """The names of the signatures."""
        return tuple(self._runners)

    def __call__(self, signature: str, *arrays: Any) -> list[np.ndarray]:
        """The leaves of the result, in the order in which the exported function gave them.

        Raises:
          ValueError: no such signature, or an argument of another number, shape or dtype.
        """
        if signature not in self._runners:
            raise ValueError(f"signature: {signature!r} is not one of {', '.join(map(repr, self._runners))}")
        runner = self._runners[signature]
        details = runner.get_input_details()
        if len(arrays) != len(details):
            raise ValueError(f"arrays: {signature!r} takes {len(details)}, got {len(arrays)}")
        inputs = {}
        for i, array in enumerate(arrays):
            value, detail = np.asarray(array), details[f"arg{i}"]
            if value.shape != tuple(detail["shape"]) or value.dtype != detail["dtype"]:
                want = f"{np.dtype(detail['dtype'])}{tuple(int(n) for n in detail['shape'])}"
                raise ValueError(f"arrays: argument {i} of {signature!r} is {want}, got {value.dtype}{value.shape}")
            inputs[f"arg{i}"] = value
        results = runner(**inputs)
        return [results[name] for name in sorted(results)]


def run_tflite(path: str | Path, signature: str, *arrays: Any) -> list[np.ndarray]:
    """Load a TensorFlow Lite file and run one signature; for many calls keep a `TFLite`.

    Args:
      path: the file.
      signature: which of its signatures.
      arrays: its arguments, in the order of the exported function.

    Returns:
      The leaves of the result, in order.

    Raises:
      ValueError: as `TFLite`.
    """
    return TFLite(path)(signature, *arrays)
