"""The definition: one block of all queries against one of all keys."""

from dataclasses import replace

import jax.numpy as jnp

from kernels_pallas.block_sparse_attention.reference import BlockSparseAttention
from kernels_pallas.block_sparse_attention.reference import reference as listed
from kernels_pallas.block_sparse_attention.rules import Inputs, Rules


def reference(x: Inputs, rules: Rules) -> BlockSparseAttention:
    """Softmax of all `[B, H, T, S]` scores; those against a rule are -inf."""
    whole = replace(rules, block_q=max(1, x.q.shape[1]), block_k=max(1, x.k.shape[1]))
    return listed(x._replace(blocks=jnp.zeros((1, 1, 1, 1), jnp.int32)), whole)
