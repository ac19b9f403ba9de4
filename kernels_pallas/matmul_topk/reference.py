"""The definition: all scores at once, in float32."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from kernels_pallas._arguments import check_bits, check_dtypes


class MatmulTopk(NamedTuple):
    """What `matmul_topk` returns.

    Attributes:
      scores: `[Q, k]` float32 (float64 for float64 inputs), the greatest first; -inf where no key is left.
      indices: `[Q, k]` int32 of the keys; -1 where no key is left.
    """

    scores: jax.Array
    indices: jax.Array


def check(
    queries: jax.Array,
    keys: jax.Array,
    bias: jax.Array | None,
    valid: jax.Array | None,
    lengths: jax.Array | None,
) -> None:
    """Check shapes and dtypes; the errors name the argument."""
    for name, value, dims in (("queries", queries, "[Q, D]"), ("keys", keys, "[N, D]")):
        if value.ndim != 2:
            raise ValueError(f"{name}: expected dims {dims}, got shape {value.shape}")
        if not jnp.issubdtype(value.dtype, jnp.floating):
            raise TypeError(f"{name}: expected a floating dtype, got {value.dtype}")
    check_dtypes(queries=queries, keys=keys)
    check_bits(queries=queries, keys=keys)
    if queries.shape[1] != keys.shape[1]:
        raise ValueError(f"keys: dim D={keys.shape[1]} disagrees with D={queries.shape[1]} of queries")
    for name, one, kind, like, said in (
        ("bias", bias, jnp.floating, keys, "keys"),
        ("valid", valid, jnp.bool_, keys, "keys"),
        ("lengths", lengths, jnp.integer, queries, "queries"),
    ):
        if one is None:
            continue
        if one.shape != like.shape[:1]:
            raise ValueError(f"{name}: expected shape {like.shape[:1]}, one a row of {said}, got {one.shape}")
        if not jnp.issubdtype(one.dtype, kind):
            raise TypeError(f"{name}: expected a dtype of kind {kind.__name__}, got {one.dtype}")


def check_k(k: int, n: int) -> None:
    """There are as many keys as are asked for."""
    if not 1 <= k <= n:
        raise ValueError(f"k: expected 1 to N={n}, the number of keys, got {k}")


def score(
    queries: jax.Array,
    keys: jax.Array,
    bias: jax.Array | None,
    lengths: jax.Array | None,
    first: jax.Array | int = 0,
    *,
    by_key: bool = False,
) -> jax.Array:
    """Scores `[Q, C]`, or `[C, Q]` by key, of keys that begin at `first`; -inf where masked or not a number."""
    dtype, common = wide(queries, keys), np.result_type(queries.dtype, keys.dtype)
    sides = queries.astype(common), keys.astype(common)
    z = lax.dot_general(
        *(sides[::-1] if by_key else sides),
        (((1,), (1,)), ((), ())),
        precision=lax.Precision.HIGHEST,
        preferred_element_type=dtype,
    )
    of_key = int(not by_key)
    seen = None
    if bias is not None:
        z = z + lax.broadcast_in_dim(bias.astype(dtype), z.shape, (of_key,))
    if lengths is not None:
        word = first + lax.broadcasted_iota(jnp.int32, z.shape, of_key)
        seen = word < lax.broadcast_in_dim(lengths, z.shape, (1 - of_key,))
    known = ~jnp.isnan(z)
    return jnp.where(known if seen is None else known & seen, z, -jnp.inf)


def best(z: jax.Array, k: int, indices: jax.Array | None = None) -> MatmulTopk:
    """The k greatest of each row `[R, C]`, ties to the lower place; `indices` `[R, C]` says which keys they are."""
    scores, place = lax.top_k(without_sign(z), k)
    found = place.astype(jnp.int32) if indices is None else jnp.take_along_axis(indices, place, axis=1)
    return MatmulTopk(scores, jnp.where(scores > -jnp.inf, found, -1))


def without_sign(z: jax.Array) -> jax.Array:
    """Zeros without their sign: they are ties, but `lax.top_k` puts 0 before -0."""
    return jnp.where(z == 0, 0, z)


def reference(
    queries: jax.Array, keys: jax.Array, bias: jax.Array | None, lengths: jax.Array | None, k: int
) -> MatmulTopk:
    """`lax.top_k` of `queries @ keys.T + bias`."""
    return best(score(queries, keys, bias, lengths), k)


def reference_group_max(
    queries: jax.Array, keys: jax.Array, bias: jax.Array | None, lengths: jax.Array | None, group: int
) -> jax.Array:
    """The greatest score of each group, `[Q, G]`; the last group may be smaller."""
    z = score(queries, keys, bias, lengths)
    z = jnp.pad(z, ((0, 0), (0, -len(keys) % group)), constant_values=-jnp.inf)
    return jnp.max(z.reshape(len(z), z.shape[1] // group, group), axis=2)


def wide(queries: jax.Array, keys: jax.Array) -> Any:
    """The dtype of scores."""
    return np.result_type(np.float32, queries.dtype, keys.dtype)
