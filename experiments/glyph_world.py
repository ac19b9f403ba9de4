"""Videos of bouncing glyphs, drawn from a key, and questions about them.

    video = glyph_world.draw(key)                        # video.frames [T, 20, 20]
    questions = glyph_world.ask(key, video, count=8)     # what is asked, and the answers

Three of six glyphs, each a bitmap of 4 x 4, move by their size every, every second or every third frame over a still
texture with a little noise, turn round at the walls, and are there for a part of the time. So a glyph is in one patch
of 4 x 4 at a time, and what is hard is to remember, not to see. All functions are pure and of fixed shapes.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

FRAMES, WIDTH, PATCH, TRACKS = 16, 20, 4, 3
ROOM = WIDTH // PATCH - 1  # steps from wall to wall
SHORT, LONG = 5, 11  # frames that a glyph is there
BITMAPS = np.array(
    [
        [list(row) for row in glyph.split()]
        for glyph in (
            "1111 1001 1001 1111",  # square
            "1001 0110 0110 1001",  # cross
            "0110 1111 1111 0110",  # ball
            "1000 1000 1000 1111",  # corner
            "1111 0110 0110 0110",  # T
            "1010 0101 1010 0101",  # checks
        )
    ]
).astype(np.float32)
KINDS = ("first", "last", "seen", "where", "together", "bounces", "count")
GLYPHS, MOST = len(BITMAPS), 4
ANSWERS = GLYPHS + MOST + 1 + 2  # glyphs, then the numbers 0 to 4, then no and yes


class Video(NamedTuple):
    """A video and the truth about it.

    Attributes:
      frames: `[T, 20, 20]` in [0, 1].
      glyphs: `[3]` int32, which glyph each track shows; all differ.
      first, last: `[3]` int32, the frames between which it is there, both included.
      places: `[T, 3, 2]` int32, which patch it is in, (x, y), there or not.
      turns: `[3]` int32, how often it left a wall that it had run against, not counting its first and last frame.
    """

    frames: jax.Array
    glyphs: jax.Array
    first: jax.Array
    last: jax.Array
    places: jax.Array
    turns: jax.Array


class Questions(NamedTuple):
    """Questions about one video.

    Attributes:
      kind: `[Q]` int32, of KINDS.
      glyph: `[Q]` int32, whom it is about; 6 is nobody.
      other: `[Q]` int32, the second one.
      time: `[Q]` int32; T is no time.
      answer: `[Q]` int32.
    """

    kind: jax.Array
    glyph: jax.Array
    other: jax.Array
    time: jax.Array
    answer: jax.Array


def draw(key: jax.Array) -> Video:
    """One video."""
    k = jax.random.split(key, 8)
    glyphs = jax.random.permutation(k[0], GLYPHS)[:TRACKS].astype(jnp.int32)
    late = 1 + jax.random.permutation(k[1], FRAMES - SHORT)[: TRACKS - 1].astype(jnp.int32)
    first = jnp.concatenate([jnp.zeros(1, jnp.int32), late])
    last = jnp.minimum(first + jax.random.randint(k[2], (TRACKS,), SHORT, LONG + 1, jnp.int32), FRAMES) - 1
    ways = jnp.array([[1, 0], [0, 1], [1, 1]], jnp.int32)[jax.random.randint(k[3], (TRACKS,), 0, 3)]
    start = jax.random.randint(k[4], (TRACKS, 2), 0, 2 * ROOM, jnp.int32)
    every = jax.random.randint(k[7], (TRACKS,), 1, 4, jnp.int32)
    time = jnp.arange(FRAMES + 1, dtype=jnp.int32)
    phase = start[None] + (time[:, None] // every[None])[..., None] * ways[None]  # a way there and back, unfolded
    moved = jnp.any(phase[1:] != phase[:-1], axis=-1)  # [T, 3]: after this frame
    time, phase = time[:-1], phase[:-1]
    places = jnp.abs(phase % (2 * ROOM) - ROOM)
    inside = (time[:, None] > first[None]) & (time[:, None] < last[None])
    turned = (phase % ROOM == 0) & (ways[None] != 0) & (inside & moved)[..., None]
    there = (time[:, None] >= first[None]) & (time[:, None] <= last[None])

    def paint(place: jax.Array, glyph: jax.Array, there: jax.Array) -> jax.Array:
        canvas = jax.lax.dynamic_update_slice(
            jnp.zeros((WIDTH, WIDTH)), jnp.asarray(BITMAPS)[glyph], PATCH * place[::-1]
        )
        return jnp.where(there, canvas, 0.0)

    painted = jax.vmap(lambda p, t: jnp.max(jax.vmap(paint)(p, glyphs, t), axis=0))(places, there)
    texture = 0.2 * jax.random.uniform(k[5], (1, WIDTH, WIDTH))
    noise = 0.02 * jax.random.normal(k[6], (FRAMES, WIDTH, WIDTH))
    frames = jnp.clip(jnp.maximum(painted, texture) + noise, 0.0, 1.0)
    return Video(frames, glyphs, first, last, places, jnp.sum(turned, axis=(0, 2), dtype=jnp.int32))


def ask(key: jax.Array, video: Video, *, count: int) -> Questions:
    """Questions of random kinds: about a glyph of the video, except "seen", which may be about any of the six.

    first: which glyph was there at the start; last: which one came last; seen: was it there; where: in which of five
    columns was it at a time when it was there; together: were two ever there at once; bounces: how often did it turn, 4
    for more; count: how many were there at a time.
    """

    def one(key: jax.Array) -> Questions:
        k = jax.random.split(key, 5)
        kind = jax.random.randint(k[0], (), 0, len(KINDS), jnp.int32)
        a, b = jax.random.permutation(k[1], TRACKS)[:2]
        anyone = jax.random.randint(k[2], (), 0, GLYPHS, jnp.int32)
        then = jax.random.randint(k[3], (), video.first[a], video.last[a] + 1)
        when = jax.random.randint(k[4], (), 0, FRAMES, jnp.int32)
        there = (when >= video.first) & (when <= video.last)
        both = (video.first[a] <= video.last[b]) & (video.first[b] <= video.last[a])
        number, no = GLYPHS, GLYPHS + MOST + 1
        answers = jnp.stack(
            [
                video.glyphs[jnp.argmin(video.first)],
                video.glyphs[jnp.argmax(video.first)],
                no + jnp.any(video.glyphs == anyone).astype(jnp.int32),
                number + video.places[then, a, 0],
                no + both.astype(jnp.int32),
                number + jnp.minimum(video.turns[a], MOST),
                number + jnp.sum(there, dtype=jnp.int32),
            ]
        )
        nobody, never = jnp.array(GLYPHS, jnp.int32), jnp.array(FRAMES, jnp.int32)
        named, second = video.glyphs[a], video.glyphs[b]
        glyph = jnp.stack([nobody, nobody, anyone, named, named, named, nobody])[kind]
        other = jnp.where(kind == KINDS.index("together"), second, nobody)
        time = jnp.stack([never, never, never, then, never, never, when])[kind]
        return Questions(kind, glyph, other, time, answers[kind])

    return jax.vmap(one)(jax.random.split(key, count))


def patches(frames: jax.Array) -> jax.Array:
    """`[..., T, 20, 20] -> [..., T, P, D]`: 25 patches of 16 pixels, row by row."""
    side = WIDTH // PATCH
    cut = frames.reshape(*frames.shape[:-2], side, PATCH, side, PATCH)
    return jnp.swapaxes(cut, -2, -3).reshape(*frames.shape[:-2], side * side, PATCH * PATCH)


def places() -> jax.Array:
    """`[P, 2]`: where each patch is, (x, y), in patches."""
    side = WIDTH // PATCH
    y, x = jnp.divmod(jnp.arange(side * side), side)
    return jnp.stack([x, y], axis=-1).astype(jnp.float32)
