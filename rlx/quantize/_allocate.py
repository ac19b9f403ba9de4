"""Which weight gets how many bits, so that all fit a number of bytes and the measured error is least."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from rlx._checks import check_choice, check_whole
from rlx._tree import named_leaves, replace_leaves

from ._layers import LayerBits
from ._quantize import Bits, quantize
from ._rules import (
    as_leaf,
    as_matrix,
    as_weight,
    exactly,
    is_one,
    layers_of,
    matching,
    matching_layers,
    matrices,
)
from ._scales import Scale

Table = Mapping[str, Mapping[int, float]]


@dataclass(frozen=True, kw_only=True)
class Allocation:
    """Bits for each weight.

    Attributes:
      bits: by path, or by the name of each layer of a stack, as in the errors that it is from.
      bytes: all weights together, as `weight_bytes` counts.
      error: the sum of the measured errors. Errors of several weights together need not add up: judge the result.
    """

    bits: dict[str, Bits]
    bytes: int
    error: float

    @property
    def rule(self) -> dict[str, Bits]:
        """For `quantize_tree` and `qat`: bits by a regular expression that is one path, or one layer's name."""
        return {exactly(path): bits for path, bits in self.bits.items()}


def weight_bytes(shape: Sequence[int], bits: LayerBits, *, block: int | None = None) -> int:
    """Bytes of a quantised weight in a TensorFlow Lite file: codes in one run, a scale and a zero point an output.

    Args:
      shape: `(..., out, in)`; leading axes are stacked layers, each a weight of its own in the file.
      bits: 2, 4 or 8; or a tuple with one for each layer of the first axis, as from `plan_bits`.
      block: a float32 scale for each block instead, and no zero points. Such weights are not exported; these are
        the bytes of their arrays.

    Returns:
      Bytes of codes padded to the 16 that the format aligns buffers to, 4 for a scale, 8 for a zero point.

    Raises:
      ValueError: a shape that is no matrix; bits that are not 2, 4 or 8, or not one for each layer; a block that
        does not divide the inputs.

    Example:
      >>> from rlx import quantize
      >>> [quantize.weight_bytes((256, 512), bits) for bits in (2, 4, 8)], quantize.weight_bytes((2, 256, 512), (8, 2))
      ([35840, 68608, 134144], 169984)
    """
    for size in shape:
        check_whole("shape", size)
    if len(shape) < 2 or min(shape) < 1:
        raise ValueError(f"shape: expected (..., out, in), got {tuple(shape)}")
    if isinstance(bits, tuple):
        if len(shape) < 3 or len(bits) != shape[0]:
            raise ValueError(f"bits: {len(bits)} of them are not one for each layer of {tuple(shape)}")
        return sum(weight_bytes(shape[1:], one, block=block) for one in bits)
    check_choice("bits", bits, (2, 4, 8))
    *stack, out, inputs = (int(size) for size in shape)
    if block is not None:
        check_whole("block", block, 1)
    if block is not None and inputs % block:
        raise ValueError(f"block: {block} does not divide the {inputs} inputs")
    codes = -(-(out * inputs * bits) // 8)
    scales = out * 12 if block is None else out * (inputs // block) * 4
    return math.prod(stack) * (-(-codes // 16) * 16 + scales)


def sizes(
    params: Any,
    *,
    choices: Sequence[Bits] = (2, 4, 8),
    where: str = "",
    by_layer: bool = False,
    block: int | None = None,
) -> dict[str, dict[int, int]]:
    """The bytes of each weight at each number of bits, for `allocate`.

    Args:
      params: a tree of arrays.
      choices: the bits.
      where: as in `sensitivity`.
      by_layer: as in `sensitivity`.
      block: as in `weight_bytes`.

    Returns:
      By path (or name of a layer) and bits, what `weight_bytes` counts.

    Raises:
      ValueError: as `sensitivity`, and a block that does not divide the inputs.

    Example:
      >>> import jax.numpy as jnp
      >>> from rlx import quantize
      >>> quantize.sizes({"layers": {"up": {"weight": jnp.ones((2, 4, 8))}}}, choices=(2, 8), by_layer=True)
      {'layers.0.up.weight': {2: 64, 8: 80}, 'layers.1.up.weight': {2: 64, 8: 80}}
    """
    _check_bits(choices)
    found = matrices(params)
    table: dict[str, dict[int, int]] = {}
    for name, (path, layer) in _sites(found, where, by_layer).items():
        shape = as_weight(path, found[path]).shape
        own = shape if layer is None else shape[1:]
        table[name] = {bits: weight_bytes(own, bits, block=block) for bits in choices}
    return table


def sensitivity(
    loss: Callable[[Any], Any],
    params: Any,
    *,
    choices: Sequence[Bits] = (2, 4, 8),
    where: str = "",
    by_layer: bool = False,
    block: int | None = None,
    scale: Scale = "mse",
) -> dict[str, dict[int, float]]:
    """How much the loss rises when one weight alone is rounded.

    Args:
      loss: `loss(params)`, a number; compiled once, called `1 + weights * choices` times.
      params: float parameters.
      choices: the bits to try.
      where: a regular expression searched in the path of each weight; "" is all of them.
      by_layer: whether the layers of a stack are weights of their own, by their names (see `plan_bits`, and `where`
        is searched there too); else a stack is one weight.
      block: as in `quantize`.
      scale: as in `quantize`.

    Returns:
      By path (or name of a layer) and bits, `loss(rounded) - loss(params)`. Noise may make it negative.

    Raises:
      ValueError: `where` matches no weight, no choice, bits that are not 2, 4 or 8; a loss that is no number.

    Example:
      >>> import jax.numpy as jnp
      >>> from rlx import quantize
      >>> params = {"a": {"weight": jnp.array([[1.0, 0.4]])}, "b": {"weight": jnp.array([[1.0, 0.0]])}}
      >>> found = quantize.sensitivity(lambda p: jnp.sum(p["a"]["weight"] * 10 - 14) ** 2, params, choices=(2, 8))
      >>> found["b.weight"], found["a.weight"][2] > found["a.weight"][8]
      ({2: 0.0, 8: 0.0}, True)
    """
    _check_bits(choices)
    found, leaves = matrices(params), named_leaves(params, is_one)
    chosen = _sites(found, where, by_layer)
    measure = jax.jit(loss)
    first = measure(params)
    if np.shape(first):
        raise ValueError(f"loss: expected a number, got an array of shape {np.shape(first)}; take its mean or sum")
    base = float(first)

    def rounded(path: str, layer: int | None, bits: Bits) -> Any:
        matrix = as_matrix(path, found[path])
        part = matrix if layer is None else matrix[layer]
        low = quantize(part, bits, block=block, scale=scale).dense()
        whole = low if layer is None else matrix.at[layer].set(low)
        return replace_leaves(params, {path: as_leaf(path, whole, leaves[path])}, is_one)

    return {
        name: {bits: float(measure(rounded(*site, bits))) - base for bits in choices} for name, site in chosen.items()
    }


def allocate(errors: Table, sizes: Table, budget: int) -> Allocation:
    """The bits of each weight that fit a budget and have the least sum of errors, exactly.

    Dynamic programming over the bytes that are reachable: after each weight, of all choices so far with the same or
    fewer bytes only the one of the least error is kept. A larger budget never has a larger error.

    Args:
      errors: by path and bits, as from `sensitivity`.
      sizes: bytes by path and bits, as from `weight_bytes`; whole numbers, for every choice in `errors`.
      budget: bytes for all of them.

    Returns:
      An `Allocation`. Of equal errors it is the one with fewer bytes.

    Raises:
      TypeError: a budget that is no whole number.
      ValueError: nothing to allocate, sizes that miss a path, an error that is not finite, or a budget below
        the least that is possible (says which that is).

    Example:
      >>> from rlx import quantize
      >>> errors = {"a": {2: 5.0, 8: 0.0}, "b": {2: 1.0, 8: 0.0}}
      >>> quantize.allocate(errors, {"a": {2: 10, 8: 40}, "b": {2: 10, 8: 40}}, 50)
      Allocation(bits={'a': 8, 'b': 2}, bytes=50, error=1.0)

    References:
      Nemhauser & Ullmann 1969, "Discrete Dynamic Programming and Capital Allocation" (the lists of undominated states).
    """
    check_whole("budget", budget, 0)
    _check_tables(errors, sizes)
    least = sum(min(int(sizes[path][bits]) for bits in row) for path, row in errors.items())
    if least > budget:
        raise ValueError(f"budget: {budget} bytes are too few, the least possible is {least}")
    used, total = np.zeros(1, np.int64), np.zeros(1)
    taken: list[tuple[np.ndarray, np.ndarray]] = []
    for path, row in errors.items():
        options = sorted(row)
        cost = np.array([int(sizes[path][bits]) for bits in options], np.int64)
        rise = np.array([row[bits] for bits in options], np.float64)
        new_used = (used[:, None] + cost[None]).reshape(-1)
        new_total = (total[:, None] + rise[None]).reshape(-1)
        order = np.lexsort((new_total, new_used))
        order = order[new_used[order] <= budget]
        before = np.minimum.accumulate(np.concatenate([[np.inf], new_total[order]]))[:-1]
        order = order[new_total[order] < before]
        used, total = new_used[order], new_total[order]
        taken.append((order // len(options), order % len(options)))
    at = len(used) - 1
    bits_of: dict[str, Any] = {}
    for (path, row), (previous, option) in zip(reversed(list(errors.items())), reversed(taken), strict=True):
        bits_of[path] = sorted(row)[option[at]]
        at = previous[at]
    bits = {path: bits_of[path] for path in errors}
    return Allocation(bits=bits, bytes=int(used[-1]), error=float(total[-1]))


def _check_bits(choices: Sequence[Bits]) -> None:
    if not isinstance(choices, Sequence):
        raise TypeError(f"choices: expected some of 2, 4, 8, as in (2, 8), got {choices!r}")
    if not choices:
        raise ValueError("choices: there are no bits to try")
    for bits in choices:
        check_choice("choices", bits, (2, 4, 8))


def _sites(found: Mapping[str, Any], where: str, by_layer: bool) -> dict[str, tuple[str, int | None]]:
    """The weights to choose bits for by name: the path of each, and the layer of a stack that is taken apart."""
    if not by_layer:
        return {path: (path, None) for path in matching(found, "where", where)}
    names = layers_of(found)
    return {
        names[path][i]: (path, None if names[path] == (path,) else i)
        for path, at in matching_layers(names, "where", where).items()
        for i in at
    }


def _check_tables(errors: Table, sizes: Table) -> None:
    if not errors or any(not row for row in errors.values()):
        raise ValueError("errors: there is no weight, or one without a choice")
    for path, row in errors.items():
        missing = [bits for bits in row if bits not in sizes.get(path, {})]
        if missing:
            raise ValueError(f"sizes: has no bytes for {path} at {missing} bits")
        wrong = [bits for bits, error in row.items() if not math.isfinite(error)]
        if wrong:
            raise ValueError(f"errors: that of {path} at {wrong} bits is not finite; leave that choice out")
        for bits in row:
            check_whole(f"sizes[{path!r}][{bits}]", sizes[path][bits], 0)
