"""A weight is a value with more than one representation.

A layer multiplies by calling `linear(x, w, bias)` or `matmul(x, w)` and looks rows up with `take(w, ids)`.
`w` is a dense array `[out, in]`, or a small pytree that stands for one: low-rank adapted (`LoRA`, `DoRA`),
with a Kronecker product added (`Kronecker`), rescaled (`IA3`), rotated (`Rotated`), with some rows of its own
(`Rows`), of few bits (`QuantizedWeight`) or in training for them (`FakeQuantized`), kept rotated (`Hadamard`),
adapted differently for each example (`PerExample`), or one of them on top of another. `dense(w)` writes any of
them out as the array it stands for.

Anything with `shape`, `dtype`, `matmul`, `take` and `dense` is a representation (see
`Representation`); leaves of stacked layers get one more leading axis, which `lax.scan` slices.
"""

from ._embedding import Rows as Rows
from ._embedding import Tied as Tied
from ._fake_quantized import FakeQuantized as FakeQuantized
from ._hadamard import Hadamard as Hadamard
from ._ia3 import IA3 as IA3
from ._kernel import Kernel as Kernel
from ._kronecker import Kronecker as Kronecker
from ._lowbit import QuantizedWeight as QuantizedWeight
from ._lowrank import DoRA as DoRA
from ._lowrank import LoRA as LoRA
from ._observed import Observed as Observed
from ._operations import Adapted as Adapted
from ._operations import Representation as Representation
from ._operations import Weight as Weight
from ._operations import bias_of as bias_of
from ._operations import dense as dense
from ._operations import linear as linear
from ._operations import matmul as matmul
from ._operations import take as take
from ._per_example import PerExample as PerExample
from ._rotated import Rotated as Rotated
