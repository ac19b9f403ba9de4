"""How the kernel cuts its work, and which shapes it takes."""

import math
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp

from kernels_pallas._device import MULTIPROCESSORS, SHARED_MEMORY


@dataclass(frozen=True, kw_only=True)
class Config:
    """How a program's work is cut.

    Attributes:
      rows: tokens of a tile; two warpgroups share them and halve its words.
      words: words of a tile for each of the two warpgroups.
      depth: hidden channels of one step.
      stages: steps that are loaded ahead.
      splits: parts of the vocabulary, each a program of its own for every tile of tokens.
    """

    rows: int = 128
    words: int = 128
    depth: int = 64
    stages: int = 4
    splits: int = 4

    def shared_memory(self, itemsize: int) -> int:
        """Bytes of shared memory of a program."""
        return self.stages * (self.rows + 2 * self.words) * self.depth * itemsize + 2 * 4 * self.rows * 4

    def check(self, n: int, d: int, v: int, dtype: Any) -> str | None:
        """Why it cannot run on `[n, d]` and `[v, d]`, or None."""
        if min(vars(self).values()) < 1 or self.rows % 64 or self.words % 8 or self.words > 256 or self.depth % 64:
            return f"of {self}, rows and depth are multiples of 64, words of 8 and at most 256, all positive"
        if dtype not in (jnp.bfloat16, jnp.float16):
            return f"needs bfloat16 or float16, got {jnp.dtype(dtype).name}"
        if v < 2 * self.words or v % 8:
            return f"needs {2 * self.words} words or more, in multiples of 8, got {v}"
        if d % self.depth or not n:
            return f"needs a row or more of a depth in multiples of {self.depth}, got {n} of {d}"
        used = self.shared_memory(jnp.dtype(dtype).itemsize)
        if used > SHARED_MEMORY:
            return f"needs {used} bytes of shared memory, there are {SHARED_MEMORY}"
        return None


def default_config(n: int, v: int, cores: int = MULTIPROCESSORS) -> Config:
    """As many splits as fill the multiprocessors, where there are tiles for them."""
    tiles = -(-n // Config.rows)
    return Config(splits=max(1, min(math.ceil(2 * cores / tiles), v // (2 * Config.words))))
