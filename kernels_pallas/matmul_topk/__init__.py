"""The k best keys of each query by inner product, and the best score of each group of keys, without all scores."""

from .api import group_max as group_max
from .api import matmul_topk as matmul_topk
from .config import Config as Config
from .reference import MatmulTopk as MatmulTopk
