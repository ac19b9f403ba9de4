"""Which key a query may see by position, and the arguments in one form."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What is fixed when it is traced.

    Attributes:
      scale: of the scores.
      causal: whether a query sees no later position.
      window: whether it sees only keys less than so many positions away; None is all.
      softcap: bound of the scores, or None.
      offset: position of the first query, counted from the first key.
      block_q, block_k: queries and keys of a block.
    """

    scale: float
    causal: bool
    window: int | None
    softcap: float | None
    offset: int
    block_q: int
    block_k: int

    def sees(self, rows: jax.Array, columns: jax.Array, keys: int) -> jax.Array:
        """Whether query `rows` sees key `columns` of `keys`, by position alone; the two broadcast."""
        seen = columns < keys
        if self.causal:
            seen = seen & (columns <= rows + self.offset)
        if self.window is not None:
            seen = seen & (jnp.abs(columns - rows - self.offset) < self.window)
        return seen


class Inputs(NamedTuple):
    """The arrays with one batch dim, padding of rows zeroed.

    Attributes:
      q: `[B, T, H, D]`.
      k: `[B, S, K, D]`.
      v: `[B, S, K, E]`.
      blocks: `[B or 1, H or K or 1, N, n]`.
      segments: `[B, T]`, -1 for padding; None where all is one segment.
      key_segments: `[B, S]`, -2 for padding.
      sinks: `[H]`.
    """

    q: jax.Array
    k: jax.Array
    v: jax.Array
    blocks: jax.Array
    segments: jax.Array | None
    key_segments: jax.Array | None
    sinks: jax.Array | None


def wide(dtype: Any) -> Any:
    """The dtype of sums: float32, or float64 for float64."""
    return np.result_type(np.float32, dtype)
