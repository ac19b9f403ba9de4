"""Merging of similar tokens: every token finds the one that is most like it, and the pairs most alike become one."""

from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from rlx._checks import check_choice, check_dtype, check_shapes, check_whole
from rlx._compat import vary_together
from rlx._numerics import wide

Metric = Literal["cosine", "euclidean"]
Match = Literal["bipartite", "nearest"]


class Merged(NamedTuple):
    """Tokens after merging.

    Attributes:
      tokens: `[..., M, D]`, the mean of each group, by mass; zeros where nothing is left.
      mass: `[..., M]`, what each stands for: the masses of its group added up; 0 is an empty place, all at the end.
      source: `[..., N]` int32, the group that each token went to, -1 for padding; see `unmerge` and `group_means`.
    """

    tokens: jax.Array
    mass: jax.Array
    source: jax.Array


def merge(
    tokens: jax.Array,
    mass: jax.Array | None = None,
    similarity: jax.Array | None = None,
    *,
    size: int,
    match: Match = "bipartite",
    metric: Metric = "cosine",
    part: int = 2,
    protected: jax.Array | None = None,
) -> Merged:
    """Merge the tokens that are most alike until at most `size` are left.

    tokens[j] = sum_{source[i] = j} mass[i] tokens[i] / mass[j],  mass[j] = sum_{source[i] = j} mass[i]

    In rounds. "bipartite": the tokens that may merge are dealt in turn to two sides, a and b, so b gets every second
    one, and each of a points at the token of b that is most like it. "nearest": each points at the token before it
    that is most like it, and where several point on from one to the next they become one. In both, the first of equals
    is taken, and the pairs that are most alike merge, those first in order among equals: as many as there are too many
    tokens, at most one in `part` of those that may merge. A group stands where the token pointed at stood, and its
    features in the next round are its tokens' mean. "nearest" takes four times the work, but a pair is never missed
    because both were dealt to one side: it always has the pair that is most alike of all, so with a `part` of N or
    more it is agglomeration by centroids.

    Padding changes nothing: tokens of mass 0 are left out before they are dealt. In attention a merged token counts
    as the tokens it stands for when log(mass) is added to its score.

    Args:
      tokens: `[..., N, D]`, floating.
      mass: `[..., N]`, what each token stands for, 0 for padding; ones if None.
      similarity: `[..., N, F]`, the features that are compared, such as attention's keys; the tokens if None.
      size: M, how many tokens are left, at least 1. It may be more than N.
      match: which pairs there are, "bipartite" or "nearest".
      metric: "cosine" of the features, or "euclidean", their distance: equal features are at exactly 0.
      part: 2 or more; larger is more rounds of fewer merges, each of which knows what merged before.
      protected: `[..., N]` bool, tokens that stay as they are, the first `size - 1` of them.

    Returns:
      Tokens in their dtype, mass in float32 or wider, source. Sums are in float32 or wider. The gradient goes through
      the means; the choice has none.

    Raises:
      TypeError, ValueError: name the argument whose dtype, shape or value is wrong.

    Example:
      >>> import jax.numpy as jnp
      >>> from rlx.compress import merge
      >>> merged = merge(jnp.array([[1.0], [5.0], [5.0], [1.2]]), size=2, metric="euclidean")
      >>> merged.tokens[:, 0], merged.mass, merged.source
      (Array([5. , 1.1], dtype=float32), Array([2., 2.], dtype=float32), Array([1, 0, 0, 1], dtype=int32))

    References:
      Bolya et al. 2022, "Token Merging: Your ViT But Faster" (arXiv 2210.09461), section 3. Deviations: any number of
      tokens may go, in rounds, where the paper's one round ends at half of them; the order of tokens is kept; padding
      and any protected tokens; distances beside cosines.
    """
    check_dtype("floating", tokens=tokens)
    N = check_shapes(tokens=(tokens, "*ND"))["N"]
    check_whole("size", size, 1)
    check_whole("part", part, 2)
    check_choice("match", match, ("bipartite", "nearest"))
    check_choice("metric", metric, ("cosine", "euclidean"))
    batch = tokens.shape[:-2]
    features = tokens if similarity is None else similarity
    check_dtype("floating", similarity=features)
    if check_shapes(similarity=(features, "*NF"))["N"] != N or features.shape[:-2] != batch:
        raise ValueError(f"similarity: expected shape {(*batch, N, 'F')}, got {features.shape}")
    dtype = wide(tokens.dtype)
    mass = _mass(mass, tokens)
    if protected is not None:
        check_dtype("boolean", protected=protected)
        if protected.shape != (*batch, N):
            raise ValueError(f"protected: expected shape {(*batch, N)}, got {protected.shape}")
    one = partial(_choose, size=size, match=match, metric=metric, part=part)
    for _ in batch:
        one = jax.vmap(one, in_axes=(0, 0, None if protected is None else 0))
    masses = jax.lax.stop_gradient(mass).astype(dtype)
    source = one(jax.lax.stop_gradient(features).astype(dtype), masses, protected)
    merged, total = _sums(tokens, mass, source, size)
    return Merged(merged, total, source)


def group_means(x: jax.Array, mass: jax.Array | None, source: jax.Array, *, size: int) -> jax.Array:
    """The means of another array by the groups of `merge`, by mass: positions, say, or values beside keys.

    Args:
      x: `[..., N, E]`, floating.
      mass: `[..., N]`, as it was given to `merge`; ones if None.
      source: `[..., N]`, of `merge`.
      size: M, as it was given to `merge`.

    Returns:
      `[..., M, E]` in the dtype of `x`; zeros where nothing is left.

    Raises:
      TypeError, ValueError: name the argument whose dtype, shape or value is wrong.

    Example:
      >>> import jax.numpy as jnp
      >>> from rlx.compress import group_means
      >>> group_means(jnp.array([[0.0], [1.0], [2.0]]), None, jnp.array([0, 1, 1]), size=2)[:, 0]
      Array([0. , 1.5], dtype=float32)
    """
    check_dtype("floating", x=x)
    check_dtype("integer", source=source)
    check_shapes(x=(x, "*NE"), source=(source, "*N"))
    check_whole("size", size, 1)
    if source.shape != x.shape[:-1]:
        raise ValueError(f"source: expected shape {x.shape[:-1]}, got {source.shape}")
    return _sums(x, _mass(mass, x), source, size)[0]


def unmerge(x: jax.Array, source: jax.Array) -> jax.Array:
    """Give every token the value of its group.

    Args:
      x: `[..., M, E]`, a value a group.
      source: `[..., N]`, of `merge`.

    Returns:
      `[..., N, E]` in the dtype of `x`; zeros for padding.

    Raises:
      TypeError, ValueError: name the argument whose dtype or shape is wrong.

    Example:
      >>> import jax.numpy as jnp
      >>> from rlx.compress import unmerge
      >>> unmerge(jnp.array([[5.0], [1.1]]), jnp.array([1, 0, 0, -1]))[:, 0]
      Array([1.1, 5. , 5. , 0. ], dtype=float32)
    """
    check_dtype("numeric", x=x)
    check_dtype("integer", source=source)
    check_shapes(x=(x, "*ME"), source=(source, "*N"))
    if source.shape[:-1] != x.shape[:-2]:
        raise ValueError(f"source: leading dims {source.shape[:-1]} disagree with {x.shape[:-2]} of x")
    found = jnp.take_along_axis(x, jnp.maximum(source, 0)[..., None], axis=-2, mode="clip")
    return jnp.where((source >= 0)[..., None], found, jnp.zeros_like(found))


def _mass(mass: jax.Array | None, tokens: jax.Array) -> jax.Array:
    if mass is None:
        return jnp.ones_like(tokens, shape=tokens.shape[:-1], dtype=wide(tokens.dtype))
    check_dtype("floating", mass=mass)
    if mass.shape != tokens.shape[:-1]:
        raise ValueError(f"mass: expected shape {tokens.shape[:-1]}, got {mass.shape}")
    return mass


def _sums(x: jax.Array, mass: jax.Array, source: jax.Array, size: int) -> tuple[jax.Array, jax.Array]:
    """Means `[..., M, E]` and masses `[..., M]` of the groups."""
    dtype = wide(x.dtype, mass.dtype)

    def one(x: jax.Array, mass: jax.Array, source: jax.Array) -> tuple[jax.Array, jax.Array]:
        there = source >= 0
        mass = jnp.where(there, mass.astype(dtype), 0)
        rows = mass[:, None] * jnp.where(there[:, None], x.astype(dtype), 0)
        empty = jnp.zeros_like(rows, shape=(size, x.shape[-1])), jnp.zeros_like(mass, shape=(size,))
        empty, (rows, mass), source = vary_together((empty, (rows, mass), source))
        group = jnp.where(there, source, size)  # out of range is dropped
        sums, total = (e.at[group].add(r, mode="drop") for e, r in zip(empty, (rows, mass), strict=True))
        return sums / jnp.where(total > 0, total, 1)[:, None], total

    for _ in x.shape[:-2]:
        one = jax.vmap(one)
    means, total = one(x, mass, source)
    return means.astype(x.dtype), total


def _scores(a: jax.Array, b: jax.Array, metric: Metric) -> jax.Array:
    """How alike: `a [A, F]`, `b [B, F]` -> `[A, B]`. Distances are of differences, so equal features are equal."""
    if metric == "euclidean":
        zeros, a, b = vary_together((jnp.zeros_like(a, shape=(len(a), len(b))), a, b))

        def add(total: jax.Array, column: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
            return total + jnp.square(column[0][:, None] - column[1][None, :]), None

        return -jax.lax.scan(add, zeros, (a.T, b.T), unroll=8)[0]  # vectorised over pairs, which a sum is not
    tiny = jnp.finfo(a.dtype).tiny
    a, b = (x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, axis=-1, keepdims=True), tiny)) for x in (a, b))
    return a @ b.T


def _choose(
    features: jax.Array,
    mass: jax.Array,
    protected: jax.Array | None,
    *,
    size: int,
    match: Match,
    metric: Metric,
    part: int,
) -> jax.Array:
    """The group of each token `[N]`, from `features [N, F]` and `mass [N]`."""
    alive = mass > 0
    features, mass = jnp.where(alive[:, None], features, 0), jnp.where(alive, mass, 0)
    kept = jnp.zeros_like(alive) if protected is None else protected & alive
    kept = kept & (jnp.cumsum(kept) < size)
    places = jnp.arange(len(mass), dtype=jnp.int32)
    features, mass, kept, owner = vary_together((features, mass, kept, places))

    def step(_: jax.Array, carry: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
        features, mass, owner = carry
        target = _round(features, mass, kept, size, match, metric, part)
        sums, total = vary_together((jnp.zeros_like(features), jnp.zeros_like(mass)))
        sums = sums.at[target].add(mass[:, None] * features)
        total = total.at[target].add(mass)
        return sums / jnp.where(total > 0, total, 1)[:, None], total, target[owner]

    rounds = _rounds(len(mass), size, part, protected is not None)
    if rounds > 0:
        features, mass, owner = jax.lax.fori_loop(0, rounds, step, (features, mass, owner))
    return jnp.where(alive, (jnp.cumsum(mass > 0, dtype=jnp.int32) - 1)[owner], -1)


def _rounds(count: int, size: int, part: int, guarded: bool) -> int:
    """How many rounds are enough for any mask, and any protection if there is one: for `size - 1` of all, then."""
    rounds = 0
    while count > size:
        free = count - size + 1 if guarded else count
        count = max(size, count - max(1, free // part))
        rounds += 1
    return rounds


def _round(
    features: jax.Array, mass: jax.Array, kept: jax.Array, size: int, match: Match, metric: Metric, part: int
) -> jax.Array:
    """One round: where the token at each place goes `[N]`, to itself if it stays."""
    places = jnp.arange(len(mass), dtype=jnp.int32)
    free = (mass > 0) & ~kept
    may, too_many = jnp.sum(free, dtype=jnp.int32), jnp.sum(mass > 0, dtype=jnp.int32) - size
    turn = places.at[jnp.where(free, jnp.cumsum(free, dtype=jnp.int32) - 1, len(mass))].set(places, mode="drop")
    number = jnp.clip(too_many, 0, jnp.maximum(may // part, jnp.minimum(may // 2, 1)))
    if match == "bipartite":
        a, b = places[0::2], places[1::2]
        there = jnp.broadcast_to(b < may, (len(a), len(b)))
    else:
        a, b = places, places
        there = b[None, :] < a[:, None]
    scores = jnp.where(there, _scores(features[turn[a]], features[turn[b]], metric), -jnp.inf)
    best = jnp.argmax(scores, axis=1).astype(jnp.int32)
    top = jnp.where(a < may, jnp.take_along_axis(scores, best[:, None], axis=1)[:, 0], -jnp.inf)
    earlier = a[:, None] > a[None, :]
    before = (top[None, :] > top[:, None]) | ((top[None, :] == top[:, None]) & earlier)
    going = (top > -jnp.inf) & (jnp.sum(before, axis=1, dtype=jnp.int32) < number)
    end = places.at[a].set(jnp.where(going, b[best], a))
    if match == "nearest":
        for _ in range((len(mass) - 1).bit_length()):
            end = end[end]
    return places.at[jnp.where(places < may, turn, len(mass))].set(turn[end], mode="drop")
