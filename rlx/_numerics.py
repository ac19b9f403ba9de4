"""Dtypes to compute in, the same under strict and standard promotion."""

from typing import Any

import numpy as np


def common(*dtypes: Any) -> Any:
    """The dtype that holds values of all of these; bfloat16 and float16 meet in float32."""
    return np.result_type(*dtypes)


def wide(*dtypes: Any) -> Any:
    """The dtype to accumulate in: float32, or float64 when an input is."""
    return np.result_type(np.float32, *dtypes)
