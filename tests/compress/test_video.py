"""Video: the stream is the whole, the tree is a loop over lists, and what stands still costs nothing."""

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlx.compress import (
    Memory,
    VideoTokens,
    attend,
    compress_video,
    group_means,
    merge,
    video_state,
    video_tokens,
    video_update,
)

T, P, D = 13, 5, 3
PLACES = jnp.stack([jnp.arange(P), jnp.arange(P) % 2], axis=1).astype(jnp.float32)


def normal(*shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(0), shape)


def one(nodes: list[Any], now: int, size: int) -> Any:
    """Nodes as one, by `merge` alone."""
    tokens, mass, time, place = (jnp.concatenate(parts) for parts in zip(*nodes, strict=True))
    age = jnp.log1p(now - time)
    features = jnp.concatenate([tokens, 0.003**0.5 * age[:, None], 0.01**0.5 * place], axis=1)
    found = merge(tokens, mass, features, size=size, match="nearest", metric="euclidean", part=4)
    where = group_means(jnp.concatenate([time[:, None], place], axis=1), mass, found.source, size=size)
    return found.tokens, found.mass, where[:, 0], where[:, 1:]


def by_hand(video: jax.Array, sizes: list[int], nodes: int) -> Any:
    """The rule of the tree, with lists of nodes."""
    levels: list[list[Any]] = [[] for _ in sizes]
    for now, frame in enumerate(video):
        node = one([(frame, jnp.ones(P), jnp.full(P, float(now)), PLACES)], now, sizes[0])
        for level, size in enumerate(sizes):
            levels[level].append(node)
            if len(levels[level]) <= nodes:
                break
            old = one(levels[level][:2], now, sizes[min(level + 1, len(sizes) - 1)])
            del levels[level][:2]
            if size is sizes[-1] and level == len(sizes) - 1:
                levels[level].insert(0, old)
            node = old
    for level, size in zip(levels, sizes, strict=True):
        empty = jnp.zeros((size, D)), jnp.zeros(size), jnp.zeros(size), jnp.zeros((size, 2))
        level += [empty] * (nodes - len(level))
    rows = [node for level in reversed(levels) for node in level]
    return VideoTokens(*(jnp.concatenate(parts) for parts in zip(*rows, strict=True)))


@pytest.mark.parametrize(("size", "levels", "nodes", "sizes"), [(18, 2, 3, [3, 3]), (30, 3, 2, [5, 5, 5])])
def test_the_tree_is_the_loop(size: int, levels: int, nodes: int, sizes: list[int]) -> None:
    video = normal(T, P, D)
    found = jax.jit(partial(compress_video, size=size, levels=levels, nodes=nodes))(video, PLACES)
    expected = jax.jit(lambda video: by_hand(video, sizes, nodes))(video)
    for a, e in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, e, atol=1e-5)


@pytest.mark.parametrize("levels", [1, 3])
def test_the_stream_is_the_whole_to_the_bit(levels: int) -> None:
    video = normal(2, T, P, D)
    whole = jax.jit(partial(compress_video, size=12, levels=levels))(video, PLACES)
    state = video_state(video[:, 0], PLACES, size=12, levels=levels)
    update, shapes = jax.jit(video_update), jax.tree.map(jnp.shape, state)
    for t in range(T):
        state = update(state, video[:, t])
    assert jax.tree.map(jnp.shape, state) == shapes
    assert int(state.frames) == T
    for a, e in zip(video_tokens(state), whole, strict=True):
        np.testing.assert_array_equal(a, e)


@pytest.mark.parametrize(("size", "levels"), [(4, 1), (7, 1), (12, 2), (30, 3), (100, 3), (100, 1)])
def test_masses_add_up_and_means_keep_the_mean(size: int, levels: int) -> None:
    video = normal(T, P, D)
    found = jax.jit(partial(compress_video, size=size, levels=levels))(video, PLACES)
    assert found.mass.shape[0] <= size
    assert float(found.mass.sum()) == T * P
    for x, mean in (
        (found.tokens, video.mean((0, 1))),
        (found.place, PLACES.mean(0)),
        (found.time[:, None], (T - 1) / 2),
    ):
        np.testing.assert_allclose(found.mass @ x / (T * P), jnp.broadcast_to(mean, x.shape[1:]), rtol=1e-5, atol=1e-5)


def test_room_for_everything_changes_nothing() -> None:
    video = normal(T, P, D)
    found = compress_video(video, PLACES, size=T * P)
    np.testing.assert_allclose(found.tokens, video.reshape(-1, D), atol=1e-6)
    np.testing.assert_array_equal(found.time, jnp.repeat(jnp.arange(13.0), P))
    q = normal(4, 1, D)

    def read(seen: jax.Array, mass: jax.Array) -> jax.Array:
        keys = seen[:, None]
        return attend(q, Memory(keys=keys, values=keys, log_mass=jnp.log(mass)[:, None]))

    np.testing.assert_allclose(read(found.tokens, found.mass), read(video.reshape(-1, D), jnp.ones(T * P)), atol=1e-6)


def test_what_stands_still_is_one_token_a_place_and_what_happens_stays() -> None:
    still = jnp.broadcast_to(3 * normal(P, D), (40, P, D))
    video = still.at[17, 2].set(100.0)
    found = jax.jit(partial(compress_video, size=P + 1))(video, PLACES)
    event = int(jnp.argmax(found.tokens[:, 0]))
    assert float(found.mass[event]) == 1.0
    assert float(found.time[event]) == 17.0
    np.testing.assert_array_equal(found.place[event], PLACES[2])
    np.testing.assert_array_equal(jnp.sort(found.mass), [1.0, 39.0, 40.0, 40.0, 40.0, 40.0])


def test_the_tree_keeps_recent_frames_finely() -> None:
    """The last frames have tokens of their own, and every level reaches further back with as many tokens."""
    video = normal(64, P, D)
    found = jax.jit(partial(compress_video, size=40, levels=4))(video, PLACES)
    spans = [float(jnp.max(found.mass[i : i + 10])) for i in range(0, 40, 10)]
    assert spans == sorted(spans, reverse=True)
    recent = found.time[-10:][found.mass[-10:] > 0]
    np.testing.assert_array_equal(recent, jnp.repeat(jnp.arange(64.0 - len(recent) // P, 64.0), P))


def test_missing_patches_are_not_there() -> None:
    video = normal(T, P, D)
    mask = jax.random.bernoulli(jax.random.key(1), 0.6, (T, P))
    compress = jax.jit(lambda video, mask: compress_video(video, PLACES, size=9, mask=mask))
    found = compress(video, mask)
    other = compress(jnp.where(mask[..., None], video, jnp.nan), mask)
    assert float(found.mass.sum()) == float(mask.sum())
    for a, e in zip(other, found, strict=True):
        np.testing.assert_array_equal(a, e)
    gradient = jax.jit(jax.grad(lambda v: jnp.sum(compress_video(v, PLACES, size=9, mask=mask).tokens ** 2)))(
        jnp.where(mask[..., None], video, jnp.nan)
    )
    assert bool(jnp.all(jnp.isfinite(gradient)))
    assert bool(jnp.all(jnp.where(mask[..., None], gradient != 0, gradient == 0)))
    nothing = compress(video, jnp.zeros((T, P), bool))
    assert float(jnp.sum(jnp.abs(nothing.tokens)) + jnp.sum(nothing.mass)) == 0.0


def test_dtypes_batches_and_no_frames() -> None:
    video = normal(2, 3, T, P, D).astype(jnp.bfloat16)
    found = jax.jit(partial(compress_video, size=6))(video)
    assert found.tokens.shape == (2, 3, 6, D)
    assert found.tokens.dtype == jnp.bfloat16
    assert found.mass.dtype == found.time.dtype == jnp.float32
    assert found.place.shape == (2, 3, 6, 0)
    assert found.bytes == 2 * 3 * 6 * (2 * D + 4 + 4)
    one = jax.jit(partial(compress_video, size=6))(video[1, 2])
    np.testing.assert_array_equal(one.tokens, found.tokens[1, 2])
    assert float(compress_video(video[:, :, :0], size=6).mass.sum()) == 0.0


X = jnp.zeros((4, 3))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: compress_video(X[None], size=0), ValueError, "size"),
        (lambda: compress_video(X[None], size=5, levels=3), ValueError, "size: 5 tokens for 3 levels"),
        (lambda: compress_video(X[None], size=8, levels=2, nodes=1), ValueError, "nodes"),
        (lambda: compress_video(X[None], jnp.zeros((3, 2)), size=8), ValueError, "frame"),
        (lambda: compress_video(X[None].astype(int), size=8), TypeError, "video"),
        (lambda: compress_video(X[None], size=8, time_weight=-1.0), ValueError, "time_weight"),
        (lambda: compress_video(X[None], size=8, part=1), ValueError, "part"),
        (lambda: compress_video(X[None], size=8, mask=jnp.ones((1, 3), bool)), ValueError, "mask"),
        (lambda: video_update(X, X), TypeError, "state"),
        (lambda: video_update(video_state(X, size=2), X[:2]), ValueError, "frame"),
        (lambda: video_update(video_state(X, size=2), X, mask=jnp.ones(3, bool)), ValueError, "mask"),
        (lambda: video_update(replace(video_state(X, size=2)), X.astype(jnp.bfloat16)), ValueError, "frame"),
    ],
)
def test_mistakes_name_the_argument(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
