"""Operations on the hot path, each with one reference, one suite and several implementations.

One folder an operation: `api` chooses an implementation in Python at trace time, `reference`
is the definition and the check of arguments. Nothing here imports rlx.
"""

from .add_norm import AddNorm as AddNorm
from .add_norm import add_norm as add_norm
from .attention import Attention as Attention
from .attention import attention as attention
from .block_sparse_attention import BlockSparseAttention as BlockSparseAttention
from .block_sparse_attention import all_blocks as all_blocks
from .block_sparse_attention import block_sparse_attention as block_sparse_attention
from .block_sparse_attention import causal_blocks as causal_blocks
from .block_sparse_attention import join_blocks as join_blocks
from .block_sparse_attention import window_blocks as window_blocks
from .linear_logprob import LinearLogprob as LinearLogprob
from .linear_logprob import linear_logprob as linear_logprob
from .lora_matmul import lora_matmul as lora_matmul
from .lowbit_matmul import lowbit_matmul as lowbit_matmul
from .matmul_topk import MatmulTopk as MatmulTopk
from .matmul_topk import group_max as group_max
from .matmul_topk import matmul_topk as matmul_topk
from .ssim_window import ssim_window as ssim_window
