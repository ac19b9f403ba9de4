"""Log-probabilities of targets under a linear head, without an array of the vocabulary's width a token."""

from .api import LinearLogprob as LinearLogprob
from .api import linear_logprob as linear_logprob
from .config import Config as Config
