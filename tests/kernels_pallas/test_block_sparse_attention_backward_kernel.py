"""The backward kernels of block_sparse_attention, interpreted: the gradients of the reference, and no race."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest

from kernels_pallas import causal_blocks
from kernels_pallas.block_sparse_attention.config import Config
from kernels_pallas.block_sparse_attention.mosaic_gpu import Mosaic
from kernels_pallas.block_sparse_attention.reference import reference
from kernels_pallas.block_sparse_attention.rules import Inputs
from kernels_pallas.block_sparse_attention.xla import blocked

from .attention_truth import arguments, distance, some_blocks
from .mosaic import interpreter
from .test_block_sparse_attention_kernel import inputs

BACKWARD: dict[str, tuple[dict[str, Any], Any, dict[str, Any], Config]] = {
    "lists of every head": (
        {"length": 64, "keys": 150, "heads": 2, "shared": 1},
        some_blocks(2, 1, 2, 3),
        {"block_q": 64, "block_k": 64, "softcap": 2.0},
        Config(columns=64, groups=1, stages=1, back_groups=1, back_stages=1),
    ),
    "two heads share a list, two warpgroups": (
        {"length": 100, "keys": 128, "heads": 2, "shared": 1},
        some_blocks(1, 2, 2, 1),
        {"block_q": 64, "block_k": 128, "causal": True, "offset": 40, "window": 90},
        Config(columns=64, groups=2, stages=2, back_groups=2, back_stages=2),
    ),
    "padding and sinks": (
        {"length": 128, "keys": 128, "heads": 1, "shared": 1, "batch": (2,)},
        causal_blocks(128, 128, block_q=128, block_k=64),
        {"block_q": 128, "block_k": 64, "causal": True, "lengths": jnp.array([128, 40]), "sinks": jnp.zeros(1)},
        Config(columns=64, groups=2, stages=2, back_groups=1, back_stages=2),
    ),
}


@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", BACKWARD)
def test_interpreted_the_backward_kernels_have_the_gradients_of_the_reference(name: str) -> None:
    sizes, blocks, rules, config = BACKWARD[name]
    q, k, v = arguments(**sizes, d=64, dtype=jnp.bfloat16)
    x, fixed = inputs(q, k, v, blocks, **rules)
    assert config.check(x, fixed) is None
    kernel = Mosaic(config, interpreter())

    def slopes(way: Any, x: Inputs) -> Any:
        def total(q: Any, k: Any, v: Any) -> jax.Array:
            out = way(x._replace(q=q, k=k, v=v), fixed)
            known = jnp.where(out.logsumexp == -jnp.inf, 0, out.logsumexp)
            return jnp.sum(jnp.sin(out.y.astype(jnp.float32))) + jnp.sum(jnp.sin(known))

        return jax.jit(jax.grad(total, (0, 1, 2)))(x.q, x.k, x.v)

    actual = slopes(lambda x, rules: blocked(x, rules, kernel), x)
    wide = x._replace(q=x.q.astype(jnp.float32), k=x.k.astype(jnp.float32), v=x.v.astype(jnp.float32))
    for a, e in zip(actual, slopes(reference, wide), strict=True):
        assert a.dtype == jnp.bfloat16
        assert distance(a, e) < 5e-3
