"""A residual added and the sum normalised, with the statistics that the gradient needs."""

from .api import add_norm as add_norm
from .config import Config as Config
from .reference import AddNorm as AddNorm
