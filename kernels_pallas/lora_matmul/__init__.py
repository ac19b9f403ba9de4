"""Products with a weight plus a low-rank term, one for all rows or one a row."""

from .api import lora_matmul as lora_matmul
from .config import Config as Config
