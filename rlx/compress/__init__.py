"""Shorter contexts without retrieval: a memory of a prefix that questions read instead of the tokens.

y = compress.attend(q, memory, k, v)              # one softmax over the memory and, causally, the new tokens
memory.bytes                                      # of what is kept
"""

from ._memory import Memory as Memory
from ._memory import attend as attend
