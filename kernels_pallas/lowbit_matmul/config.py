"""How the kernel cuts its work, and which shapes it takes."""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp

from kernels_pallas._device import MULTIPROCESSORS, SHARED_MEMORY


@dataclass(frozen=True, kw_only=True)
class Config:
    """How a program's work is cut.

    Attributes:
      warpgroups: that multiply, each 64 rows of the weight.
      depth: bytes of a row of codes in one step: 32, 64 or 128.
      stages: steps that are loaded ahead.
      splits: parts of the inputs, each a program of its own for every tile of rows.
    """

    warpgroups: int = 2
    depth: int = 128
    stages: int = 4
    splits: int = 1

    @property
    def rows(self) -> int:
        """Of the weight in a program."""
        return 64 * self.warpgroups

    def shared_memory(self, batch: int, bits: int, block: int | None) -> int:
        """Bytes of shared memory of a program for a batch that is a multiple of 8."""
        inputs = self.depth * 8 // bits
        scales = 0 if block is None else max(inputs // block, 1) * self.rows * 4
        return self.stages * (self.rows * self.depth + batch * inputs * 2 + scales) + self.rows * batch * 4

    def check(self, m: int, n: int, k: int, bits: int, block: int | None, dtype: Any) -> str | None:
        """Why it cannot run on `[m, k]` and `[n, k]`, or None."""
        if min(vars(self).values()) < 1 or self.warpgroups > 4 or self.depth not in (32, 64, 128):
            return f"of {self}, warpgroups are 1 to 4, depth is 32, 64 or 128, all positive"
        if dtype != jnp.bfloat16:
            return f"needs bfloat16, got {jnp.dtype(dtype).name}"
        if not 0 < m <= 32:
            return f"needs a batch of 1 to 32, got {m}"
        if n < self.rows or n % 8:
            return f"needs {self.rows} outputs or more, in multiples of 8, got {n}"
        inputs = self.depth * 8 // bits
        if k % (inputs * self.splits) or not k:
            return f"needs inputs in multiples of {inputs * self.splits}, got {k}"
        if block is not None and (block * bits < 256 or (block % inputs and inputs % block)):
            return (
                f"needs a block of {256 // bits} inputs or more that divides {inputs} or is divided by it, got {block}"
            )
        used = self.shared_memory(-(-m // 8) * 8, bits, block)
        if used > SHARED_MEMORY:
            return f"needs {used} bytes of shared memory, there are {SHARED_MEMORY}"
        return None


def default_config(m: int, n: int, k: int, bits: int, block: int | None = None, cores: int = MULTIPROCESSORS) -> Config:
    """The deepest step that divides the inputs, and programs for all multiprocessors at once, no more."""
    size, batch = k * bits // 8, max(-(-m // 8) * 8, 8)
    depth = next((d for d in (128, 64, 32) if size % d == 0), 128)
    warpgroups, splits = 1, 1
    for warpgroups in (4, 2, 1):
        tiles = -(-n // (64 * warpgroups))
        able = (s for s in (1, 2, 4, 8, 16) if size % (depth * s) == 0 and size // (depth * s) >= 4)
        splits = max((s for s in able if tiles * s <= cores), default=1)
        if 2 * tiles * splits > cores and n >= 64 * warpgroups:
            break
    tried = (Config(warpgroups=warpgroups, depth=depth, stages=s, splits=splits) for s in (8, 6, 4, 3, 2, 1))
    return next(c for c in tried if c.stages == 1 or c.shared_memory(batch, bits, block) <= SHARED_MEMORY)
