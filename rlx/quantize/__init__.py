"""Weights of 2, 4 and 8 bits.

    w8 = quantize.quantize(w, 8)              # stands wherever the array did: weights.matmul(x, w8)
    small = quantize.quantize_tree(params, {r"_proj\\.": 8})

Products with a quantised weight are, by default, those of TensorFlow Lite's CPU kernels
(activations rounded to int8 row by row), so what is trained or judged is what is shipped.
"""

from ._quantize import dequantize as dequantize
from ._quantize import fake_quant as fake_quant
from ._quantize import quantize as quantize
from ._tree import quantize_tree as quantize_tree
