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
from ._video import compress_video as compress_video
from ._video_state import VideoState as VideoState
from ._video_state import VideoTokens as VideoTokens
from ._video_state import video_state as video_state
from ._video_state import video_tokens as video_tokens
from ._video_state import video_update as video_update
