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
      rows: queries of a tile; both warpgroups that multiply share them.
      columns: keys of a tile for each of the two warpgroups.
      depth: channels of one step.
      stages: steps that are loaded ahead.
      splits: parts of the keys, each a program of its own for every tile of queries.
    """

    rows: int = 128
    columns: int = 128
    depth: int = 64
    stages: int = 4
    splits: int = 16

    def shared_memory(self, itemsize: int, group: int) -> int:
        """Bytes of shared memory of a program."""
        tiles = self.stages * (self.rows + 2 * self.columns) * self.depth * itemsize
        rest = 2 * 2 * self.columns + self.rows + 2 * self.rows * self.columns // group
        return tiles + 4 * rest + 4096  # barriers, alignment, and what Mosaic keeps for reductions

    def check(self, q: int, n: int, d: int, group: int, dtype: Any) -> str | None:
        """Why it cannot run on `[q, d]` and `[n, d]` by groups of `group`, or None."""
        wrong = self.rows % 64 or self.columns % 8 or self.columns > 256 or self.depth % 64
        if min(vars(self).values()) < 1 or wrong:
            return f"of {self}, rows and depth are multiples of 64, columns of 8 and at most 256, all positive"
        if self.rows * self.columns > 128 * 128:
            return f"needs a tile of rows x columns that registers hold, 16384, got {self.rows} x {self.columns}"
        if dtype not in (jnp.bfloat16, jnp.float16):
            return f"needs bfloat16 or float16, got {jnp.dtype(dtype).name}"
        if group % 8 or self.columns % group:
            return f"needs a group in multiples of 8 that divides {self.columns} keys, got {group}"
        if d % self.depth or not q:
            return f"needs a query or more of a depth in multiples of {self.depth}, got {q} of {d}"
        if n < 2 * self.columns or n % 8:
            return (
                f"needs {2 * self.columns} keys or more, in multiples of 8 (pad them, and say which are valid), got {n}"
            )
        used = self.shared_memory(jnp.dtype(dtype).itemsize, group)
        if used > SHARED_MEMORY:
            return f"needs {used} bytes of shared memory, there are {SHARED_MEMORY}"
        return None


def default_config(q: int, n: int, cores: int = MULTIPROCESSORS) -> Config:
    """As few rows as hold the queries, and as many splits as fill the multiprocessors, where there are tiles."""
    rows = 64 if q <= 64 else 128
    parts = math.ceil(2 * cores / math.ceil(max(q, 1) / rows))
    return Config(rows=rows, splits=max(1, min(parts, n // (2 * Config.columns))))
