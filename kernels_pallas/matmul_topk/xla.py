"""Tiles of scores: of each only the maxima of groups are kept, and the keys of the best groups are scored again."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from kernels_pallas._vary import vary_together

from .reference import MatmulTopk, best, reference, score, without_sign

Kernel = Callable[[jax.Array, jax.Array, jax.Array | None, jax.Array | None, int], jax.Array]
ROWS = 1024  # queries at a time
FEW = 8  # queries below which a product by groups gains nothing
AGAIN = 2**22  # elements of keys that are gathered at a time
FAN = 64  # groups of a group


def find(
    queries: jax.Array,
    keys: jax.Array,
    bias: jax.Array | None,
    lengths: jax.Array | None,
    *,
    k: int,
    group: int,
    columns: int,
    kernel: Kernel | None = None,
) -> MatmulTopk:
    """`reference`, by `ROWS` queries at a time; holds `[ROWS, columns]` scores and `[ROWS, N / group]` maxima.

    Where the k best groups would be half of the keys or more, or queries are few, all scores of as many queries as one
    tile has room for.
    """
    n, few = len(keys), len(queries) < FEW and len(queries) * len(keys) <= ROWS * columns
    if n <= columns or 2 * k * group >= n or (few and kernel is None):

        def whole(queries: jax.Array, lengths: jax.Array | None) -> MatmulTopk:
            return reference(queries, keys, bias, lengths, k)

        return _by_rows(whole, max(1, ROWS * columns // n), queries, lengths)

    def some(queries: jax.Array, lengths: jax.Array | None) -> MatmulTopk:
        most = maxima(queries, keys, bias, lengths, group, columns, kernel)
        chosen = best_groups(without_sign(most), k).T
        again = partial(_again, keys=keys, bias=bias, k=k, group=group)
        return _by_rows(again, max(1, AGAIN // max(1, k * group * keys.shape[1])), queries, lengths, chosen)

    return _by_rows(some, ROWS, queries, lengths)


def maxima(
    queries: jax.Array,
    keys: jax.Array,
    bias: jax.Array | None,
    lengths: jax.Array | None,
    group: int,
    columns: int,
    kernel: Kernel | None = None,
    *,
    finite: bool = False,
) -> jax.Array:
    """The greatest score of each group, `[ceil(N / group), Q]`: a kernel's for whole groups, else by tiles.

    Scores of a tile are `[columns, Q]`: then a group's maximum runs over rows, which a CPU's vectors do side by side.
    With `finite` an infinite or NaN input counts as 0, so that a masked one leaves no NaN in the gradient.
    """

    def tile(start: jax.Array | int, width: int) -> jax.Array:
        own = lax.dynamic_slice_in_dim(keys, start, width) if finite else _slice(keys, start, width)
        added = None if bias is None else lax.dynamic_slice_in_dim(bias, start, width)
        rows = queries
        if finite:
            rows, own = (jnp.where(jnp.isfinite(x), x, 0) for x in (rows, own))
        z = score(rows, own, added, lengths, start, by_key=True)
        z = jnp.pad(z, ((0, -width % group), (0, 0)), constant_values=-jnp.inf)
        return jnp.max(z.reshape(-(-width // group), group, len(rows)), axis=1)

    n = len(keys)
    if kernel is not None:
        done, parts = n // group * group, [kernel(queries, keys, bias, lengths, group)]
    else:
        width = max(1, columns // group) * group
        done, parts = n // width * width, []
        if done:
            starts, _ = vary_together((jnp.arange(0, done, width), (queries, keys)))
            each = jax.checkpoint(lambda start: tile(start, width))
            parts = [lax.map(each, starts).reshape(done // group, len(queries))]
    if done < n:
        parts.append(tile(done, n - done))
    return parts[0] if len(parts) == 1 else jnp.concatenate(vary_together(parts))


def best_groups(most: jax.Array, k: int) -> jax.Array:
    """The k groups of the greatest maximum `[G, Q]`, ties to the lower one, as `[k, Q]` in rising order.

    The groups are cut into groups in turn: the k best lie in the k best of those.
    """
    count = len(most)
    if count <= k:
        return jnp.broadcast_to(jnp.arange(count, dtype=jnp.int32)[:, None], most.shape)
    if count < 4 * FAN * k:
        return jnp.sort(lax.top_k(most.T, k)[1], axis=1).T.astype(jnp.int32)
    padded = jnp.pad(most, ((0, -count % FAN), (0, 0)), constant_values=-jnp.inf)
    above = best_groups(jnp.max(padded.reshape(-1, FAN, padded.shape[1]), axis=1), k)
    place = (above[:, None] * FAN + jnp.arange(FAN, dtype=jnp.int32)[None, :, None]).reshape(-1, above.shape[1])
    place = place.T
    within = jnp.sort(lax.top_k(jnp.take_along_axis(padded.T, place, axis=1), k)[1], axis=1)
    return jnp.take_along_axis(place, within, axis=1).T


def _again(
    queries: jax.Array,
    lengths: jax.Array | None,
    groups: jax.Array,
    *,
    keys: jax.Array,
    bias: jax.Array | None,
    k: int,
    group: int,
) -> MatmulTopk:
    """The best of the keys of groups `[R, m]`, which rise."""

    def one(query: jax.Array, length: jax.Array | None, groups: jax.Array) -> tuple[jax.Array, jax.Array]:
        start = jnp.minimum(groups * group, len(keys) - group)  # the last group may begin in the one before
        own = jax.vmap(lambda at: _slice(keys, at, group))(start).reshape(len(start) * group, keys.shape[1])
        place = start[:, None] + jnp.arange(group, dtype=jnp.int32)[None]
        mine = place >= groups[:, None] * group
        place = place.reshape(-1)
        z = score(query[None], own, None if bias is None else bias[place], None)[0]
        seen = mine.reshape(-1) if length is None else mine.reshape(-1) & (place < length)
        return jnp.where(seen, z, -jnp.inf), place

    z, place = jax.vmap(one, (0, None if lengths is None else 0, 0))(queries, lengths, groups)
    return best(z, k, place)


def _slice(keys: jax.Array, start: jax.Array | int, width: int) -> jax.Array:
    """`width` keys, without a gradient.

    XLA on a CPU makes all keys of half precision float32 first, so there they are cut as integers (which it copies).
    """
    if keys.dtype.itemsize != 2 or jax.default_backend() != "cpu":
        return lax.dynamic_slice_in_dim(keys, start, width)
    bits = lax.dynamic_slice_in_dim(lax.bitcast_convert_type(keys, jnp.uint16), start, width)
    return lax.bitcast_convert_type(bits, keys.dtype)


def _by_rows(function: Callable[..., MatmulTopk], rows: int, first: jax.Array, *others: jax.Array | None) -> MatmulTopk:
    """A function of `rows` rows of each array at a time, zeros at the end."""
    count = len(first)
    if count <= rows:
        return function(first, *others)

    def cut(x: jax.Array) -> jax.Array:
        x = jnp.pad(x, [(0, -count % rows)] + [(0, 0)] * (x.ndim - 1))
        return x.reshape(len(x) // rows, rows, *x.shape[1:])

    out = lax.map(lambda parts: function(*parts), jax.tree.map(cut, (first, *others)))
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:count], out)
