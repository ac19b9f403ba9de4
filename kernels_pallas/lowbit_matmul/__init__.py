"""Products with a weight of 2, 4 or 8 bits: packed codes and their scales."""

from .api import lowbit_matmul as lowbit_matmul
from .config import Config as Config
