"""Weights of 2, 4 and 8 bits: rounded after training, or trained for it.

    w8 = quantize.quantize(w, 8)              # stands wherever the array did: weights.matmul(x, w8)
    small = quantize.quantize_tree(params, {r"layers\\.0\\.": 8, r"_proj\\.": 4})     # layer 0, and the others
    moments = quantize.calibrate(apply, params, batches)      # rounding with error feedback
    small = quantize.quantize_tree(params, 4, scale="mse", moments=moments)
    training = quantize.qat(quantize.standard_rule(params))   # 2 bits between 8: init, attach, train, freeze

Products with a quantised weight are, by default, those of TensorFlow Lite's CPU kernels
(activations rounded to int8 row by row), so what is trained or judged is what is shipped.
"""

from ._allocate import Allocation as Allocation
from ._allocate import allocate as allocate
from ._allocate import sensitivity as sensitivity
from ._allocate import sizes as sizes
from ._allocate import weight_bytes as weight_bytes
from ._calibrate import calibrate as calibrate
from ._distill import distill_hidden as distill_hidden
from ._distill import distill_logits as distill_logits
from ._gptq import gptq as gptq
from ._kernels import kernels as kernels
from ._qat import QAT as QAT
from ._qat import qat as qat
from ._quantize import dequantize as dequantize
from ._quantize import fake_quant as fake_quant
from ._quantize import quantize as quantize
from ._rotate import rotate as rotate
from ._rotate import rotate_tree as rotate_tree
from ._rules import plan_bits as plan_bits
from ._rules import standard_rule as standard_rule
from ._tree import merge as merge
from ._tree import quantize_tree as quantize_tree
