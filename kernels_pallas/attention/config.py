"""Dense attention is cut as attention by lists is."""

from kernels_pallas.block_sparse_attention.config import Config as Config
from kernels_pallas.block_sparse_attention.config import default_config as default_config
