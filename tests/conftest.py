"""Eight simulated devices, no silent rank or dtype promotion, warnings are errors (pyproject.toml)."""

import os
import platform
from pathlib import Path

ROOT = Path(__file__).parent.parent

# Before jax is imported: one intra-op thread a worker, so that xdist's workers do not fight over two cores.
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8 --xla_cpu_multi_thread_eigen=false")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# XLA:CPU stores machine code, so a cache is good for one jax and one kind of CPU.
CACHE = ROOT / ".cache" / "xla" / f"{platform.python_version()}-{platform.machine()}"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")


@pytest.fixture
def key() -> jax.Array:
    return jax.random.key(0)
