"""Every kernel with its gradient inside `shard_map`, rows over eight devices, lowered to CUDA."""

import importlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec

import kernels_pallas as kernels

from .mosaic import lowered

ROWS, ALL = PartitionSpec("batch"), PartitionSpec()
HALF = jnp.bfloat16
MOSAIC = "mosaic_gpu"


def shape(*dims: int, dtype: Any = HALF) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(dims, dtype)


def head(hidden: jax.Array, weight: jax.Array, targets: jax.Array) -> jax.Array:
    out = kernels.linear_logprob(hidden, weight, targets, implementation=MOSAIC)
    return jnp.mean(out.logp) + jnp.mean(out.entropy)


def sparse(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    lists = kernels.window_blocks(256, 256, block_q=64, block_k=64, window=100)
    out = kernels.block_sparse_attention(
        q, k, v, lists, block_q=64, block_k=64, causal=True, window=100, implementation=MOSAIC
    )
    return jnp.mean(out.y.astype(jnp.float32)) + jnp.mean(out.logsumexp)


def search(queries: jax.Array, keys: jax.Array) -> jax.Array:
    return jnp.mean(jnp.sin(kernels.matmul_topk(queries, keys, 2, implementation=MOSAIC).scores))


def low(x: jax.Array, codes: jax.Array, scales: jax.Array) -> jax.Array:
    return jnp.mean(jnp.sin(kernels.lowbit_matmul(x, codes, scales, bits=4, implementation=MOSAIC)).astype(jnp.float32))


def lora(x: jax.Array, weight: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
    out = kernels.lora_matmul(x, weight, a, b, scale=2.0, implementation=MOSAIC)
    return jnp.mean(jnp.sin(out).astype(jnp.float32))


def norm(x: jax.Array, residual: jax.Array, weight: jax.Array) -> jax.Array:
    out = kernels.add_norm(x, residual, weight, implementation=MOSAIC)
    return jnp.mean(jnp.sin(out.normed).astype(jnp.float32)) + jnp.mean(out.sum.astype(jnp.float32))


CASES: dict[str, tuple[Callable[..., jax.Array], tuple[Any, ...], tuple[int, ...], int]] = {
    # What is computed, the arguments, which of them are split, how many of the first are floating.
    "linear_logprob": (head, (shape(1024, 64), shape(512, 64), shape(1024, dtype=jnp.int32)), (0, 2), 2),
    "block_sparse_attention": (sparse, (shape(8, 256, 2, 64),) * 3, (0, 1, 2), 3),
    "matmul_topk": (search, (shape(1024, 64), shape(16_384, 64)), (0,), 2),
    "lowbit_matmul": (low, (shape(64, 512), shape(512, 256, dtype=jnp.uint8), shape(512, dtype=jnp.float32)), (0,), 1),
    "lora_matmul": (lora, (shape(1024, 512), shape(256, 512), shape(16, 512), shape(256, 16)), (0,), 4),
    "add_norm": (norm, (shape(1024, 256), shape(1024, 256), shape(256)), (0, 1), 3),
}


@pytest.mark.parametrize("operation", CASES)
def test_a_kernel_and_its_gradient_lower_over_eight_devices(operation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    function, arguments, split, floating = CASES[operation]
    monkeypatch.setattr(importlib.import_module(f"kernels_pallas.{operation}.api"), "needs_hopper", lambda: None)
    mesh = jax.make_mesh((8,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
    specs = tuple(ROWS if i in split else ALL for i in range(len(arguments)))
    over = jax.shard_map(
        lambda *args: jax.lax.pmean(function(*args), "batch"), mesh=mesh, in_specs=specs, out_specs=ALL
    )
    text = lowered(jax.value_and_grad(over, tuple(range(floating))), *arguments)
    assert "mosaic_gpu_v2" in text
