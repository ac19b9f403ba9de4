"""The law cases of low bits: rounding, weights in training, rotated and observed ones, distillation."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rlx import quantize, weights

from .case import B, Case, normal

T, IN, OUT, V = 3, 6, 10, 7


def in_training(key: jax.Array) -> weights.FakeQuantized:
    k = jax.random.split(key)
    scale = jax.random.uniform(k[1], (OUT,), jnp.float32, 0.2, 0.4)
    return weights.FakeQuantized(base=normal(k[0], OUT, IN), scale=scale, bits=4, activations="float")


def turned(key: jax.Array) -> weights.Hadamard:
    return weights.Hadamard(base=normal(key, OUT, IN), seed=3)


def observed(key: jax.Array) -> weights.Observed:
    return weights.Observed(base=normal(key, OUT, IN), moment=jnp.zeros((IN, IN)))


# A stack of three layers whose codes need 8, 2 and 4 bits, all kept at 8.
_RANDOM = np.random.default_rng(0)
_MIXED = weights.QuantizedWeight(
    codes=np.stack(
        [_RANDOM.integers(low, high + 1, (IN, IN), np.int8) for low, high in ((-127, 127), (-2, 1), (-7, 7))]
    ).view(np.uint8),
    scale=np.repeat(np.array([[0.005], [0.5], [0.1]], np.float32), IN, axis=1),
    bits=8,
    inputs=IN,
    activations="float",
    layer_bits=np.array([8, 2, 4], np.uint8),
)


def _adapted_layers(x: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
    stack = weights.LoRA(base=_MIXED, a=a, b=b, scale=jnp.full(3, 0.5, a.dtype))
    return jax.lax.scan(lambda x, w: (jnp.tanh(weights.matmul(x, w)), None), x, stack)[0]


def _layers_in_training(x: jax.Array, w: jax.Array, scale: jax.Array) -> jax.Array:
    attached = quantize.qat({r"layers\.1": 8, "": 2}).attach({"layers": {"w": w}}, {"layers.w": scale})
    return jax.lax.scan(lambda x, w: (jnp.tanh(weights.matmul(x, w)), None), x, attached["layers"]["w"])[0]


def _layers(key: jax.Array, *shapes: tuple[int, ...]) -> tuple[jax.Array, ...]:
    return tuple(normal(jax.random.fold_in(key, i), *shape) for i, shape in enumerate(((B, T, IN), *shapes)))


def _of(make: Callable[[jax.Array], Any]) -> Callable[[jax.Array], tuple[Any, ...]]:
    return lambda key: (normal(jax.random.fold_in(key, 0), B, T, IN), make(jax.random.fold_in(key, 1)))


def _low_bits(w: jax.Array) -> jax.Array:
    return quantize.quantize(w, 2, scale="mse").dense()


def _feedback(w: jax.Array, moment: jax.Array) -> jax.Array:
    return quantize.gptq(w, moment, 4).dense()


def _turned_back(w: jax.Array) -> jax.Array:
    return weights.dense(quantize.rotate(w, seed=1))


def _trained(w: jax.Array, scale: jax.Array, x: jax.Array) -> jax.Array:
    training = quantize.qat(2)
    return weights.matmul(x, training.freeze({"w": w}, {"w": scale})["w"])


def _feedback_args(key: jax.Array) -> tuple[Any, ...]:
    k = jax.random.split(key)
    x = normal(k[0], B, 20, IN)
    return normal(k[1], B, OUT, IN), jnp.einsum("bri,brj->bij", x, x)


def _logits(key: jax.Array) -> tuple[Any, ...]:
    k = jax.random.split(key, 3)
    mask = jnp.arange(T)[None] < jax.random.randint(k[2], (B, 1), 1, T + 1)
    return normal(k[0], B, T, V), normal(k[1], B, T, V), mask


def _apart(fn: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    return lambda student, teacher, mask: fn(student, teacher, mask=mask)


def _pad(args: tuple[Any, ...]) -> tuple[tuple[Any, ...], Callable[[Any], Any]]:
    student, teacher, mask = args
    room = ((0, 0), (0, 2))
    wide = [jnp.pad(x, (*room, (0, 0)), constant_values=np.nan) for x in (student, teacher)]
    return (*wide, jnp.pad(mask, room)), lambda out: out[:, :-2]


_hand = jnp.log(jnp.array([[[0.25, 0.75]]]))

CASES = [
    Case(
        "matmul[in training]", weights.matmul, _of(in_training), (True, False), (0, 1), (0,), gradient_is_detached=True
    ),
    Case("matmul[hadamard]", weights.matmul, _of(turned), (True, False), (0, 1), (0, 1)),
    Case("matmul[observed]", weights.matmul, _of(observed), (True, False), (0,), (0,)),
    Case(
        "take[in training]",
        weights.take,
        lambda key: (in_training(key), jax.random.randint(key, (B, T), 0, OUT)),
        (False, True),
        differentiable=(0,),
        gradient_is_detached=True,
    ),
    Case(
        "take[hadamard]",
        weights.take,
        lambda key: (turned(key), jax.random.randint(key, (B, T), 0, OUT)),
        (False, True),
        differentiable=(0,),
        half=(0,),
    ),
    Case(
        "scan[lora over mixed bits]",
        _adapted_layers,
        lambda key: _layers(key, (3, 2, IN), (3, IN, 2)),
        (True, False, False),
        differentiable=(0, 1, 2),
        half=(0, 1, 2),
    ),
    Case(
        "scan[mixed bits in training]",
        _layers_in_training,
        lambda key: (*_layers(key, (3, IN, IN)), jnp.full((3, IN), 0.5)),
        (True, False, False),
        differentiable=(0, 1, 2),
        half=(0,),
        gradient_is_detached=True,
    ),
    Case("quantize[2 bits, mse]", _low_bits, lambda key: (normal(key, B, OUT, IN),), (True,), half=(0,)),
    Case("gptq", _feedback, _feedback_args, (True, True)),
    Case("rotate", _turned_back, lambda key: (normal(key, B, OUT, IN),), (True,), (0,), half=(0,)),
    Case(
        "qat.freeze",
        _trained,
        lambda key: (normal(key, OUT, IN), jnp.full(OUT, 0.8), normal(jax.random.fold_in(key, 1), B, T, IN)),
        (False, False, True),
    ),
    Case(
        "distill_logits",
        _apart(quantize.distill_logits),
        _logits,
        (True, True, True),
        differentiable=(0,),
        half=(0, 1),
        half_out=jnp.float32,
        pad=_pad,
        golden=(
            (jnp.zeros((1, 1, 2)), _hand, jnp.ones((1, 1), bool)),
            np.array([[0.75 * np.log(3) + np.log(0.5)]], np.float32),
            "by hand: 1/4 log(1/2) + 3/4 log(3/2)",
        ),
    ),
    Case(
        "distill_hidden",
        _apart(quantize.distill_hidden),
        _logits,
        (True, True, True),
        differentiable=(0,),
        half=(0, 1),
        half_out=jnp.float32,
        pad=_pad,
        golden=(
            (jnp.array([[[1.0, 1.0]]]), jnp.array([[[2.0, 0.0]]]), jnp.ones((1, 1), bool)),
            np.array([[0.5]], np.float32),
            "by hand: mean of 1 and 1 over mean of 4 and 0",
        ),
    ),
]
