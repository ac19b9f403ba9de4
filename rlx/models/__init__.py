"""Models as plain functions over nested dicts whose paths are Hugging Face's names.

    config = models.decoder.Config(vocab_size=256, hidden_size=128, num_hidden_layers=4, num_attention_heads=4)
    params = models.decoder.init(key, config)
    logits = models.decoder.apply(params, config, input_ids)

Repeated layers are stacked on a leading axis, and every product goes through
`rlx.weights.matmul`, so an adapter or a low-bit weight can stand wherever an array does.
"""

from . import decoder as decoder
