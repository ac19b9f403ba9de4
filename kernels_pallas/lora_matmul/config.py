"""How the kernel cuts its work, and which shapes it takes."""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp

from kernels_pallas._device import MULTIPROCESSORS, SHARED_MEMORY


@dataclass(frozen=True, kw_only=True)
class Config:
    """How a program's work is cut.

    Attributes:
      rows: of x in a tile, 64 for each of the two warpgroups that multiply, or 128.
      columns: of the result in a tile.
      depth: inputs of one step.
      stages: steps that are loaded ahead.
      band: tiles of rows that are computed next to each other, so that they meet the same columns of the weight.
    """

    rows: int = 128
    columns: int = 256
    depth: int = 64
    stages: int = 4
    band: int = 8

    def shared_memory(self) -> int:
        """Bytes of shared memory of a program."""
        return self.stages * (self.rows + self.columns) * self.depth * 2 + 2 * self.rows * 64 * 2

    def check(self, m: int, n: int, k: int, dtypes: tuple[Any, ...]) -> str | None:
        """Why it cannot run on `[m, k]` and `[n, k]`, or None."""
        if min(vars(self).values()) < 1 or self.rows not in (128, 256) or self.columns % 64 or self.depth % 64:
            return f"of {self}, rows are 128 or 256, columns and depth are multiples of 64, all positive"
        if self.rows * self.columns > 128 * 256:
            return f"of {self}, rows x columns are at most {128 * 256}: they are held in registers"
        if any(dtype != jnp.bfloat16 for dtype in dtypes):
            return f"needs bfloat16 all over, got {', '.join(jnp.dtype(dtype).name for dtype in dtypes)}"
        if m < self.rows:
            return f"needs {self.rows} rows or more, got {m}"
        if n < self.columns or n % 64:
            return f"needs {self.columns} outputs or more, in multiples of 64, got {n}"
        if k % self.depth or k < self.depth * self.stages:
            return f"needs {self.depth * self.stages} inputs or more, in multiples of {self.depth}, got {k}"
        used = self.shared_memory()
        if used > SHARED_MEMORY:
            return f"needs {used} bytes of shared memory, there are {SHARED_MEMORY}"
        return None


def default_config(m: int, n: int, cores: int = MULTIPROCESSORS) -> Config:
    """The largest tile, or half of it where there are too few for all multiprocessors."""
    if -(-m // 128) * -(-n // 256) >= cores:
        return Config()
    return Config(columns=128, stages=6)
