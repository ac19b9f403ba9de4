"""Whether a function is still the one that was hashed: a key that changes with its code and all that it reads."""

import functools
import types
from typing import Any

import jax
import numpy as np

# modules whose attributes nobody changes
_CONSTANT = {
    "jax",
    "numpy",
    "math",
    "functools",
    "operator",
    "einops",
    "optax",
    "flax",
    "chex",
    "rlx",
    "kernels_pallas",
}


class Changeable(Exception):
    """The function reads something that could change without its key changing."""


class _Same:
    """An object by identity; it is kept alive, so that no other object takes its place."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)


def fingerprint(fn: Any) -> Any:
    """A hashable key of a function: its bytecode, defaults, closure, and the globals that it names.

    Two equal keys are two functions that compute the same. An array of jax counts by identity (it cannot change), and
    so does a function under jit, as it does for jit itself.

    Raises:
      Changeable: it closes over a list, a dict, a numpy array or anything else that can change in place.
    """
    return _of(fn, set())


def _of(value: Any, seen: set[int]) -> Any:
    match value:
        case None | bool() | int() | str() | bytes():
            return type(value), value
        case float() | complex() | np.generic():
            return type(value), repr(value)
        case tuple() | frozenset():
            return type(value), tuple(_of(item, seen) for item in value)
        case types.FunctionType():
            return _function(value, seen)
        case functools.partial():
            return "partial", _of(value.func, seen), _of(value.args, seen), _of(tuple(value.keywords.items()), seen)
        case types.ModuleType():
            if value.__name__.partition(".")[0] not in _CONSTANT:
                raise Changeable(f"module {value.__name__}")
            return _Same(value)
        case types.BuiltinFunctionType() | np.dtype() | np.ufunc() | jax.Array():
            return _Same(value)
        case type() if value.__module__.partition(".")[0] in _CONSTANT | {"builtins"}:
            return _Same(value)
    if type(value).__module__.partition(".")[0] in ("jax", "jaxlib") and callable(value):
        return _Same(value)
    raise Changeable(type(value).__name__)


def _function(fn: types.FunctionType, seen: set[int]) -> Any:
    if id(fn) in seen:
        return "again", fn.__code__
    seen = seen | {id(fn)}
    if (fn.__module__ or "").partition(".")[0] in _CONSTANT and fn.__closure__ is None:
        return _Same(fn)
    try:
        cells = tuple(_of(cell.cell_contents, seen) for cell in fn.__closure__ or ())
    except ValueError as error:  # a cell that is still empty
        raise Changeable("an empty closure cell") from error
    own = _of(tuple(sorted(fn.__dict__.items())), seen)  # helper.scale = 2.0
    names = _names(fn.__code__)
    read = tuple((name, _of(fn.__globals__[name], seen)) for name in names if name in fn.__globals__)
    defaults = _of(fn.__defaults__, seen), _of(tuple((fn.__kwdefaults__ or {}).items()), seen)
    return fn.__code__, defaults, own, cells, read


@functools.lru_cache(maxsize=4096)
def _names(code: types.CodeType) -> tuple[str, ...]:
    """The names that the code, and code inside it, may look up among globals."""
    found = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            found |= set(_names(constant))
    return tuple(sorted(found))
