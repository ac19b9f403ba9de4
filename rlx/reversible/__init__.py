"""Layers whose inputs are recomputed from their outputs, so that depth costs no activation memory.

    block = reversible.additive(attention, mlp)
    y = reversible.stack(block, params, (x, x))      # one lax.scan over the layers; grad keeps only y
    x = reversible.unstack(block, params, y)         # and back

`params = {"f": ..., "g": ...}`, each leaf stacked over the layers on axis 0.
"""

from ._coupling import Additive as Additive
from ._coupling import additive as additive
from ._stack import stack as stack
from ._stack import unstack as unstack
