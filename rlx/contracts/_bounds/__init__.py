"""The range of a jaxpr's outputs by interval arithmetic.

`bounds` walks the equations; each file registers rules for a kind of primitive. A primitive without a rule is
`Unsupported`: nothing is claimed.
"""

from . import _arithmetic as _arithmetic
from . import _control as _control
from . import _functions as _functions
from . import _logic as _logic
from . import _reduce as _reduce
from . import _shape as _shape
from ._walk import RULES as RULES
from ._walk import bounds as bounds
