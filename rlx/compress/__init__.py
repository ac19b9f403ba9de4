"""Shorter contexts without retrieval: a memory of a prefix that questions read instead of the tokens.

memory = compress.compress(k, v, importance, ratio=8)      # the tokens that matter, and means that get coarser with age
y = compress.attend(q, memory, k1, v1)                     # one softmax over the memory and, causally, the new tokens
memory.bytes                                               # of what is kept
compress.allocate(importance, size=64)                     # how many tokens each block would keep
state = compress.stream(k, v, importance, size=64)         # a memory that stays this large
state = compress.update(state, k1, v1, importance1)        # while tokens come
merged = compress.merge(tokens, size=64)                   # tokens that are alike become one, with their mass
seen = compress.compress_video(video, places, size=64)     # a video as 64 tokens, what stands still merged away
"""

from ._allocate import allocate as allocate
from ._compress import compress as compress
from ._memory import Memory as Memory
from ._memory import attend as attend
from ._merge import Merged as Merged
from ._merge import group_means as group_means
from ._merge import merge as merge
from ._merge import unmerge as unmerge
from ._stream import Stream as Stream
from ._stream import stream as stream
from ._stream import update as update
from ._video import compress_video as compress_video
from ._video_state import VideoState as VideoState
from ._video_state import VideoTokens as VideoTokens
from ._video_state import video_state as video_state
from ._video_state import video_tokens as video_tokens
from ._video_state import video_update as video_update
