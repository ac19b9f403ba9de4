"""Attention of blocks of queries to listed blocks of keys, with the log-sum-exp."""

from .api import BlockSparseAttention as BlockSparseAttention
from .api import block_sparse_attention as block_sparse_attention
from .config import Config as Config
from .lists import all_blocks as all_blocks
from .lists import causal_blocks as causal_blocks
from .lists import join_blocks as join_blocks
from .lists import window_blocks as window_blocks
