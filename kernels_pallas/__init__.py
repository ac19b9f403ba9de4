"""Operations on the hot path, each with one reference, one suite and several implementations.

One folder an operation: `api` chooses an implementation in Python at trace time, `reference`
is the definition and the check of arguments. Nothing here imports rlx.
"""

from .linear_logprob import LinearLogprob as LinearLogprob
from .linear_logprob import linear_logprob as linear_logprob
from .lora_matmul import lora_matmul as lora_matmul
from .lowbit_matmul import lowbit_matmul as lowbit_matmul
