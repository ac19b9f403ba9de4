"""Operations on the hot path, each with one reference, one suite and several implementations.

One folder an operation: `api` chooses an implementation in Python at trace time, `reference`
is the definition and the check of arguments. Nothing here imports rlx.
"""

from .add_norm import AddNorm as AddNorm
from .add_norm import add_norm as add_norm
from .linear_logprob import LinearLogprob as LinearLogprob
from .linear_logprob import linear_logprob as linear_logprob
from .lora_matmul import lora_matmul as lora_matmul
from .lowbit_matmul import lowbit_matmul as lowbit_matmul
from .matmul_topk import MatmulTopk as MatmulTopk
from .matmul_topk import group_max as group_max
from .matmul_topk import matmul_topk as matmul_topk
from .ssim_window import ssim_window as ssim_window
