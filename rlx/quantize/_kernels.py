"""Kernels of flax as the matrices that they stand for: which axes are layers, inputs and outputs."""

import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from rlx import weights
from rlx._checks import check_whole, is_array
from rlx._names import some
from rlx._tree import named_leaves, replace_leaves


def kernels(params: Any, *, inputs: Mapping[str, int] | None = None, stacked: Mapping[str, int] | None = None) -> Any:
    """Say once which axes of flax's kernels are layers, inputs and outputs: `[*layers, *inputs, *outputs]`.

    A kernel of two axes is `[in, out]`. What one of more axes is, its bias shows, `[*layers, *outputs]`, where only
    one reading fits. Any other is refused when it is to be quantised, unless it is told here: a projection of
    `nn.DenseGeneral` `[in, heads, width]` and a scanned layer `[layers, in, out]` look alike.

    Args:
      params: a tree of flax (linen, or nnx as a pure dict); representations may be inside.
      inputs: by regular expression, how many axes of a kernel are inputs: 1 of `nn.Dense`, 3 of a convolution
        over two axes. The first that matches counts.
      stacked: by regular expression, how many leading axes are of repeated layers (`nn.scan`). A kernel that only
        `inputs` finds has none; of one that only `stacked` finds, two axes that remain are `[in, out]`, and more are
        read by the bias.

    Returns:
      The tree with a `weights.Kernel` in place of each kernel that could be read, for `quantize_tree`, `qat` and
      the others here. It may be trained as it is; `merge` writes arrays for the model's own `apply`.

    Raises:
      TypeError: a pattern is no text, or a number is not whole.
      ValueError: a pattern is no regular expression or matches no kernel; what is told cannot be, contradicts the
        bias, or leaves more than one reading.

    Example:
      >>> import jax.numpy as jnp
      >>> from rlx import quantize
      >>> params = {"blocks": {"Dense_0": {"kernel": jnp.ones((4, 3, 5))}}}
      >>> told = quantize.kernels(params, stacked={"blocks": 1})
      >>> told["blocks"]["Dense_0"]["kernel"].shape
      (4, 5, 3)
      >>> small = quantize.quantize_tree(told, {r"kernel\\.[03]$": 8, "": 2})
      >>> quantize.merge(small, params)["blocks"]["Dense_0"]["kernel"].shape
      (4, 3, 5)
    """
    leaves = named_leaves(params, _is_representation)
    found = {path: leaf for path, leaf in leaves.items() if is_raw(path, leaf)}
    for name, told in (("inputs", inputs), ("stacked", stacked)):
        for pattern, number in (told or {}).items():
            searched = compiled(name, pattern)
            check_whole(f"{name}[{pattern!r}]", number, 1 if name == "inputs" else 0)
            if not any(searched.search(path) for path in found):
                raise ValueError(f"{name}: {pattern!r} matches no kernel; the kernels are {some(found, 40) or 'none'}")
    read = {}
    for path, leaf in found.items():
        kernel = _read(path, leaf, bias_beside(path, leaves), _first(path, inputs), _first(path, stacked))
        if kernel is not None:
            read[path] = kernel
    return replace_leaves(params, read, _is_representation)


def read_kernel(path: str, leaf: Any, leaves: Mapping[str, Any]) -> weights.Kernel | None:
    """An untold kernel as its bias among the leaves shows it, or None."""
    return _read(path, leaf, bias_beside(path, leaves), None, None)


def unread(path: str, leaf: Any) -> ValueError:
    """The error for a kernel that can be read in more than one way."""
    shape, pattern = list(leaf.shape), f"{{r'^{re.escape(path)}$': 1}}"
    return ValueError(
        f"params: {path} {shape} may be a convolution, a projection of heads or a stack of layers; say which of its "
        f"axes are layers (nn.scan) with quantize.kernels(params, stacked={pattern}), or inputs with inputs={pattern}"
    )


def is_raw(path: str, leaf: Any) -> bool:
    """Whether a leaf is a kernel of flax, an array by its name."""
    return path.split(".")[-1] == "kernel" and is_array(leaf) and leaf.ndim >= 2


def bias_beside(path: str, leaves: Mapping[str, Any]) -> tuple[int, ...] | None:
    """The shape of the bias of a kernel's module, or None."""
    bias: Any = leaves.get(f"{path.removesuffix('kernel')}bias")
    return tuple(bias.shape) if is_array(bias) else None


def compiled(name: str, pattern: Any) -> re.Pattern[str]:
    """A regular expression that an argument holds; a TypeError or a ValueError that names the argument."""
    if not isinstance(pattern, str):
        raise TypeError(f"{name}: expected a regular expression, got {pattern!r}")
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{name}: {pattern!r} is no regular expression: {error}") from error


def as_kernel(matrix: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """A matrix `[..., out, in]` as the kernel of a shape that it was read from."""
    return jnp.swapaxes(matrix, -1, -2).reshape(shape)


def _read(
    path: str, leaf: Any, bias: tuple[int, ...] | None, inputs: int | None, stacked: int | None
) -> weights.Kernel | None:
    shape, told = tuple(leaf.shape), inputs is not None or stacked is not None
    if inputs is not None and stacked is None:
        stacked = 0
    readings = [
        (first, own)
        for first in range(len(shape) - 1)
        for own in range(1, len(shape) - first)
        if stacked in (None, first) and inputs in (None, own)
    ]
    fitting = [(first, own) for first, own in readings if bias == (*shape[:first], *shape[first + own :])]
    if told and not readings:
        raise ValueError(
            f"kernels: {path} {list(shape)} has not {stacked or 0} axes of layers and {inputs or 1} of inputs"
        )
    if told and bias is not None and not fitting:
        raise ValueError(f"kernels: {path} {list(shape)} has a bias {list(bias)}, which is not what is told of it")
    chosen = readings if len(readings) == 1 else fitting
    if len(chosen) != 1:
        if told:
            raise ValueError(f"inputs: {path} {list(shape)} has {stacked} axes of layers; say how many are inputs")
        return None
    first, own = chosen[0]
    return weights.Kernel(kernel=leaf, inputs=own, outputs=len(shape) - first - own)


def _first(path: str, told: Mapping[str, int] | None) -> int | None:
    return next((int(number) for pattern, number in (told or {}).items() if re.search(pattern, path)), None)


def _is_representation(leaf: Any) -> bool:
    return isinstance(leaf, weights.Representation)
