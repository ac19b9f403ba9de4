"""What a case of the law suite is."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

B = 8  # one example for each simulated device


@dataclass(frozen=True)
class Case:
    """One function under the laws.

    Attributes:
      name: shown by pytest.
      fn: the function of arrays and pytrees.
      make: `make(key) -> args`; two keys give args of the same shapes.
      batch: per argument, whether axis 0 is independent examples (all leaves), else it is shared.
      differentiable: positions of the arguments to differentiate.
      half: positions of the arguments that may come in bfloat16, or None where it makes no sense;
        the result keeps the dtype, unless `half_out` says otherwise.
      golden: `(args, expected, source)`.
      pad: `pad(args) -> (padded args, cut)`: `cut(result)` must equal the result without padding.
      gradient_is_detached: part of the function is deliberately not differentiated, so finite
        differences do not apply; the area's own test has the oracle.
    """

    name: str
    fn: Callable[..., Any]
    make: Callable[[jax.Array], tuple[Any, ...]]
    batch: tuple[bool, ...]
    differentiable: tuple[int, ...] = ()
    half: tuple[int, ...] | None = None
    half_out: Any = jnp.bfloat16
    golden: tuple[tuple[Any, ...], Any, str] | None = None
    pad: Callable[[tuple[Any, ...]], tuple[tuple[Any, ...], Callable[[Any], Any]]] | None = None
    gradient_is_detached: bool = False


def normal(key: jax.Array, *shape: int) -> jax.Array:
    return jax.random.normal(key, shape, jnp.float32)
