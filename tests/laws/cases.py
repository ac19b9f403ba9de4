"""The table of public functions; every one is run through the laws of test_laws.py.

A new public function is entered here: what to call it with, which arguments are a batch
(axis 0, independent examples), which are differentiable, and a value from an independent source.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kernels_pallas import LinearLogprob, linear_logprob
from rlx import quantize, reversible, weights
from rlx.models import decoder

from . import alignment, attention, compression, low_bits, models, statistics, video
from .case import B, Case, normal

T, IN, OUT, RANK = 3, 6, 10, 2


def dense_weight(key: jax.Array) -> jax.Array:
    return normal(key, OUT, IN)


def lora_weight(key: jax.Array) -> weights.LoRA:
    k = jax.random.split(key, 3)
    return weights.LoRA(
        base=dense_weight(k[0]), a=normal(k[1], RANK, IN), b=normal(k[2], OUT, RANK), scale=jnp.array(0.5)
    )


def dora_weight(key: jax.Array) -> weights.DoRA:
    k = jax.random.split(key, 4)
    return weights.DoRA(
        base=dense_weight(k[0]),
        a=normal(k[1], RANK, IN),
        b=normal(k[2], OUT, RANK),
        scale=jnp.array(0.5),
        magnitude=normal(k[3], OUT),
    )


def ia3_weight(key: jax.Array) -> weights.IA3:
    k = jax.random.split(key, 3)
    return weights.IA3(base=dense_weight(k[0]), output_scale=normal(k[1], OUT), input_scale=normal(k[2], IN))


def per_example_matmul(x: jax.Array, ids: jax.Array, bank: weights.LoRA) -> jax.Array:
    return weights.matmul(x, weights.PerExample(base=bank.base, a=bank.a, b=bank.b, scale=bank.scale, ids=ids))


def bank_of_four(key: jax.Array) -> weights.LoRA:
    k = jax.random.split(key, 4)
    return weights.LoRA(
        base=dense_weight(k[0]), a=normal(k[1], 4, RANK, IN), b=normal(k[2], 4, OUT, RANK), scale=normal(k[3], 4)
    )


def matmul_case(name: str, make_weight: Callable[[jax.Array], Any], **more: Any) -> Case:
    def make(key: jax.Array) -> tuple[Any, ...]:
        return normal(jax.random.fold_in(key, 0), B, T, IN), make_weight(jax.random.fold_in(key, 1))

    return Case(f"matmul[{name}]", weights.matmul, make, (True, False), differentiable=(0, 1), half=(0, 1), **more)


def take_case(name: str, make_weight: Callable[[jax.Array], Any], **more: Any) -> Case:
    def make(key: jax.Array) -> tuple[Any, ...]:
        return make_weight(jax.random.fold_in(key, 1)), jax.random.randint(key, (B, T), 0, OUT)

    return Case(f"take[{name}]", weights.take, make, (False, True), differentiable=(0,), half=(0,), **more)


def dense_case(name: str, make_weight: Callable[[jax.Array], Any], **more: Any) -> Case:
    def make(key: jax.Array) -> tuple[Any, ...]:
        return (make_weight(key),)

    return Case(f"dense[{name}]", weights.dense, make, (False,), differentiable=(0,), half=(0,), **more)


def _block(p: jax.Array, x: jax.Array, key: jax.Array | None) -> jax.Array:
    return jnp.tanh(weights.matmul(x, p))


_coupling = reversible.additive(_block, _block)


def _stack_args(key: jax.Array) -> tuple[Any, ...]:
    k = jax.random.split(key, 4)
    params = {"f": normal(k[0], 3, IN, IN), "g": normal(k[1], 3, IN, IN)}
    return params, (normal(k[2], B, T, IN), normal(k[3], B, T, IN))


def _stack(params: Any, state: Any) -> Any:
    return reversible.stack(_coupling, params, state)


def _unstack(params: Any, state: Any) -> Any:
    return reversible.unstack(_coupling, params, state)


CONFIG = decoder.Config(vocab_size=13, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=12)


def _decoder_args(key: jax.Array) -> tuple[Any, ...]:
    params = decoder.init(jax.random.fold_in(key, 0), CONFIG)
    ids = jax.random.randint(key, (B, 5), 0, CONFIG.vocab_size)
    return params, ids, jnp.ones((B, 5), bool)


def _decode(params: Any, ids: jax.Array, mask: jax.Array) -> jax.Array:
    return decoder.apply(params, CONFIG, ids, attention_mask=mask)


def _decoder_pad(args: tuple[Any, ...]) -> tuple[tuple[Any, ...], Callable[[Any], Any]]:
    params, ids, mask = args
    wide = ((0, 0), (2, 1))
    return (params, jnp.pad(ids, wide, constant_values=7), jnp.pad(mask, wide)), lambda logits: logits[:, 2:-1]


def _token_log_probs(params: Any, ids: jax.Array, mask: jax.Array) -> jax.Array:
    return decoder.token_log_probs(params, CONFIG, ids, attention_mask=mask)


def _token_log_probs_pad(args: tuple[Any, ...]) -> tuple[tuple[Any, ...], Callable[[Any], Any]]:
    return _decoder_pad(args)[0], lambda logp: logp[:, 2:-1]


def _linear_logprob_args(key: jax.Array) -> tuple[Any, ...]:
    k = jax.random.split(key, 3)
    return normal(k[0], B, IN), normal(k[1], OUT, IN), jax.random.randint(k[2], (B,), 0, OUT)


def _log_probs_args(key: jax.Array) -> tuple[Any, ...]:
    return 10 * normal(key, B, T, OUT), jax.random.randint(key, (B, T), 0, OUT)


_eye = jnp.array([[1.0, 0.0], [0.0, 2.0]])

CASES = [
    matmul_case(
        "dense",
        dense_weight,
        golden=((jnp.array([3.0, 4.0]), _eye), jnp.array([3.0, 8.0]), "by hand: x @ w.T"),
    ),
    matmul_case("lora", lora_weight),
    matmul_case("dora", dora_weight, gradient_is_detached=True),
    matmul_case("ia3", ia3_weight),
    Case(
        "matmul[per example]",
        per_example_matmul,
        lambda key: (normal(key, B, T, IN), jax.random.randint(key, (B,), 0, 4), bank_of_four(key)),
        (True, True, False),
        differentiable=(0, 2),
        half=(0, 2),
    ),
    Case(
        "matmul[4 bits]",
        weights.matmul,
        lambda key: (normal(key, B, T, IN), quantize.quantize(dense_weight(key), 4, activations="float")),
        (True, False),
        # computed in float32 whatever comes, which finite differences in float64 cannot follow; see tests/quantize
        half=(0,),
    ),
    Case(
        "fake_quant",
        lambda w: quantize.fake_quant(w, 4),
        lambda key: (normal(key, B, OUT, IN),),
        (True,),
        differentiable=(0,),
        half=(0,),
        gradient_is_detached=True,
    ),
    take_case("dense", dense_weight),
    take_case("lora", lora_weight),
    take_case("dora", dora_weight, gradient_is_detached=True),
    take_case("ia3", ia3_weight),
    dense_case("lora", lora_weight),
    dense_case("dora", dora_weight, gradient_is_detached=True),
    dense_case("ia3", ia3_weight),
    Case("reversible.stack", _stack, _stack_args, (False, True), differentiable=(0, 1), half=(1,)),
    Case("reversible.unstack", _unstack, _stack_args, (False, True), differentiable=(0, 1), half=(1,)),
    Case(
        "decoder.apply",
        _decode,
        _decoder_args,
        (False, True, True),
        differentiable=(0,),
        half=(0,),
        half_out=jnp.float32,
        pad=_decoder_pad,
    ),
    Case(
        "decoder.token_log_probs",
        _token_log_probs,
        _decoder_args,
        (False, True, True),
        differentiable=(0,),
        half=(0,),
        half_out=jnp.float32,
        pad=_token_log_probs_pad,
    ),
    Case(
        "linear_logprob",
        linear_logprob,
        _linear_logprob_args,
        (True, False, True),
        differentiable=(0, 1),
        half=(0, 1),
        half_out=jnp.float32,
        golden=(
            (jnp.zeros((1, IN)), jnp.ones((4, IN)), jnp.array([1])),
            LinearLogprob(*(np.array([x], np.float32) for x in (-np.log(4), np.log(4), np.log(4)))),
            "by hand: four equal logits of 0",
        ),
    ),
    Case(
        "decoder.log_probs",
        decoder.log_probs,
        _log_probs_args,
        (True, True),
        differentiable=(0,),
        half=(0,),
        half_out=jnp.float32,
        golden=(
            (jnp.log(jnp.array([[0.2, 0.3, 0.5]])), jnp.array([2])),
            np.log([0.5], dtype=np.float32),
            "by hand: the logits are log-probabilities already",
        ),
    ),
    *alignment.CASES,
    *attention.CASES,
    *compression.CASES,
    *low_bits.CASES,
    *models.CASES,
    *statistics.CASES,
    *video.CASES,
]
