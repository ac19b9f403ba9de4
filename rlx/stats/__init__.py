"""Effects and their uncertainty.

`paired_difference` compares two measurements of the same things (Student's t), `bootstrap` gives the interval of any
statistic by resampling (percentile or BCa). Results are frozen dataclasses with `.estimate`, `.se`, `.ci` and
`.pvalue`; they are computed in float64 on the host, from arrays of any kind.
"""

from ._bootstrap import bootstrap as bootstrap
from ._paired import paired_difference as paired_difference
from ._result import Estimate as Estimate
