"""Which weight gets how many bits, so that all fit a number of bytes and the measured error is least."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from rlx._checks import check_choice, check_whole
from rlx._tree import replace_leaves

from ._quantize import Bits, quantize
from ._rules import as_leaf, as_matrix, exactly, is_low_bit, matching, matrices
from ._scales import Scale

Table = Mapping[str, Mapping[int, float]]


@dataclass(frozen=True, kw_only=True)
class Allocation:
    """Bits for each weight.

    Attributes:
      bits: by path.
      bytes: all weights together, as `weight_bytes` counts.
      error: the sum of the measured errors. Errors of several weights together need not add up: judge the result.
    """

    bits: dict[str, Bits]
    bytes: int
    error: float

    @property
    def rule(self) -> dict[str, Bits]:
        """For `quantize_tree` and `qat`: bits by a regular expression that is one path."""
        return {exactly(path): bits for path, bits in self.bits.items()}


def weight_bytes(shape: Sequence[int], bits: Bits, *, block: int | None = None) -> int:
    """Bytes of a quantised weight in a TensorFlow Lite file: codes in one run, a scale and a zero point an output.

    Args:
      shape: `(..., out, in)`; leading axes are stacked layers, each a weight of its own in the file.
      bits: 2, 4 or 8.
      block: a float32 scale for each block instead, and no zero points. Such weights are not exported; these are
        the bytes of their arrays.

    Returns:
      Bytes of codes padded to the 16 that the format aligns buffers to, 4 for a scale, 8 for a zero point.

    Raises:
      ValueError: a shape that is no matrix; bits that are not 2, 4 or 8; a block that does not divide the inputs.

    Example:
      >>> from rlx import quantize
      >>> [quantize.weight_bytes((256, 512), bits) for bits in (2, 4, 8)]
      [35840, 68608, 134144]
    """
    check_choice("bits", bits, (2, 4, 8))
    if len(shape) < 2 or min(shape) < 1:
        raise ValueError(f"shape: expected (..., out, in), got {tuple(shape)}")
    *stack, out, inputs = (int(size) for size in shape)
    if block is not None and (block < 1 or inputs % block):
        raise ValueError(f"block: {block} does not divide the {inputs} inputs")
    codes = -(-(out * inputs * bits) // 8)
    scales = out * 12 if block is None else out * (inputs // block) * 4
    return math.prod(stack) * (-(-codes // 16) * 16 + scales)


def sensitivity(
    loss: Callable[[Any], Any],
    params: Any,
    *,
    choices: Sequence[Bits] = (2, 4, 8),
    where: str = "",
    block: int | None = None,
    scale: Scale = "mse",
) -> dict[str, dict[int, float]]:
    """How much the loss rises when one weight alone is rounded.

    Args:
      loss: `loss(params)`, a number; compiled once, called `1 + weights * choices` times.
      params: float parameters.
      choices: the bits to try.
      where: a regular expression searched in the path of each weight; "" is all of them.
      block: as in `quantize`.
      scale: as in `quantize`.

    Returns:
      By path and bits, `loss(rounded) - loss(params)`. A stack of layers is one weight; noise may make it negative.

    Raises:
      ValueError: `where` matches no weight, no choice, bits that are not 2, 4 or 8.

    Example:
      >>> import jax.numpy as jnp
      >>> from rlx import quantize
      >>> params = {"a": {"weight": jnp.array([[1.0, 0.4]])}, "b": {"weight": jnp.array([[1.0, 0.0]])}}
      >>> found = quantize.sensitivity(lambda p: jnp.sum(p["a"]["weight"] * 10 - 14) ** 2, params, choices=(2, 8))
      >>> found["b.weight"], found["a.weight"][2] > found["a.weight"][8]
      ({2: 0.0, 8: 0.0}, True)
    """
    if not choices:
        raise ValueError("choices: there are no bits to try")
    for bits in choices:
        check_choice("choices", bits, (2, 4, 8))
    chosen = matching(matrices(params), "where", where)
    measure = jax.jit(loss)
    base = float(measure(params))

    def rounded(path: str, bits: Bits) -> Any:
        leaf = chosen[path]
        low = quantize(as_matrix(path, leaf), bits, block=block, scale=scale)
        return replace_leaves(params, {path: as_leaf(path, low.dense(), leaf)}, is_low_bit)

    return {path: {bits: float(measure(rounded(path, bits))) - base for bits in choices} for path in chosen}


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
