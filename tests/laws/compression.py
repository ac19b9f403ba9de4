"""Compression under the laws: a prefix to a memory to an answer, in one piece and as a stream.

Whole functions are compiled, which is many times quicker than their hundreds of operations one by one; `attend` is not.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from rlx.compress import allocate, attend, compress, stream, update

from .case import B, Case, normal

T, H, K, D = 11, 2, 1, 4


def _args(key: jax.Array) -> tuple[Any, ...]:
    k = jax.random.split(key, 4)
    return normal(k[0], B, 3, H, D), normal(k[1], B, T, K, D), normal(k[2], B, T, K, D), normal(k[3], B, T)


@jax.jit
def _whole(q: jax.Array, k: jax.Array, v: jax.Array, importance: jax.Array, mask: jax.Array) -> jax.Array:
    return attend(q, compress(k, v, importance, size=4, block=3, temper=0.5, mask=mask), k[:, -3:], v[:, -3:])


@jax.jit
def _soft(q: jax.Array, k: jax.Array, v: jax.Array, importance: jax.Array) -> jax.Array:
    return attend(q, compress(k, v, importance, size=6, block=3, levels=2, gate=0.5))


@jax.jit
def _streamed(q: jax.Array, k: jax.Array, v: jax.Array, importance: jax.Array) -> jax.Array:
    state = stream(k[:, :4], v[:, :4], importance[:, :4], size=5, block=2, levels=2, temper=0.5)
    return attend(q, update(state, k[:, 4:], v[:, 4:], importance[:, 4:]).memory)


def _pad(args: tuple[Any, ...]) -> tuple[tuple[Any, ...], Callable[[Any], Any]]:
    q, k, v, importance, mask = args
    # Before the prefix, so that its last tokens, which are the new ones too, stay the last.
    ahead = ((0, 0), (4, 0))
    k, v = (jnp.pad(x, (*ahead, (0, 0), (0, 0)), constant_values=7.0) for x in (k, v))
    return (q, k, v, jnp.pad(importance, ahead, constant_values=9.0), jnp.pad(mask, ahead)), lambda out: out


_values = jnp.array([1.0, 2.0, 3.0, 6.0, 5.0])[None, :, None, None]

CASES = [
    Case(
        "compress.compress",
        _whole,
        lambda key: (*_args(key), jnp.ones((B, T), bool)),
        (True, True, True, True, True),
        differentiable=(0, 1, 2, 3),
        half=(0, 1, 2, 3),
        pad=_pad,
    ),
    Case("compress.compress[gate]", _soft, _args, (True,) * 4, differentiable=(0, 1, 2, 3), half=(0, 1, 2, 3)),
    Case("compress.update", _streamed, _args, (True,) * 4, differentiable=(0, 1, 2, 3), half=(0, 1, 2, 3)),
    Case(
        "compress.attend",
        lambda q, k, v, importance: attend(q, compress(k, v, importance, size=2)),
        _args,
        (True,) * 4,
        differentiable=(0, 1, 2),
        half=(0, 1, 2, 3),
        golden=(
            (jnp.zeros((1, 1, 1, 4)), jnp.zeros((1, 5, 1, 4)), _values, jnp.zeros((1, 5))),
            jnp.array([[[[3.4]]]]),
            "by hand: with equal scores every token counts once, whatever stands for it, 17 / 5",
        ),
    ),
    Case(
        "compress.allocate",
        lambda importance: allocate(importance, size=4, block=3),
        lambda key: (normal(key, B, T),),
        (True,),
        golden=(
            (jnp.array([[0.1, 0.1, 3.0, 2.0, 0.1, 2.5, 0.1]]),),
            jnp.array([[1, 2, 1]], jnp.int32),
            "by hand: the three largest, and of four that are equal the last",
        ),
    ),
]
