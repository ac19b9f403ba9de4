"""Checks that run at trace time and name the argument that is wrong."""

import math
from collections.abc import Collection
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_KINDS = {"floating": jnp.floating, "integer": jnp.integer, "boolean": jnp.bool_, "numeric": jnp.number}


def is_array(x: Any) -> bool:
    """Whether `x` is an array that jax computes with: a jax.Array (tracers too) or a numpy array."""
    return isinstance(x, (jax.Array, np.ndarray, np.generic, jax.ShapeDtypeStruct))


def check_shapes(**named: tuple[Any, str]) -> dict[str, int]:
    """Check arrays against dims of one letter each and return the size of each letter.

    A leading `*` stands for any number of leading dims; the same letter is the same size
    in every argument.

        >>> import jax.numpy as jnp
        >>> check_shapes(logp=(jnp.zeros((2, 5)), "BT"), mask=(jnp.ones((2, 5)), "BT"))
        {'B': 2, 'T': 5}
        >>> check_shapes(logp=(jnp.zeros((2, 5)), "BT"), mask=(jnp.ones((3, 5)), "BT"))
        Traceback (most recent call last):
        ValueError: mask: dim B=3 disagrees with B=2 of logp

    Raises:
      TypeError: an argument is not an array.
      ValueError: the number of dims is wrong, or one letter has two sizes.
    """
    sizes: dict[str, tuple[int, str]] = {}
    for name, (value, dims) in named.items():
        if not is_array(value):
            raise TypeError(f"{name}: expected an array of dims [{', '.join(dims)}], got {type(value).__name__}")
        shape = tuple(value.shape)
        letters = dims.removeprefix("*")
        if dims.startswith("*"):
            if len(shape) < len(letters):
                raise ValueError(f"{name}: expected dims [..., {', '.join(letters)}], got shape {shape}")
            shape = shape[len(shape) - len(letters) :]
        elif len(shape) != len(letters):
            raise ValueError(f"{name}: expected dims [{', '.join(letters)}], got shape {shape}")
        for letter, size in zip(letters, shape, strict=True):
            known, owner = sizes.setdefault(letter, (size, name))
            if known != size:
                raise ValueError(f"{name}: dim {letter}={size} disagrees with {letter}={known} of {owner}")
    return {letter: size for letter, (size, _) in sizes.items()}


def check_dtype(kind: str, **named: Any) -> None:
    """Check that each array's dtype is of a kind: "floating", "integer", "boolean" or "numeric".

    Raises:
      TypeError: names the argument, its dtype and what was expected.
    """
    wanted = f"an {kind}" if kind == "integer" else f"a {kind}"
    for name, value in named.items():
        if not is_array(value):
            raise TypeError(f"{name}: expected {wanted} array, got {type(value).__name__}")
        if not jnp.issubdtype(value.dtype, _KINDS[kind]):
            raise TypeError(f"{name}: expected {wanted} dtype, got {value.dtype}")


def check_choice(name: str, value: Any, choices: Collection[Any]) -> None:
    """Check that a policy argument is one of its literals.

    Raises:
      ValueError: names the argument and lists the choices.
    """
    if np.ndim(value) or isinstance(value, jax.Array) or value not in tuple(choices):
        raise ValueError(f"{name}: {value!r} is not one of {', '.join(repr(c) for c in choices)}")


def check_range(
    name: str, value: Any, low: float, high: float, *, open_low: bool = False, open_high: bool = False
) -> None:
    """Check that a Python number lies in an interval; NaN never does. Traced values are left alone.

    Raises:
      TypeError: not a real number.
      ValueError: names the argument, its value and the interval.
    """
    if isinstance(value, jax.core.Tracer):
        return
    if isinstance(value, (bool, str)) or np.ndim(value) != 0:
        raise TypeError(f"{name}: expected a number, got {value!r}")
    number = float(value)
    above = number > low if open_low else number >= low
    below = number < high if open_high else number <= high
    if not (above and below):
        interval = f"{'(' if open_low else '['}{low}, {high}{')' if open_high else ']'}"
        raise ValueError(f"{name}: {value} is outside {interval}")


def check_whole(name: str, value: Any, low: float = -math.inf, high: float = math.inf) -> None:
    """Check that an argument is a whole number of Python or numpy, not a traced one, in `[low, high]`.

    Raises:
      TypeError: a float, a bool, an array.
      ValueError: outside the interval.
    """
    if isinstance(value, (bool, jax.Array)) or not hasattr(value, "__index__") or getattr(value, "ndim", 0):
        raise TypeError(f"{name}: expected a whole number, got {value!r}")
    check_range(name, value, low, high)
