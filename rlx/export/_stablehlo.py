"""StableHLO through jax.export: written, loaded back, called."""

import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

from ._file import write_whole


def to_stablehlo(
    fn: Callable[..., Any],
    arguments: Sequence[Any],
    path: str | Path,
    *,
    platforms: Sequence[str] = ("cpu", "cuda", "tpu"),
) -> int:
    """Write a function with its parameters as serialised StableHLO.

    Args:
      fn: a pure function; it closes over its parameters.
      arguments: a `ShapeDtypeStruct`, or an array, for each argument.
      path: where; written whole or not at all.
      platforms: what it can run on.

    Returns:
      The size of the file in bytes.

    Example:
      >>> import jax, jax.numpy as jnp, tempfile, os
      >>> from rlx import export
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     path = os.path.join(folder, "double.stablehlo")
      ...     size = export.to_stablehlo(lambda x: 2 * x, [jax.ShapeDtypeStruct((2,), jnp.float32)], path)
      ...     export.load_stablehlo(path)(jnp.array([1.0, 2.0]))
      Array([2., 4.], dtype=float32)
    """
    content = bytes(jax.export.export(jax.jit(fn), platforms=tuple(platforms))(*arguments).serialize())
    write_whole(Path(path), content)
    return len(content)


def load_stablehlo(path: str | Path) -> Callable[..., Any]:
    """The function in a file that `to_stablehlo` wrote.

    Args:
      path: the file.

    Returns:
      A function of the same arguments; under jit it is inlined.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is not a file of `to_stablehlo`.
    """
    content = bytearray(Path(path).read_bytes())
    try:
        return jax.export.deserialize(content).call
    except (struct.error, IndexError, ValueError, AttributeError) as error:  # what flatbuffers runs into
        raise ValueError(f"path: {path} is not a file of to_stablehlo") from error
