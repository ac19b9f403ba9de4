"""Models as plain functions over nested dicts whose paths are Hugging Face's names.

    model = models.load_hf(folder)
    logits = model.apply(model.params, input_ids, attention_mask=mask)

    config = models.decoder.Config(vocab_size=256, hidden_size=128, num_hidden_layers=4, num_attention_heads=4,
                                   intermediate_size=256)
    params = models.decoder.init(key, config)
    logits = models.decoder.apply(params, config, input_ids)

Repeated layers are stacked on a leading axis, and every product goes through
`rlx.weights.linear`, so an adapter or a low-bit weight can stand wherever an array does.
"""

from . import decoder as decoder
from . import encoder as encoder
from . import multimodal as multimodal
from . import siglip as siglip
from . import t5 as t5
from ._buckets import Batch as Batch
from ._buckets import Packed as Packed
from ._buckets import bucketed as bucketed
from ._buckets import packed as packed
from ._hf import Apply as Apply
from ._hf import Model as Model
from ._hf import from_config as from_config
from ._hf import load_hf as load_hf
from ._hf import save_hf as save_hf
from ._sentences import SentenceEncoder as SentenceEncoder
from ._sentences import minilm as minilm
from ._sentences import packed_embeddings as packed_embeddings
from ._sentences import sentence_embedding as sentence_embedding
from ._sharding import check_rules as check_rules
from ._sharding import shard as shard
from ._sharding import shard_rules as shard_rules
