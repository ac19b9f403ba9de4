"""Video in few tokens: what stands still merges away, what is long ago gets coarse."""

from dataclasses import replace

import jax
import jax.numpy as jnp

from rlx._checks import check_dtype, check_shapes
from rlx._compat import vary_together

from ._video_state import VideoState, VideoTokens, video_state, video_tokens, video_update


def compress_video(
    video: jax.Array,
    places: jax.Array | None = None,
    *,
    size: int,
    levels: int = 1,
    nodes: int = 2,
    time_weight: float = 0.003,
    place_weight: float = 0.01,
    part: int = 4,
    mask: jax.Array | None = None,
) -> VideoTokens:
    """A video as `size` tokens, each a mean of patches that are alike, fine for new frames and coarse for old ones.

    Frames enter a tree as nodes of level 0. A level has room for `nodes` nodes; one more, and its two oldest become
    one node of the next level, which so has nodes of twice as many frames. The last level has no next: its two oldest
    nodes become one there. A node has a fixed number of tokens, and when two nodes become one, or a frame a node, the
    tokens that are most alike `merge`, by the distance

    d(content)^2 + time_weight d(log(1 + age))^2 + place_weight d(place)^2,  d = the Euclidean distance of both

    so what stands still merges first, and a second counts less the longer ago it was. One level is one pool that
    gives tokens to what differs, whenever that was; more levels keep tokens for every age, as many for the last
    2 frames as for the 4 before and the 8 before those. It equals `video_update` frame by frame.

    Args:
      video: `[..., T, P, D]`, floating, P patches a frame: pixels, or features.
      places: `[P, G]`, where each patch is, floating; None is nowhere (G = 0), and then places do not count.
      size: the most tokens that are left, M. At least `levels * nodes`.
      levels: of the tree.
      nodes: a level's, at least 2; one level is one node, whatever is given.
      time_weight: of the difference of log ages, at least 0.
      place_weight: of the squared distance of places, at least 0.
      part: as in `merge`: larger merges more carefully, in more rounds.
      mask: `[..., T, P]` bool, false for patches that are not there. A frame without patches is a frame still.

    Returns:
      At most `size` tokens, the oldest nodes first; all masses add up to the patches.

    Raises:
      TypeError, ValueError: name the argument whose dtype, shape or value is wrong.

    Example:
      >>> import jax.numpy as jnp
      >>> from rlx.compress import compress_video
      >>> video = jnp.zeros((5, 4, 3)).at[2, 1].set(1.0)               # [T, P, D]: something is there once
      >>> seen = compress_video(video, size=2)
      >>> seen.mass, seen.time, seen.tokens[:, 0]
      (Array([19.,  1.], dtype=float32), Array([2., 2.], dtype=float32), Array([0., 1.], dtype=float32))

    References:
      Zhang & Agrawala 2025, "Packing Input Frame Context in Next-Frame Prediction Models" (FramePack, arXiv
      2504.12626): fewer tokens for older frames, geometric in age. Bolya et al. 2022 (arXiv 2210.09461): merging.
      Deviations: nodes merge by content rather than by larger patches, and merge again when they grow old.
    """
    check_dtype("floating", video=video)
    T = check_shapes(video=(video, "*TPD"))["T"]
    batch = video.shape[:-3]
    if mask is not None:
        check_dtype("boolean", mask=mask)
        if mask.shape != video.shape[:-1]:
            raise ValueError(f"mask: expected shape {video.shape[:-1]}, got {mask.shape}")
    frame = jax.ShapeDtypeStruct((*batch, *video.shape[-2:]), video.dtype)
    state = video_state(
        frame,
        places,
        size=size,
        levels=levels,
        nodes=nodes,
        time_weight=time_weight,
        place_weight=place_weight,
        part=part,
    )
    if T == 0:
        return video_tokens(state)
    frames = jnp.moveaxis(video, -3, 0)
    masks = None if mask is None else jnp.moveaxis(mask, -2, 0)
    grown, frames, masks = vary_together((state.levels, frames, masks))

    def step(state: VideoState, inputs: tuple[jax.Array, jax.Array | None]) -> tuple[VideoState, None]:
        return video_update(state, inputs[0], mask=inputs[1]), None

    return video_tokens(jax.lax.scan(step, replace(state, levels=grown), (frames, masks))[0])
