"""Ways to make a video of glyphs shorter, at equal bytes: merging as a tree or a pool, and what it is compared with.

A way takes `video [T, P, D]`, a key, and bytes of float32, and gives `VideoTokens`. What counts are patches, and masses
and positions where these cannot be told from their order.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from experiments import glyph_world as world
from rlx.compress import VideoTokens, compress_video

PATCHES, PIXELS = (world.WIDTH // world.PATCH) ** 2, world.PATCH**2
FRAME_BYTES = 4 * PATCHES * PIXELS
BUDGETS = tuple(FRAME_BYTES * frames for frames in (1, 2, 4))  # of 16: 16, 8 and 4 times fewer bytes
POOLS = {1: (1, 5), 2: (2, 5), 4: (4, 5)}  # cells in time and along each side, by frames' worth of bytes
WIDEST = 4 * PATCHES  # tokens of the largest budget


def kept(video: jax.Array, where: jax.Array, ids: jax.Array) -> VideoTokens:
    """Some patches of `video [T, P, D]` as they are: `ids` counts through frames, `where [T P, 3]`."""
    return VideoTokens(video.reshape(-1, PIXELS)[ids], jnp.ones(ids.shape), where[ids, 0], where[ids, 1:])


def positions() -> jax.Array:
    """`[T P, 3]`: the time and place of every patch."""
    time = jnp.repeat(jnp.arange(world.FRAMES, dtype=jnp.float32), PATCHES)
    return jnp.concatenate([time[:, None], jnp.tile(world.places(), (world.FRAMES, 1))], axis=1)


def everything(video: jax.Array, key: jax.Array, *, budget: int) -> VideoTokens:
    """All patches."""
    return kept(video, positions(), jnp.arange(world.FRAMES * PATCHES))


def nothing(video: jax.Array, key: jax.Array, *, budget: int) -> VideoTokens:
    """One empty place: what can be said without having seen the video."""
    return VideoTokens(*(jnp.zeros_like(x) for x in kept(video, positions(), jnp.zeros(1, jnp.int32))))


def frames(video: jax.Array, key: jax.Array, *, budget: int, newest: bool) -> VideoTokens:
    """Whole frames, at equal distances or the last ones; their order tells where a patch was."""
    count = budget // FRAME_BYTES
    at = np.arange(world.FRAMES - count, world.FRAMES) if newest else (np.arange(count) + 0.5) * world.FRAMES / count
    ids = np.floor(at).astype(np.int32)[:, None] * PATCHES + np.arange(PATCHES, dtype=np.int32)
    return kept(video, positions(), jnp.asarray(ids.reshape(-1)))


def at_random(video: jax.Array, key: jax.Array, *, budget: int) -> VideoTokens:
    """Random patches, with their positions."""
    ids = jax.random.permutation(key, world.FRAMES * PATCHES)[: budget // (4 * (PIXELS + 3))]
    return kept(video, positions(), ids)


def changed(video: jax.Array, key: jax.Array, *, budget: int) -> VideoTokens:
    """The patches that differ most from the one before them at the same place, with their positions."""
    before = jnp.concatenate([jnp.zeros_like(video[:1]), video[:-1]])
    differ = jnp.sum(jnp.square(video - before), axis=-1).reshape(-1)
    return kept(video, positions(), jax.lax.top_k(differ, budget // (4 * (PIXELS + 3)))[1])


def pooled(video: jax.Array, key: jax.Array, *, budget: int) -> VideoTokens:
    """Means over blocks of time and place, whose order tells where they were."""
    time, side = POOLS[budget // FRAME_BYTES]
    full = int(PATCHES**0.5)

    def mean(x: jax.Array) -> jax.Array:
        x = x.reshape(time, world.FRAMES // time, side, full // side, side, full // side, -1)
        return jnp.mean(x, axis=(1, 3, 5)).reshape(time * side * side, -1)

    where = mean(positions())
    mass = jnp.full(len(where), world.FRAMES * PATCHES / len(where))
    return VideoTokens(mean(video), mass, where[:, 0], where[:, 1:])


def merged(video: jax.Array, key: jax.Array, *, budget: int, levels: int) -> VideoTokens:
    """`compress_video`, whose tokens have masses and positions."""
    return compress_video(video, world.places(), size=budget // (4 * (PIXELS + 4)), levels=levels)


Method = Callable[..., VideoTokens]
METHODS: dict[str, Method] = {
    "one pool": partial(merged, levels=1),
    "tree": partial(merged, levels=3),
    "changed patches": changed,
    "mean pooling": pooled,
    "frame dropping": partial(frames, newest=False),
    "newest frames": partial(frames, newest=True),
    "random patches": at_random,
}
