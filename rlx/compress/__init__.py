"""Shorter contexts without retrieval: a memory of a prefix that questions read instead of the tokens.

y = compress.attend(q, memory, k, v)              # one softmax over the memory and, causally, the new tokens
memory.bytes                                      # of what is kept
"""

from ._memory import Memory as Memory
from ._memory import attend as attend
from ._merge import Merged as Merged
from ._merge import group_means as group_means
from ._merge import merge as merge
from ._merge import unmerge as unmerge
