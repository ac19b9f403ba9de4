"""Change only what must change: small trained trees over a frozen one.

    adapter = adapters.lora(rank=8, alpha=16, where=r"\\.(q|v)_proj\\.")
    delta = adapter.init(key, params)                 # what the optimiser sees, keyed by path
    logits = apply(adapter.attach(params, delta), x)  # factored; the base gets no gradient
    dense_params = adapter.merge(params, delta)       # a tree like params, one rounding

Each of `lora`, `dora`, `ia3` returns an `Adapter(init, attach, merge)` of pure functions.
"""

from ._adapter import Adapter as Adapter
from ._ia3 import ia3 as ia3
from ._lora import dora as dora
from ._lora import lora as lora
