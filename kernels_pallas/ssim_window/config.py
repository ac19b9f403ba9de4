"""How the kernel cuts its work, and which frames it takes."""

import math
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp

from kernels_pallas._device import MULTIPROCESSORS, SHARED_MEMORY

LANES = 128
OUTPUTS = 8
"""Neighbouring windows of a row that one thread computes."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """How the work is cut. A row is its pixels' channels in a line, `W * C` numbers.

    Attributes:
      columns: numbers of a row that a program reads, in multiples of 128: what a thread has running sums for.
      rows: of one step.
      steps: of a program.
      stages: steps that are loaded ahead.
    """

    columns: int = 2
    rows: int = 4
    steps: int = 64
    stages: int = 3

    @property
    def width(self) -> int:
        """Numbers of a row that a program reads."""
        return LANES * self.columns

    @property
    def blocks(self) -> int:
        """Threads' shares of a row."""
        return self.width // OUTPUTS

    def own(self, c: int, size: int) -> tuple[int, int]:
        """Rows of windows, and windows of a row, that a program adds up; the latter in multiples of 16."""
        return self.rows * self.steps - size + 1, (self.width - (size - 1) * c) // 16 * 16

    def room(self, c: int, size: int) -> int:
        """Blocks of a row in shared memory: those that are written, and those that the last ones look at."""
        return self.blocks + -(-(OUTPUTS - 1 + (size - 1) * c) // OUTPUTS)

    def shared_memory(self, c: int, size: int, itemsize: int) -> int:
        """Bytes of shared memory of a program: frames by stage, and moments of two steps."""
        read = self.stages * 2 * self.rows * self.width * itemsize
        moments = 2 * 4 * self.rows * self.room(c, size) * (OUTPUTS + 1) * 4
        return read + moments + 4096  # barriers, and what Mosaic keeps for reductions

    def check(self, n: int, c: int, size: int, dtype: Any) -> str | None:
        """Why it cannot run on n frames of c channels with windows of this size, or None."""
        if min(vars(self).values()) < 1 or self.rows * self.columns % 8:
            return f"of {self}, rows x columns is a multiple of 8, all positive"
        if dtype not in (jnp.uint8, jnp.bfloat16, jnp.float16, jnp.float32):
            return f"needs uint8, bfloat16, float16 or float32, got {jnp.dtype(dtype).name}"
        if not n:
            return "needs a frame or more"
        if size < 3 or 4 * (size - 1) * self.columns > 160:
            return f"needs windows of 3 to {40 // self.columns + 1} pixels, whose sums registers hold, got {size}"
        down, across = self.own(c, size)
        if down < 1 or across < 1:
            return f"needs windows of {size} pixels and {c} channels inside {self.rows * self.steps} x {self.width}"
        used = self.shared_memory(c, size, jnp.dtype(dtype).itemsize)
        if used > SHARED_MEMORY:
            return f"needs {used} bytes of shared memory, there are {SHARED_MEMORY}"
        return None


def default_config(n: int, h: int, w: int, c: int, size: int, cores: int = MULTIPROCESSORS) -> Config:
    """Programs as tall as can be, for rows above a program's own are read twice, while there are 8 a multiprocessor.

    Args:
      n, h, w, c: frames and their sizes, with what "reflect" adds.
      size: of a window.
      cores: multiprocessors.
    """
    columns, rows = (2, 4) if 8 * (size - 1) <= 160 else (1, 8)
    one = Config(columns=columns, rows=rows)
    down, across = (max(room, 1) for room in one.own(c, size))
    windows = max(h - size + 1, 1)
    strips = -(-(w - size + 1) * c // across)
    bands = max(-(-windows // down), -(-8 * cores // max(n * strips, 1)))
    bands = min(bands, -(-windows // 32))
    return Config(columns=columns, rows=rows, steps=math.ceil((-(-windows // bands) + size - 1) / rows))
