"""Choose how to compute it."""

from collections.abc import Mapping
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp

from kernels_pallas._arguments import arrays, check_config, optional, whole, within
from kernels_pallas._dispatch import choose, needs_hopper
from kernels_pallas._vary import vary_together

from . import gradient, xla
from .config import Config, default_config
from .reference import MatmulTopk, check, check_k, reference, reference_group_max, wide

Implementation = Literal["auto", "xla", "mosaic_gpu", "reference"]
Metric = Literal["ip", "l2"]


def matmul_topk(
    queries: jax.Array,
    keys: jax.Array,
    k: int,
    *,
    bias: jax.Array | None = None,
    valid: jax.Array | None = None,
    lengths: jax.Array | None = None,
    metric: Metric = "ip",
    implementation: Implementation = "auto",
    group: int = 32,
    columns: int = 8192,
    config: Config | None = None,
) -> MatmulTopk:
    """The k keys of the greatest inner product with each query, exactly, without an array of all scores.

    scores[q], indices[q] = top_k over n of  queries[q] . keys[n] + bias[n]

    The keys are cut into groups of neighbours. A key among the k best lies in one of the k groups of the greatest
    maximum (ties to the lower group): each group before its own has a key that comes before it. So only the maxima of
    groups are kept, and the keys of k groups are scored again.

    Args:
      queries: `[Q, D]`, floating.
      keys: `[N, D]`, floating.
      k: how many, 1 to N.
      bias: `[N]` floating, added to the scores of each key; or None.
      valid: `[N]` booleans, which keys count; or None for all. One that does not may hold anything, NaN too.
      lengths: `[Q]` integers, query q sees keys 0 to `lengths[q] - 1` alone; or None.
      metric: "ip", or "l2": scores are minus the squared distance, `2 q . n - |n|^2 - |q|^2` plus `bias`; by that
        formula, so two near neighbours far from the origin lose digits.
      implementation: "reference" holds all `[Q, N]` scores; "xla" those of `columns` keys at a time; in
        "mosaic_gpu" a kernel for Hopper finds the maxima of groups; "auto" is "xla", and the kernel where a
        recorded run on this kind of device says that it is faster.
      group: keys of a group.
      columns: keys of a tile of "xla".
      config: of "mosaic_gpu"; None is the recorded one, else one by the shapes.

    Returns:
      `MatmulTopk(scores, indices)`, `[Q, k]` each, the greatest score first, ties to the lower index. A score that is
      NaN or -inf counts as masked. Where fewer than k keys are left, scores are -inf and indices -1.
      The gradient of the scores goes to queries, keys and bias; `[Q, N]` is not made for it.

    Raises:
      TypeError, ValueError: name the argument whose shape, dtype or size is wrong.
      NotImplementedError: an implementation that is not here, with those that are; or the kernel cannot run on
        this device, these shapes or dtypes: says why.

    Example:
      >>> import jax.numpy as jnp
      >>> keys = jnp.array([[1.0, 0.0], [0.0, 2.0], [3.0, 0.0], [3.0, 0.0]])
      >>> out = matmul_topk(jnp.array([[1.0, 0.5]]), keys, 3)
      >>> out.scores.tolist(), out.indices.tolist()
      ([[3.0, 3.0, 1.0]], [[2, 3, 0]])

    References:
      Chern et al. 2022, "TPU-KNN: K Nearest Neighbor Search at Peak FLOP/s", on a partial reduction fused into the
      product. Deviation: exact: k groups are kept and scored again, where theirs keeps one key a bin. Exact is up
      to the rounding of a sum in float32: a product of another shape may round a near tie the other way.
    """
    queries, keys = arrays(queries=queries, keys=keys)
    bias, valid, lengths = optional(bias=bias, valid=valid, lengths=lengths)
    check(queries, keys, bias, valid, lengths)
    k = whole("k", k, None)
    check_k(k, len(keys))
    check_config(config, Config)
    if metric not in ("ip", "l2"):
        raise ValueError(f"metric: expected 'ip' or 'l2', got {metric!r}")
    group, columns = whole("group", group), whole("columns", columns)
    bias, lengths = _bias(queries, keys, bias, valid, metric), _lengths(lengths, keys)
    (q, d), n = queries.shape, len(keys)
    ways = _ways(queries, keys, group, config)
    taken, tuned = choose(
        "matmul_topk", implementation, ways, shape={"q": q, "d": d, "n": n, "k": k}, dtype=queries.dtype
    )
    if taken == "reference":
        out = reference(queries, keys, bias, lengths, k)
    else:
        kernel = _kernel(config, tuned, q, n) if taken == "mosaic_gpu" else None
        find = partial(xla.find, k=k, group=group, columns=columns, kernel=kernel)
        out = gradient.topk(*vary_together((queries, keys, bias, lengths)), find)
    if metric == "l2":
        length = jnp.sum(jnp.square(queries.astype(out.scores.dtype)), axis=1)
        known = length < jnp.inf  # else no distance is a number, and nothing is found
        scores, found = 2 * out.scores - jnp.where(known, length, 0)[:, None], (out.indices >= 0) & known[:, None]
        out = MatmulTopk(jnp.where(found, scores, -jnp.inf), jnp.where(found, out.indices, -1))
    return out


def group_max(
    queries: jax.Array,
    keys: jax.Array,
    group: int = 64,
    *,
    bias: jax.Array | None = None,
    valid: jax.Array | None = None,
    lengths: jax.Array | None = None,
    implementation: Implementation = "auto",
    columns: int = 8192,
    config: Config | None = None,
) -> jax.Array:
    """The greatest inner product of each query with each group of neighbouring keys.

    out[q, g] = max over n in group g of  queries[q] . keys[n] + bias[n]

    Args:
      queries: `[Q, D]`, floating.
      keys: `[N, D]`, floating; at least one.
      group: keys of a group.
      bias: as in `matmul_topk`.
      valid: as in `matmul_topk`.
      lengths: as in `matmul_topk`.
      implementation: as in `matmul_topk`.
      columns: as in `matmul_topk`.
      config: as in `matmul_topk`.

    Returns:
      `[Q, ceil(N / group)]` float32 (float64 for float64 inputs); -inf where a group has no key that counts. The
      gradient goes to the keys that have the maximum, in equal parts; each tile is computed again for it.

    Raises:
      TypeError, ValueError, NotImplementedError: as `matmul_topk`.

    Example:
      >>> import jax.numpy as jnp
      >>> group_max(jnp.ones((1, 1)), jnp.arange(5.0)[:, None], 2).tolist()
      [[1.0, 3.0, 4.0]]
    """
    queries, keys = arrays(queries=queries, keys=keys)
    bias, valid, lengths = optional(bias=bias, valid=valid, lengths=lengths)
    check(queries, keys, bias, valid, lengths)
    check_config(config, Config)
    group, columns = whole("group", group), whole("columns", columns)
    if not len(keys):
        raise ValueError("keys: expected at least 1, got 0")
    bias, lengths = _bias(queries, keys, bias, valid, "ip"), _lengths(lengths, keys)
    (q, d), n = queries.shape, len(keys)
    ways = _ways(queries, keys, group, config)
    taken, tuned = choose(
        "group_max", implementation, ways, shape={"q": q, "d": d, "n": n, "group": group}, dtype=queries.dtype
    )
    if taken == "reference":
        return reference_group_max(queries, keys, bias, lengths, group)
    kernel = _kernel(config, tuned, q, n) if taken == "mosaic_gpu" else None
    return gradient.maxima(*vary_together((queries, keys, bias, lengths)), group, columns, kernel).T


def _bias(
    queries: jax.Array, keys: jax.Array, bias: jax.Array | None, valid: jax.Array | None, metric: Metric
) -> jax.Array | None:
    """What is added to a key's scores: of "l2", half of what `matmul_topk` says; -inf masks."""
    dtype = wide(queries, keys)
    if bias is not None:
        bias = bias.astype(dtype)
    if metric == "l2":
        counted = keys if valid is None else jnp.where(valid[:, None], keys, 0)  # no NaN into the gradient
        length = jnp.sum(jnp.square(counted.astype(dtype)), axis=1)
        bias = -0.5 * length if bias is None else 0.5 * (bias - length)
    if valid is not None:
        bias = jnp.where(valid, jnp.zeros(len(keys), dtype) if bias is None else bias, -jnp.inf)
    return bias


def _lengths(lengths: jax.Array | None, keys: jax.Array) -> jax.Array | None:
    return None if lengths is None else within(lengths, 0, len(keys))


def _ways(queries: jax.Array, keys: jax.Array, group: int, config: Config | None) -> dict[str, str | None]:
    return {"xla": None, "mosaic_gpu": needs_hopper() or _refused(queries, keys, group, config), "reference": None}


def _refused(queries: jax.Array, keys: jax.Array, group: int, config: Config | None) -> str | None:
    (q, d), n = queries.shape, len(keys)
    if queries.dtype != keys.dtype:
        return f"needs one dtype, got {queries.dtype} and {keys.dtype}"
    return (config or default_config(q, n)).check(q, n, d, group, queries.dtype)


def _kernel(config: Config | None, tuned: Mapping[str, Mapping[str, int]], q: int, n: int) -> xla.Kernel:
    from .mosaic_gpu import maxima  # here: Pallas takes a moment to load

    return partial(maxima, config=config or (Config(**tuned["forward"]) if tuned else default_config(q, n)))
