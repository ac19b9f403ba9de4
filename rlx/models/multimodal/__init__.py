"""Images and text in one network: read a word, caption, answer, and find the text of an image.

    config = multimodal.Config(vocab_size=100, classes=63)
    params = multimodal.init(key, config)
    logits = multimodal.read(params, config, crops)                              # [B, 32, classes], for CTC
    tokens = multimodal.encode(params, config, scenes, kind="scene")             # [B, 32, D]
    seen = multimodal.memory(params, config, tokens)                             # what every decoder layer looks at
    logits = multimodal.apply(params, config, seen, input_ids)                   # [B, T, vocabulary]
    similar = multimodal.embed_image(params, tokens) @ multimodal.embed_text(params, config, input_ids, lengths).T

`prefill` and `step` generate with a cache of keys and values. Shapes are static and every operation has a TensorFlow
Lite builtin; weights are `[out, in]` behind `rlx.weights`, so low-bit ones stand where arrays do.
"""

from ._config import Config as Config
from ._config import Image as Image
from ._parameters import init as init
from ._parameters import shapes as shapes
from ._text import Cache as Cache
from ._text import apply as apply
from ._text import embed_text as embed_text
from ._text import memory as memory
from ._text import prefill as prefill
from ._text import step as step
from ._vision import embed_image as embed_image
from ._vision import encode as encode
from ._vision import read as read
