"""How the kernels cut their work, and which shapes they take."""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp

from kernels_pallas._device import MULTIPROCESSORS, SHARED_MEMORY

LANES = 128


@dataclass(frozen=True, kw_only=True)
class Config:
    """How the work is cut.

    Attributes:
      programs: how many share the rows; each is one warpgroup and takes every `programs`-th row.
      stages: rows that are loaded ahead.
    """

    programs: int = 4 * MULTIPROCESSORS
    stages: int = 3

    def shared_memory(self, d: int, itemsize: int, *, backward: bool) -> int:
        """Bytes of shared memory of a program: rows read, by stage, and rows written, two deep."""
        read, written = (3, 1) if backward else (2, 2)
        return (
            self.stages * read + 2 * written
        ) * d * itemsize + 4096  # barriers, and what Mosaic keeps for reductions

    def check(self, n: int, d: int, dtype: Any, others: tuple[Any, ...] = ()) -> str | None:
        """Why it cannot run on rows `[n, d]`, `others` being the dtypes that have to be the same; or None."""
        if min(vars(self).values()) < 1:
            return f"of {self}, all are positive"
        if dtype not in (jnp.bfloat16, jnp.float16, jnp.float32):
            return f"needs bfloat16, float16 or float32, got {jnp.dtype(dtype).name}"
        if any(other != dtype for other in others):
            return f"needs one dtype, got {', '.join(jnp.dtype(one).name for one in (dtype, *others))}"
        if d % LANES or d > 8192 or not n:
            return f"needs a row or more of channels in multiples of {LANES} up to 8192, got {n} of {d}"
        used = max(self.shared_memory(d, jnp.dtype(dtype).itemsize, backward=b) for b in (False, True))
        if used > SHARED_MEMORY:
            return f"needs {used} bytes of shared memory, there are {SHARED_MEMORY}"
        return None


def default_config(n: int, d: int, itemsize: int = 2, cores: int = MULTIPROCESSORS) -> Config:
    """As many programs as a multiprocessor's shared memory holds, at most four, and no more than rows."""
    one = Config().shared_memory(d, itemsize, backward=True)
    return Config(
        programs=max(1, min(n, cores * max(1, min(4, SHARED_MEMORY // one)))), stages=3 if one <= SHARED_MEMORY else 2
    )
