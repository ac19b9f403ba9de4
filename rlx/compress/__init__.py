"""Shorter contexts without retrieval: a memory of a prefix that questions read instead of the tokens.

memory = compress.compress(k, v, importance, ratio=8)      # the tokens that matter, and means that get coarser with age
y = compress.attend(q, memory, k1, v1)                     # one softmax over the memory and, causally, the new tokens
memory.bytes                                               # of what is kept
compress.allocate(importance, size=64)                     # how many tokens each block would keep
state = compress.stream(k, v, importance, size=64)         # a memory that stays this large
state = compress.update(state, k1, v1, importance1)        # while tokens come
"""

from ._allocate import allocate as allocate
from ._compress import compress as compress
from ._memory import Memory as Memory
from ._memory import attend as attend
from ._stream import Stream as Stream
from ._stream import stream as stream
from ._stream import update as update
