"""Arguments as the operations want them; each error names the argument."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def arrays(**given: Any) -> tuple[Any, ...]:
    """Arrays of jax from arrays of jax or NumPy and from numbers.

    NumPy's integers stay NumPy's: jax would cut 64 bits to 32 without a word, which `within` does by value.

    Raises:
      TypeError: one that is none of these, as a list, which jax does not take either.
    """
    return tuple(_array(name, value) for name, value in given.items())


def optional(**given: Any) -> tuple[Any, ...]:
    """As `arrays`; None stays None."""
    return tuple(None if value is None else _array(name, value) for name, value in given.items())


def _array(name: str, value: Any) -> Any:
    if isinstance(value, jax.Array):
        return value
    if isinstance(value, np.ndarray | np.generic) and np.issubdtype(value.dtype, np.integer):
        return np.asarray(value)
    if isinstance(value, np.ndarray | np.generic | bool | int | float | complex) or hasattr(value, "__jax_array__"):
        return jnp.asarray(value)
    raise TypeError(f"{name}: expected an array, got {type(value).__name__}")


def within(values: Any, low: int, high: int) -> jax.Array:
    """Integers of any dtype as int32; those outside `[low, high]` are at its ends, so none wraps around.

    Example:
      >>> within(np.array([-9, 3, 2**40]), -1, 5).tolist()
      [-1, 3, 5]
    """
    info, numpy = jnp.iinfo(values.dtype), np if isinstance(values, np.ndarray) else jnp
    inside = numpy.clip(values, max(low, int(info.min)), min(high, int(info.max)))
    return jnp.asarray(inside.astype(np.int32))


def whole(name: str, value: Any, least: int | None = 1) -> int:
    """A whole number that is fixed when a function is traced, at least `least`."""
    if not isinstance(value, int | np.integer) or isinstance(value, bool):
        raise TypeError(f"{name}: expected a whole number of Python, which is fixed, got {value!r}")
    if least is not None and value < least:
        raise ValueError(f"{name}: expected at least {least}, got {value}")
    return int(value)


def number(name: str, value: Any) -> float:
    """A finite number that is fixed when a function is traced."""
    if not isinstance(value, int | float | np.integer | np.floating) or isinstance(value, bool):
        raise TypeError(f"{name}: expected a number of Python, which is fixed, got {type(value).__name__}")
    if not np.isfinite(value):
        raise ValueError(f"{name}: expected a finite number, got {value}")
    return float(value)


def flag(name: str, value: Any) -> bool:
    """True or False, fixed when a function is traced."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name}: expected True or False, which is fixed, got {value!r}")
    return bool(value)


def check_config(config: Any, kind: type) -> None:
    """Each operation has a `Config` of its own."""
    if config is not None and not isinstance(config, kind):
        room, other = kind.__module__.rpartition(".")[0], type(config)
        raise TypeError(f"config: expected a {room}.{kind.__name__}, got a {other.__module__}.{other.__qualname__}")


def check_dtypes(**given: Any) -> None:
    """That dtypes which meet in a product or a sum have a common one: bfloat16 and float16 have none."""
    (first, *rest) = ((name, value.dtype) for name, value in given.items() if value is not None)
    for i, (name, dtype) in enumerate(rest):
        for other, wanted in (first, *rest[:i]):
            if {dtype, wanted} == {np.dtype(jnp.bfloat16), np.dtype(np.float16)}:
                raise TypeError(f"{name}: dtype {dtype} does not go with {wanted} of {other}; cast one of them")


def check_bits(**given: Any) -> None:
    """That floating dtypes have 16 bits or more: gradients, which are rounded to them, would vanish in 8."""
    for name, value in given.items():
        if value is not None and value.dtype.itemsize < 2:
            raise TypeError(f"{name}: expected 16 bits or more, got {value.dtype}")
