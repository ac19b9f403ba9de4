"""Dense attention: cuDNN where it can, lists of blocks where it cannot."""

from .api import Attention as Attention
from .api import attention as attention
from .config import Config as Config
