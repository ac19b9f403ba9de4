"""How the kernel cuts its work, and which shapes it takes."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import jax.numpy as jnp

from kernels_pallas._device import SHARED_MEMORY

from .rules import Inputs, Rules

ROWS = 64
"""Rows of a warpgroup: queries of one head, or of the heads that share a list."""
REGISTERS = 216
"""Registers of a thread of 240 that may hold arrays."""
ROOM = 4096
"""Bytes of shared memory for barriers, and for every array to start at a multiple of 1024."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """How a program's work is cut.

    Attributes:
      columns: keys of a step: a divisor of a block of keys, or several blocks.
      groups: warpgroups that multiply, each 64 rows of one list; one more loads.
      stages: steps that are loaded ahead.
      back_groups: of the backward pass: 64 keys each of a block; 0 leaves the backward pass to XLA.
      back_stages: of the backward pass, steps of 64.
    """

    columns: int = 128
    groups: int = 2
    stages: int = 2
    back_groups: int = 0
    back_stages: int = 2

    def shared_memory(self, x: Inputs) -> int:
        """Bytes of shared memory of a program."""
        d, e, width = x.q.shape[-1], x.v.shape[-1], x.q.dtype.itemsize
        step = self.columns * ((d + e) * width + (0 if x.segments is None else 4))
        row = (d if d == e else d + e) * width + 4 + (0 if x.segments is None else 4)
        return self.stages * step + self.groups * ROWS * row + ROOM

    def check(self, x: Inputs, rules: Rules) -> str | None:
        """Why it cannot run, or None."""
        d, e = x.q.shape[-1], x.v.shape[-1]
        if (
            min(self.columns, self.groups, self.stages) < 1
            or self.columns % ROWS
            or self.columns > 256
            or self.groups > 2
        ):
            return f"of {self}, columns are a multiple of 64 and at most 256, groups at most 2, all positive"
        if x.q.dtype not in (jnp.bfloat16, jnp.float16):
            return f"needs bfloat16 or float16, got {x.q.dtype.name}"
        if x.segments is not None and x.segments.dtype != jnp.int32:
            return f"needs segments of 32 bits, got {x.segments.dtype.name}"
        if any(size % 64 or not 64 <= size <= 256 for size in (d, e)):
            return f"needs heads of 64, 128, 192 or 256, got D={d} and E={e}"
        if not x.q.size or not x.k.size:
            return f"needs a query and a key, got shapes {x.q.shape} and {x.k.shape}"
        if self.columns % rules.block_k and rules.block_k % self.columns:
            return f"needs columns that divide a block of keys or are divided by it: {self.columns}, {rules.block_k}"
        if rules.block_k % 8:
            return f"needs blocks of keys in multiples of 8, got {rules.block_k}"
        if tiles(x, rules) % self.groups:
            return f"needs {ROWS * self.groups} rows of a list, or a multiple, got {ROWS * tiles(x, rules)}"
        registers = (self.columns + self.columns // 2 + e) // 2
        if registers > REGISTERS:
            return f"needs {registers} registers of a thread, there are {REGISTERS}"
        used = self.shared_memory(x)
        if used > SHARED_MEMORY:
            return f"needs {used} bytes of shared memory, there are {SHARED_MEMORY}"
        return self.check_backward(x, rules) if self.back_groups else None

    def back_memory(self, x: Inputs) -> int:
        """Bytes of shared memory of a program of the backward pass: rows of its own, and steps of 64."""
        row = (x.q.shape[-1] + x.v.shape[-1]) * x.q.dtype.itemsize + 12
        return (2 + self.back_stages) * ROWS * row + 2 * ROOM

    def check_backward(self, x: Inputs, rules: Rules) -> str | None:
        """Why the backward kernels cannot run where the forward kernel can, or None."""
        d, e = x.q.shape[-1], x.v.shape[-1]
        if self.back_groups not in (1, 2) or self.back_stages < 1:
            return f"of {self}, back_groups are 1 or 2 and back_stages positive"
        if rules.block_q % ROWS or rules.block_k % (ROWS * self.back_groups):
            wanted = f"{ROWS} queries and {ROWS * self.back_groups} keys"
            return f"needs blocks of {wanted} backward, or multiples, got {rules.block_q} and {rules.block_k}"
        registers = (d + e + 2 * ROWS) // 2
        if registers > REGISTERS:
            return f"needs {registers} registers of a thread backward, there are {REGISTERS}"
        used = self.back_memory(x)
        if used > SHARED_MEMORY:
            return f"needs {used} bytes of shared memory backward, there are {SHARED_MEMORY}"
        return None


def recorded(tuned: Mapping[str, Mapping[str, int]], otherwise: Config) -> Config:
    """What was recorded, each pass by its direction; `otherwise` where nothing was."""
    both = Config(**tuned["both"]) if "both" in tuned else otherwise
    forward = Config(**tuned["forward"]) if "forward" in tuned else both
    return replace(forward, back_groups=both.back_groups, back_stages=both.back_stages)


def packed(rules: Rules) -> bool:
    """Whether rows of several heads make one tile."""
    return rules.block_q % ROWS != 0


def tiles(x: Inputs, rules: Rules) -> int:
    """How many warpgroups the rows of one list fill; packed ones are filled up."""
    shared = x.k.shape[2]
    group = x.q.shape[2] // shared if x.blocks.shape[1] in (1, shared) else 1
    return -(-group * rules.block_q // ROWS)


def default_config(x: Inputs, rules: Rules) -> Config:
    """Two warpgroups where a list has the rows, as wide steps as registers allow, and stages that fit."""
    columns = 128 if x.v.shape[-1] <= 128 else 64
    groups = 2 if tiles(x, rules) % 2 == 0 else 1
    sizes = {"columns": columns, "groups": groups}
    fitting = [Config(**sizes, stages=n) for n in (4, 3, 2)]
    able = [c for c in fitting if c.shared_memory(x) <= SHARED_MEMORY]
    found = able[0] if able else Config(**sizes, stages=1)
    backward = [replace(found, back_groups=number, back_stages=stages) for number in (2, 1) for stages in (3, 2)]
    return next((c for c in backward if c.check_backward(x, rules) is None), found)
