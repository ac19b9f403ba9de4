"""StableHLO through jax.export: written, loaded back, called."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

from rlx._checks import check_choice

from ._file import sealed, unsealed, writable, write_whole

_PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


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
      path: where; written whole or not at all. It ends in a SHA-256 of what is before, which
        `jax.export.deserialize` does not mind.
      platforms: what it can run on: some of "cpu", "cuda", "rocm", "tpu".

    Returns:
      The size of the file in bytes.

    Raises:
      FileNotFoundError, IsADirectoryError, PermissionError: `path` cannot be written.
      ValueError: a platform that there is not.

    Example:
      >>> import jax, jax.numpy as jnp, tempfile, os
      >>> from rlx import export
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     path = os.path.join(folder, "double.stablehlo")
      ...     size = export.to_stablehlo(lambda x: 2 * x, [jax.ShapeDtypeStruct((2,), jnp.float32)], path)
      ...     export.load_stablehlo(path)(jnp.array([1.0, 2.0]))
      Array([2., 4.], dtype=float32)
    """
    if isinstance(platforms, str) or not platforms:
        raise ValueError(f"platforms: expected some of {', '.join(_PLATFORMS)}, got {platforms!r}")
    for name in platforms:
        check_choice("platforms", name, _PLATFORMS)
    path = writable(path)
    content = sealed(bytes(jax.export.export(jax.jit(fn), platforms=tuple(platforms))(*arguments).serialize()))
    write_whole(path, content)
    return len(content)


def load_stablehlo(path: str | Path) -> Callable[..., Any]:
    """The function in a file that `to_stablehlo` wrote.

    Args:
      path: the file.

    Returns:
      A function of the same arguments; under jit it is inlined.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: `to_stablehlo` has not written it so: it is damaged, truncated, or something else.
    """
    try:
        content = unsealed(Path(path).read_bytes())
    except ValueError as error:
        raise ValueError(f"path: {path} {error}") from error
    if content is None:
        raise ValueError(f"path: {path} is truncated, or not a file of to_stablehlo: no SHA-256 is at its end")
    return jax.export.deserialize(bytearray(content)).call
