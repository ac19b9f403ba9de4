"""What is measured: signals of the batch and terms computed from them."""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import jax
import numpy as np

from rlx._checks import check_choice

from ._constraints import Event

Batch = Mapping[str, Any]

_IDENTIFIER = re.compile(r"[A-Za-z][A-Za-z0-9_]*(\.[A-Za-z][A-Za-z0-9_]*)*@[0-9]+")
_REGISTERED: dict[str, Callable[..., jax.Array]] = {}


def register(identifier: str) -> Callable[[Callable[..., jax.Array]], Callable[..., jax.Array]]:
    """Give a term's function a name that contract files can use.

    Args:
      identifier: `"owner.what@version"`. A new behaviour is a new version.

    Returns:
      A decorator; the function is `fn(batch, **options) -> [B]` or `[B, T]`.

    Raises:
      ValueError: the identifier is malformed, or another function has it.

    Example:
      >>> import jax.numpy as jnp
      >>> @register("acme.loudness@1")
      ... def loudness(batch, *, scale=1.0):
      ...     return scale * jnp.max(jnp.abs(batch["wave"]), axis=-1)
      >>> Term("loud", "acme.loudness@1", options={"scale": 0.5}).fn
      'acme.loudness@1'
    """
    if not isinstance(identifier, str) or not _IDENTIFIER.fullmatch(identifier):
        raise ValueError(f"identifier: {identifier!r} is not of the form 'owner.what@1'")

    def decorate(fn: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
        known = _REGISTERED.setdefault(identifier, fn)
        if known is not fn and _place(known) != _place(fn):  # the same place: a module that was reloaded
            raise ValueError(f"identifier: {identifier!r} is already {_place(known)}")
        _REGISTERED[identifier] = fn
        return fn

    return decorate


def _place(fn: Any) -> str:
    return f"{getattr(fn, '__module__', '')}.{getattr(fn, '__qualname__', repr(fn))}"


def registered() -> tuple[str, ...]:
    """The identifiers that contract files can use here.

    >>> "rlx.signal@1" in registered()
    True
    """
    return tuple(sorted(_REGISTERED))


@dataclass(frozen=True)
class Signal:
    """An array that terms read from the batch.

    Attributes:
      dims: one letter a dim, "BT" for `[B, T]`; a number in a tuple is a fixed size, `("B", "T", 16)`.
      dtype: a numpy dtype name.
      range: lowest and highest value, both included; None promises nothing (not even that it is finite).
      unit: for people.

    >>> Signal("BT", "int32", range=(0, 255), unit="byte").dims
    'BT'
    """

    dims: str | tuple[str | int, ...] = "BT"
    dtype: str = "float32"
    range: tuple[float, float] | None = None
    unit: str = ""

    def __post_init__(self) -> None:
        for dim in self.dims:
            number = isinstance(dim, (int, np.integer)) and not isinstance(dim, bool)
            if not (dim >= 1 if number else isinstance(dim, str) and len(dim) == 1 and dim.isalpha()):
                raise ValueError(f"dims: {dim!r} is neither a letter nor a size of at least 1")
        try:
            np.dtype(self.dtype)
        except TypeError as error:
            raise ValueError(f"dtype: {self.dtype!r} is not a numpy dtype name, such as 'float32'") from error
        if self.range is not None:
            checked_range("signal", self.range)


@dataclass(frozen=True)
class Term:
    """One thing that can be measured on a text.

    Comparing a term with a number builds an `Event`: `Chance(term > 0.5) <= 0.1`, `Always(term < 3.0)`.

    Attributes:
      name: unique in its contract.
      fn: `fn(batch) -> [B]` for level "sequence", `[B, T]` for level "token"; a pure jax function of the batch. Or the
        identifier of one that was registered. With `params` it is `fn(params, batch)`.
      unit: for people and for `verify`, which refuses a sum of two units ("probability", "nats", "bytes").
      range: lowest and highest value that `fn` returns (for "token": of one token); `verify` proves or refutes it.
      level: "sequence" or "token".
      reduce: how a token-level term becomes one number a text: "mean" over `batch["mask"]` (0 if nothing is
        unmasked) or "sum" over it.
      params: of a learned term, a pytree; its first values. They live in `reward.params["terms"][name]`.
      options: keyword arguments of a registered function, plain JSON.

    Example:
      >>> import jax.numpy as jnp
      >>> Term("short", lambda batch: 1.0 - jnp.mean(batch["mask"], axis=-1)).range
      (0.0, 1.0)
    """

    name: str
    fn: Callable[..., jax.Array] | str
    unit: str = ""
    range: tuple[float, float] = (0.0, 1.0)
    level: Literal["sequence", "token"] = "sequence"
    reduce: Literal["mean", "sum"] = "mean"
    params: Any = field(default=None, compare=False)
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise TypeError(f"name: expected a non-empty string, got {self.name!r}")
        if isinstance(self.fn, str):
            if self.fn not in _REGISTERED:
                known = ", ".join(registered())
                raise ValueError(f"fn: {self.fn!r} of term {self.name!r} is not registered here; there are {known}")
        elif not callable(self.fn):
            raise TypeError(f"fn: expected a function of the batch or an identifier, got {type(self.fn).__name__}")
        elif self.options:
            raise ValueError(f"options: only a registered function takes them; close over them in term {self.name!r}")
        check_choice("level", self.level, ("sequence", "token"))
        check_choice("reduce", self.reduce, ("mean", "sum"))
        object.__setattr__(self, "range", checked_range(f"term {self.name!r}", self.range))

    def __call__(self, batch: Batch, params: Any = None) -> jax.Array:
        """Measure a batch; with `params` in place of the term's own."""
        fn = _REGISTERED[self.fn] if isinstance(self.fn, str) else self.fn
        if self.params is None:
            return fn(batch, **self.options)
        return fn(self.params if params is None else params, batch, **self.options)

    def __lt__(self, value: float) -> Event:
        return Event(self, "<", value)

    def __le__(self, value: float) -> Event:
        return Event(self, "<=", value)

    def __gt__(self, value: float) -> Event:
        return Event(self, ">", value)

    def __ge__(self, value: float) -> Event:
        return Event(self, ">=", value)


def checked_range(owner: str, ends: Any) -> tuple[float, float]:
    """Lowest and highest value as floats.

    Raises:
      ValueError: it is not two numbers, one is NaN, or the interval is empty.
    """
    try:
        low, high = (float(end) for end in ends)
    except (TypeError, ValueError) as error:
        raise ValueError(f"range: expected (lowest, highest) of {owner}, got {ends!r}") from error
    if not low <= high or (math.isinf(low) and low > 0) or (math.isinf(high) and high < 0):
        raise ValueError(f"range: ({low}, {high}) of {owner} is empty; write (lowest, highest)")
    return low, high
