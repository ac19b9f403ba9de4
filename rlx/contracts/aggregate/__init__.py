"""Many utilities to one number: each rule is a plain function and a dataclass that a contract holds.

The functions of one text map utilities `[..., K]` to `[...]`; those that vote compare the texts of a group,
`[..., A, K]` to `[..., A]`. Weights are `[K]`, are used as they are given and are never normalised unless the equation
says so.
"""

from ._lottery import MaximalLottery as MaximalLottery
from ._lottery import maximal_lottery as maximal_lottery
from ._ordered import OWA as OWA
from ._ordered import Leximin as Leximin
from ._ordered import leximin as leximin
from ._ordered import leximin_order as leximin_order
from ._ordered import owa as owa
from ._power import CES as CES
from ._power import ces as ces
from ._rule import Aggregate as Aggregate
from ._voting import Borda as Borda
from ._voting import Copeland as Copeland
from ._voting import borda as borda
from ._voting import copeland as copeland
from ._voting import margins as margins
from ._welfare import MaxMin as MaxMin
from ._welfare import Nash as Nash
from ._welfare import WeightedSum as WeightedSum
from ._welfare import max_min as max_min
from ._welfare import nash as nash
from ._welfare import weighted_sum as weighted_sum
