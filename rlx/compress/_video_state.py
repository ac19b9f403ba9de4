"""A tree over the frames of a video whose nodes merge patches that are alike, frame by frame, of a fixed size."""

from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rlx._checks import check_dtype, check_range, check_shapes, check_whole
from rlx._compat import vary_together
from rlx._numerics import wide

from ._merge import group_means, merge


class VideoTokens(NamedTuple):
    """What is left of a video, oldest nodes first.

    Attributes:
      tokens: `[..., M, D]`, means of patches.
      mass: `[..., M]`, how many patches each stands for; 0 is an empty place. `log(mass)` goes to attention's score.
      time: `[..., M]`, the mean number of their frames, the first being 0.
      place: `[..., M, G]`, the mean of their places.
    """

    tokens: jax.Array
    mass: jax.Array
    time: jax.Array
    place: jax.Array

    @property
    def bytes(self) -> int:
        """Bytes of everything that is kept, empty places, masses and positions too."""
        return sum(x.size * x.dtype.itemsize for x in self)


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["levels", "counts", "frames", "places", "time_weight", "place_weight"],
    meta_fields=["part"],
)
@dataclass(frozen=True, kw_only=True)
class VideoState:
    """The tree over a video so far; make it with `video_state`, continue it with `video_update`.

    Attributes:
      levels: finest first; each has `[..., C, m, ...]`, C nodes of m tokens, oldest node first.
      counts: `[L]` int32, how many nodes a level has.
      frames: int32, how many frames there were.
      places: `[P, G]`.
      time_weight, place_weight: of positions in the distance.
      part: as in `merge`.
    """

    levels: tuple[VideoTokens, ...]
    counts: jax.Array
    frames: jax.Array
    places: jax.Array
    time_weight: jax.Array
    place_weight: jax.Array
    part: int


def video_state(
    frame: jax.Array | jax.ShapeDtypeStruct,
    places: jax.Array | None = None,
    *,
    size: int,
    levels: int = 1,
    nodes: int = 2,
    time_weight: float = 0.003,
    place_weight: float = 0.01,
    part: int = 4,
) -> VideoState:
    """The state before the first frame, which never grows; arguments as in `compress_video`.

    Args:
      frame: `[..., P, D]`, whose shape and dtype alone are used.
      places: `[P, G]`, or None.
      size: as in `compress_video`, and so the others.
      levels: of the tree.
      nodes: of a level.
      time_weight: of log ages.
      place_weight: of places.
      part: of `merge`.

    Raises:
      TypeError, ValueError: name the argument whose dtype, shape or value is wrong.

    Example:
      >>> import jax.numpy as jnp
      >>> from rlx.compress import video_state, video_tokens, video_update
      >>> state = video_state(jnp.zeros((4, 3)), size=2)
      >>> for t in range(5):
      ...     state = video_update(state, jnp.ones((4, 3)) if t == 2 else jnp.zeros((4, 3)))
      >>> video_tokens(state).mass
      Array([16.,  4.], dtype=float32)
    """
    check_dtype("floating", frame=frame)
    P = check_shapes(frame=(frame, "*PD"))["P"]
    for name, value in (("size", size), ("levels", levels), ("nodes", nodes)):
        check_whole(name, value, 1)
    check_whole("part", part, 2)
    for name, value in (("time_weight", time_weight), ("place_weight", place_weight)):
        check_range(name, value, 0.0, float("inf"), open_high=True)
    if levels > 1 and nodes < 2:
        raise ValueError(f"nodes: {nodes} for {levels} levels; at least 2, so that the newest stays as it came")
    nodes = nodes if levels > 1 else 1
    if size < levels * nodes:
        raise ValueError(f"size: {size} tokens for {levels} levels of {nodes} nodes; at least {levels * nodes}")
    dtype = wide(frame.dtype)
    places = jnp.zeros((P, 0), dtype) if places is None else places
    check_dtype("floating", places=places)
    check_shapes(places=(places, "PG"), frame=(frame, "*PD"))
    batch, width = frame.shape[:-2], frame.shape[-1]
    rooms = [(*batch, nodes, m) for m in _sizes(P, size, levels, nodes)]
    return VideoState(
        levels=tuple(
            VideoTokens(
                jnp.zeros((*room, width), frame.dtype),
                jnp.zeros(room, dtype),
                jnp.zeros(room, dtype),
                jnp.zeros((*room, places.shape[-1]), dtype),
            )
            for room in rooms
        ),
        counts=jnp.zeros(levels, jnp.int32),
        frames=jnp.zeros((), jnp.int32),
        places=places.astype(dtype),
        time_weight=jnp.asarray(time_weight, dtype),
        place_weight=jnp.asarray(place_weight, dtype),
        part=part,
    )


def video_update(state: VideoState, frame: jax.Array, *, mask: jax.Array | None = None) -> VideoState:
    """The state after one more frame.

    Args:
      state: of `video_state`.
      frame: `[..., P, D]`, as was told to `video_state`.
      mask: `[..., P]` bool, false for patches that are not there.

    Raises:
      TypeError, ValueError: name the argument whose dtype or shape is wrong.
    """
    if not isinstance(state, VideoState):
        raise TypeError(f"state: expected a VideoState, got {type(state).__name__}")
    tokens = state.levels[0].tokens
    expected = (*tokens.shape[:-3], state.places.shape[0], tokens.shape[-1])
    check_dtype("floating", frame=frame)
    if frame.shape != expected or frame.dtype != tokens.dtype:
        raise ValueError(f"frame: expected {tokens.dtype} of shape {expected}, got {frame.dtype} of {frame.shape}")
    if mask is not None:
        check_dtype("boolean", mask=mask)
        if mask.shape != expected[:-1]:
            raise ValueError(f"mask: expected shape {expected[:-1]}, got {mask.shape}")
    one = partial(_add, state)
    for _ in expected[:-2]:
        one = jax.vmap(one, in_axes=(0, 0, None if mask is None else 0), out_axes=(0, None))
    levels, counts = one(state.levels, frame, mask)
    return replace(state, levels=levels, counts=counts, frames=state.frames + 1)


def video_tokens(state: VideoState) -> VideoTokens:
    """What a state keeps, as one row of tokens, the oldest nodes first."""

    def row(*levels: jax.Array) -> jax.Array:
        return jnp.concatenate(levels, axis=state.levels[0].tokens.ndim - 3)

    def flat(level: VideoTokens) -> VideoTokens:
        axis = level.tokens.ndim - 3
        nodes, room = level.tokens.shape[axis : axis + 2]
        return VideoTokens(*(x.reshape(*x.shape[:axis], nodes * room, *x.shape[axis + 2 :]) for x in level))

    return VideoTokens(*map(row, *(flat(level) for level in reversed(state.levels))))


def _sizes(patches: int, size: int, levels: int, nodes: int) -> list[int]:
    """Tokens of a node by level: equal parts, but no more than a node has patches; older levels get what is left."""
    found, left = [], size
    for level in range(levels):
        share = left // (nodes * (levels - level))
        found.append(share if level == levels - 1 else min(share, patches * 2**level))
        left -= nodes * found[-1]
    return found


def _add(
    state: VideoState, levels: tuple[VideoTokens, ...], frame: jax.Array, mask: jax.Array | None
) -> tuple[tuple[VideoTokens, ...], jax.Array]:
    """Levels and counts after a frame `[P, D]`, of one example."""
    dtype, now = state.places.dtype, state.frames
    there = jnp.ones_like(frame[:, 0], dtype=dtype) if mask is None else mask.astype(dtype)
    time = jnp.full_like(there, 1) * now.astype(dtype)
    node = VideoTokens(jnp.where((there > 0)[:, None], frame, 0), there, time, state.places)
    levels, node = vary_together((levels, node))
    return _push(state, levels, state.counts, node, 0)


def _push(
    state: VideoState, levels: tuple[VideoTokens, ...], counts: jax.Array, node: VideoTokens, at: int
) -> tuple[tuple[VideoTokens, ...], jax.Array]:
    """Add a node to level `at`; if that is full, its two oldest go on as one."""
    nodes, room = levels[at].mass.shape
    last = at == len(levels) - 1

    def there(level: VideoTokens) -> tuple[VideoTokens, ...]:
        return (*levels[:at], level, *levels[at + 1 :])

    if nodes == 1:  # one pool
        pool = _one(state, [_node(levels[at], 0), node], room)
        return there(VideoTokens(*(x[None] for x in pool))), jnp.ones_like(counts)
    node = _one(state, [node], room)

    def add(levels: tuple[VideoTokens, ...], counts: jax.Array) -> tuple[tuple[VideoTokens, ...], jax.Array]:
        level = jax.tree.map(lambda x, new: x.at[counts[at]].set(new), levels[at], node)
        return there(level), counts.at[at].add(1)

    def pass_on(levels: tuple[VideoTokens, ...], counts: jax.Array) -> tuple[tuple[VideoTokens, ...], jax.Array]:
        row = jax.tree.map(lambda x, new: jnp.concatenate([x, new[None]]), levels[at], node)  # C + 1 nodes
        old = _one(state, [_node(row, 0), _node(row, 1)], room if last else levels[at + 1].mass.shape[1])
        if last:
            return there(jax.tree.map(lambda x, o: jnp.concatenate([o[None], x[2:]]), row, old)), counts
        empty = jax.tree.map(lambda x: jnp.concatenate([x[2:], jnp.zeros_like(x[:1])]), row)
        return _push(state, there(empty), counts.at[at].add(-1), old, at + 1)

    return jax.lax.cond(counts[at] < nodes, add, pass_on, levels, counts)


def _node(level: VideoTokens, index: int) -> VideoTokens:
    return VideoTokens(*(x[index] for x in level))


def _one(state: VideoState, nodes: list[VideoTokens], size: int) -> VideoTokens:
    """Nodes as one of `size` tokens."""
    row = VideoTokens(*(jnp.concatenate(parts) for parts in zip(*nodes, strict=True)))
    age = jnp.log1p(state.frames.astype(row.time.dtype) - row.time)
    features = jnp.concatenate(
        [
            row.tokens.astype(row.time.dtype),
            jnp.sqrt(state.time_weight) * age[:, None],
            jnp.sqrt(state.place_weight) * row.place,
        ],
        axis=-1,
    )
    found = merge(row.tokens, row.mass, features, size=size, match="nearest", metric="euclidean", part=state.part)
    where = jnp.concatenate([row.time[:, None], row.place], axis=-1)
    where = group_means(where, row.mass, found.source, size=size)
    return VideoTokens(found.tokens, found.mass, where[:, 0], where[:, 1:])
