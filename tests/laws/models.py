"""The law cases of models: every sort of decoder, the encoders, T5, and of the weights that adapters make."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from rlx import models, weights
from rlx.adapters._oft import rotation
from rlx.models import decoder, encoder, multimodal, t5

from .case import B, Case, normal

IN, OUT, T = 6, 10, 3


def rotated_weight(key: jax.Array) -> weights.Rotated:
    k = jax.random.split(key)
    return weights.Rotated(base=normal(k[0], OUT, IN), rotation=rotation(0.3 * normal(k[1], 2, 3), 3))


def kronecker_weight(key: jax.Array) -> weights.Kronecker:
    k = jax.random.split(key, 3)
    first, second = normal(k[1], 2, 3), normal(k[2], 5, 2)
    return weights.Kronecker(base=normal(k[0], OUT, IN), first=first, second=second, scale=jnp.array(0.5))


def rows_weight(key: jax.Array) -> weights.Rows:
    k = jax.random.split(key)
    return weights.Rows(base=normal(k[0], OUT, IN), index=jnp.array([7, 2]), rows=normal(k[1], 2, IN))


def biased_weight(key: jax.Array) -> weights.LoRA:
    k = jax.random.split(key, 4)
    a, b = normal(k[1], 2, IN), normal(k[2], OUT, 2)
    return weights.LoRA(base=normal(k[0], OUT, IN), a=a, b=b, scale=jnp.array(0.5), bias=normal(k[3], OUT))


def _x_and(make: Callable[[jax.Array], Any]) -> Callable[[jax.Array], tuple[Any, ...]]:
    return lambda key: (normal(jax.random.fold_in(key, 0), B, T, IN), make(jax.random.fold_in(key, 1)))


def _linear(x: jax.Array, w: Any, bias: jax.Array) -> jax.Array:
    return weights.linear(x, w, bias)


def _cases_of(name: str, make: Callable[[jax.Array], Any], more: tuple[jax.Array, jax.Array]) -> list[Case]:
    return [
        Case(
            f"matmul[{name}]",
            weights.matmul,
            _x_and(make),
            (True, False),
            differentiable=(0,),
            half=(0, 1),
            golden=((more[0], make(jax.random.key(0))), more[1], "by hand: the dense weight in numpy"),
        ),
        Case(
            f"take[{name}]",
            weights.take,
            lambda key: (make(key), jax.random.randint(key, (B, T), 0, OUT)),
            (False, True),
            half=(0,),
        ),
        Case(f"dense[{name}]", weights.dense, lambda key: (make(key),), (False,), half=(0,)),
    ]


def _by_hand(make: Callable[[jax.Array], Any]) -> tuple[jax.Array, jax.Array]:
    """One row of activations times the array that each weight stands for, written out without it."""
    import numpy as np

    x, w = np.arange(1.0, IN + 1), make(jax.random.key(0))
    base = np.asarray(w.base, np.float64)
    if isinstance(w, weights.Rotated):
        block = np.zeros((IN, IN))
        for i, turn in enumerate(np.asarray(w.rotation, np.float64)):
            block[3 * i : 3 * i + 3, 3 * i : 3 * i + 3] = turn
        y = base @ (x @ block)
    elif isinstance(w, weights.Kronecker):
        y = (base + 0.5 * np.kron(np.asarray(w.first, np.float64), np.asarray(w.second, np.float64))) @ x
    else:
        base[[7, 2]] = np.asarray(w.rows, np.float64)
        y = base @ x
    return jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32)


SIZES: dict[str, Any] = {
    "vocab_size": 13,
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 12,
}
SLIDING: dict[str, Any] = {"sliding_window": 3, "layer_types": ("sliding_attention", "full_attention")}
DECODERS = {
    "llama": decoder.Config(**SIZES, residual="plain", num_key_value_heads=1, tie_word_embeddings=False),
    "gemma": decoder.Config(
        **SIZES, **SLIDING, residual="plain", names="gemma", norm_offset=1.0, qk_norm=True, logit_softcap=5.0
    ),
    "gpt2": decoder.Config(
        **SIZES,
        residual="plain",
        names="gpt2",
        norm="layer",
        attention_bias=True,
        attention_output_bias=True,
        mlp_bias=True,
    ),
}
BERT = encoder.Config(kind="bert", **SIZES, max_position_embeddings=16)
T5 = t5.Config(vocab_size=13, d_model=8, d_kv=4, d_ff=12, num_layers=2, num_decoder_layers=2, num_heads=2)


def _decoder(name: str) -> Case:
    config = DECODERS[name]

    def make(key: jax.Array) -> tuple[Any, ...]:
        params = decoder.init(jax.random.fold_in(key, 0), config)
        return params, jax.random.randint(key, (B, 5), 0, 13), jnp.ones((B, 5), bool)

    def pad(args: tuple[Any, ...]) -> tuple[tuple[Any, ...], Callable[[Any], Any]]:
        params, ids, mask = args
        wide = ((0, 0), (2, 1))
        return (params, jnp.pad(ids, wide, constant_values=7), jnp.pad(mask, wide)), lambda logits: logits[:, 2:-1]

    def apply(params: Any, ids: jax.Array, mask: jax.Array) -> jax.Array:
        return decoder.apply(params, config, ids, attention_mask=mask)

    return Case(
        f"decoder.apply[{name}]",
        apply,
        make,
        (False, True, True),
        differentiable=(0,),
        half=(0,),
        half_out=jnp.float32,
        pad=pad,
    )


def _encoder_args(key: jax.Array) -> tuple[Any, ...]:
    params = encoder.init(jax.random.fold_in(key, 0), BERT)
    return params, jax.random.randint(key, (B, 5), 0, 13), jnp.ones((B, 5), bool)


def _encode(params: Any, ids: jax.Array, mask: jax.Array) -> jax.Array:
    return encoder.apply(params, BERT, ids, attention_mask=mask)


def _encoder_pad(args: tuple[Any, ...]) -> tuple[tuple[Any, ...], Callable[[Any], Any]]:
    params, ids, mask = args
    wide = ((0, 0), (0, 2))
    return (params, jnp.pad(ids, wide, constant_values=7), jnp.pad(mask, wide)), lambda hidden: hidden[:, :-2]


def _embed(params: Any, ids: jax.Array, mask: jax.Array) -> jax.Array:
    return models.sentence_embedding(params, BERT, ids, attention_mask=mask)


def _embed_pad(args: tuple[Any, ...]) -> tuple[tuple[Any, ...], Callable[[Any], Any]]:
    return _encoder_pad(args)[0], lambda vectors: vectors


def _t5_args(key: jax.Array) -> tuple[Any, ...]:
    k = jax.random.split(key, 3)
    ids, written = jax.random.randint(k[1], (B, 5), 0, 13), jax.random.randint(k[2], (B, 3), 0, 13)
    return t5.init(k[0], T5), ids, written, jnp.ones((B, 5), bool)


def _t5(params: Any, ids: jax.Array, written: jax.Array, mask: jax.Array) -> jax.Array:
    return t5.apply(params, T5, ids, decoder_input_ids=written, attention_mask=mask)


def _t5_pad(args: tuple[Any, ...]) -> tuple[tuple[Any, ...], Callable[[Any], Any]]:
    params, ids, written, mask = args
    wide = ((0, 0), (0, 2))
    return (params, jnp.pad(ids, wide, constant_values=7), written, jnp.pad(mask, wide)), lambda logits: logits


SEES = multimodal.Config(
    vocab_size=13,
    classes=5,
    images=(("scene", multimodal.Image(height=8, width=8, merge=(1, 2))),),
    stem_size=4,
    stem_layers=1,
    hidden_size=8,
    num_attention_heads=2,
    intermediate_size=8,
    vision_layers=1,
    decoder_layers=1,
    max_length=8,
    embedding_size=4,
)


def _sees_args(key: jax.Array) -> tuple[Any, ...]:
    k = jax.random.split(key, 3)
    pixels = jax.random.randint(k[1], (B, 8, 8, 3), 0, 256).astype(jnp.uint8)
    return multimodal.init(k[0], SEES), pixels, jax.random.randint(k[2], (B, 5), 0, 13), jnp.full((B,), 4, jnp.int32)


def _tokens(params: Any, pixels: jax.Array) -> jax.Array:
    return multimodal.encode(params, SEES, pixels, kind="scene")


def _says(params: Any, pixels: jax.Array, ids: jax.Array) -> jax.Array:
    return multimodal.apply(params, SEES, multimodal.memory(params, SEES, _tokens(params, pixels)), ids)


def _text_vector(params: Any, ids: jax.Array, lengths: jax.Array) -> jax.Array:
    return multimodal.embed_text(params, SEES, ids, lengths)


def _text_pad(args: tuple[Any, ...]) -> tuple[tuple[Any, ...], Callable[[Any], Any]]:
    params, ids, lengths = args
    return (params, jnp.pad(ids, ((0, 0), (0, 2)), constant_values=7), lengths), lambda vectors: vectors


def _sees_pad(args: tuple[Any, ...]) -> tuple[tuple[Any, ...], Callable[[Any], Any]]:
    params, pixels, ids = args
    return (params, pixels, jnp.pad(ids, ((0, 0), (0, 2)), constant_values=7)), lambda logits: logits[:, :-2]


CASES = [
    Case(
        "multimodal.encode",
        _tokens,
        lambda key: _sees_args(key)[:2],
        (False, True),
        differentiable=(0,),
        half=(0,),
    ),
    Case(
        "multimodal.apply",
        _says,
        lambda key: _sees_args(key)[:3],
        (False, True, True),
        differentiable=(0,),
        half=(0,),
        half_out=jnp.float32,
        pad=_sees_pad,
    ),
    Case(
        "multimodal.embed_text",
        _text_vector,
        lambda key: (_sees_args(key)[0], *_sees_args(key)[2:]),
        (False, True, True),
        half=(0,),
        half_out=jnp.float32,
        pad=_text_pad,
    ),
    *_cases_of("rotated", rotated_weight, _by_hand(rotated_weight)),
    *_cases_of("kronecker", kronecker_weight, _by_hand(kronecker_weight)),
    *_cases_of("rows", rows_weight, _by_hand(rows_weight)),
    Case(
        "linear[lora with a bias]",
        _linear,
        lambda key: (*_x_and(biased_weight)(key), normal(key, OUT)),
        (True, False, False),
        differentiable=(0, 1, 2),
        half=(0, 1, 2),
    ),
    *(_decoder(name) for name in DECODERS),
    Case(
        "encoder.apply", _encode, _encoder_args, (False, True, True), differentiable=(0,), half=(0,), pad=_encoder_pad
    ),
    Case("sentence_embedding", _embed, _encoder_args, (False, True, True), half=(0,), pad=_embed_pad),
    Case(
        "t5.apply",
        _t5,
        _t5_args,
        (False, True, True, True),
        differentiable=(0,),
        half=(0,),
        half_out=jnp.float32,
        pad=_t5_pad,
    ),
]
