"""Merging and the compression of video under the laws."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from rlx.compress import compress_video, group_means, merge, unmerge

from .case import B, Case, normal

N, T, P, D = 7, 3, 4, 3


def _merge(tokens: jax.Array, mass: jax.Array, similarity: jax.Array) -> jax.Array:
    return merge(tokens, mass, similarity, size=3).tokens


def _nearest(tokens: jax.Array, mass: jax.Array, similarity: jax.Array) -> jax.Array:
    return merge(tokens, mass, similarity, size=3, match="nearest", metric="euclidean", part=3).tokens


def _merge_args(key: jax.Array) -> tuple[Any, ...]:
    k = jax.random.split(key, 3)
    return normal(k[0], B, N, D), jax.random.uniform(k[1], (B, N), minval=0.5), normal(k[2], B, N, D)


def _merge_pad(args: tuple[Any, ...]) -> tuple[tuple[Any, ...], Callable[[Any], Any]]:
    room = ((0, 0), (2, 1), (0, 0))
    tokens, similarity = (jnp.pad(args[i], room, constant_values=7.0) for i in (0, 2))
    return (tokens, jnp.pad(args[1], room[:2]), similarity), lambda out: out


def _groups(key: jax.Array) -> jax.Array:
    return jax.random.randint(key, (B, N), 0, 3, jnp.int32)


def _video(video: jax.Array, places: jax.Array, mask: jax.Array) -> jax.Array:
    return compress_video(video, places, size=4, mask=mask).tokens


def _tree(video: jax.Array, places: jax.Array, mask: jax.Array) -> jax.Array:
    return compress_video(video, places, size=8, levels=2, mask=mask).tokens


def _video_args(key: jax.Array) -> tuple[Any, ...]:
    return normal(key, B, T, P, D), normal(jax.random.fold_in(key, 1), P, 2), jnp.ones((B, T, P), bool)


def _video_pad(args: tuple[Any, ...]) -> tuple[tuple[Any, ...], Callable[[Any], Any]]:
    room = (2, 1)
    video = jnp.pad(args[0], ((0, 0), (0, 0), room, (0, 0)), constant_values=7.0)
    places = jnp.pad(args[1], (room, (0, 0)), constant_values=7.0)
    return (video, places, jnp.pad(args[2], ((0, 0), (0, 0), room))), lambda out: out


CASES = [
    Case(
        "merge",
        _merge,
        _merge_args,
        (True, True, True),
        differentiable=(0, 1),
        half=(0,),
        pad=_merge_pad,
        golden=(
            (jnp.eye(4)[jnp.array([0, 1, 0, 1])][None], jnp.array([[1.0, 1.0, 3.0, 1.0]]), jnp.eye(4)[None]),
            jnp.array([[[0.5, 0.5, 0, 0], [1, 0, 0, 0], [0, 1, 0, 0]]]),
            "by hand: nothing is alike, so the first of each side merge",
        ),
    ),
    Case(
        "merge[nearest]",
        _nearest,
        _merge_args,
        (True, True, True),
        differentiable=(0, 1),
        half=(0,),
        pad=_merge_pad,
    ),
    Case(
        "group_means",
        lambda x, mass, source: group_means(x, mass, source, size=3),
        lambda key: (*_merge_args(key)[:2], _groups(key)),
        (True, True, True),
        differentiable=(0, 1),
        half=(0,),
    ),
    Case(
        "unmerge",
        unmerge,
        lambda key: (normal(key, B, 3, D), _groups(key)),
        (True, True),
        differentiable=(0,),
        half=(0,),
        golden=(
            (jnp.array([[[1.0], [2.0]]]), jnp.array([[1, 0, -1, 1]])),
            jnp.array([[[2.0], [1.0], [0.0], [2.0]]]),
            "by hand: each token gets its group's value, padding zero",
        ),
    ),
    Case(
        "compress_video",
        _video,
        _video_args,
        (True, False, True),
        differentiable=(0,),
        half=(0,),
        pad=_video_pad,
        golden=(
            (
                jnp.array([[[[1.0], [4.0]], [[1.0], [4.0]], [[1.0], [9.0]]]]),
                jnp.zeros((2, 0)),
                jnp.ones((1, 3, 2), bool),
            ),
            jnp.array([[[1.0], [4.0], [1.0], [9.0]]]),
            "by hand: what stands still is nearest to itself; six patches, four places",
        ),
    ),
    Case("compress_video[tree]", _tree, _video_args, (True, False, True), differentiable=(0,), half=(0,)),
]
