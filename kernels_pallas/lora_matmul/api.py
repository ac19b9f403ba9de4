"""Choose how to compute it."""

import math
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from kernels_pallas._arguments import arrays, check_config, optional, within
from kernels_pallas._dispatch import choose, needs_hopper
from kernels_pallas._vary import vary_together

from .config import Config, default_config
from .reference import check, reference
from .xla import Joined, Trains, low_rank, separate

Implementation = Literal["auto", "xla", "mosaic_gpu", "reference"]


def lora_matmul(
    x: jax.Array,
    weight: jax.Array,
    a: jax.Array,
    b: jax.Array,
    scale: jax.Array | float = 1.0,
    ids: jax.Array | None = None,
    *,
    trains: Trains = "adapter",
    implementation: Implementation = "auto",
    config: Config | None = None,
) -> jax.Array:
    """Product with a weight plus a low-rank term.

    y = x @ weight.T + scale * (x @ a.T) @ b.T,  with ids each row by its own a[id], b[id], scale[id]

    Args:
      x: `[..., K]`, floating.
      weight: `[N, K]`, floating.
      a, b: `[r, K]` and `[N, r]`; with ids banks `[E, r, K]` and `[E, N, r]`, all finite: a row meets the others
        with zeros.
      scale: `[]`, with ids `[E]` too.
      ids: `[...]` integers, which adapter a row has; one outside `[0, E)` is the weight alone. None is one adapter.
      trains: "adapter" gives the weight no gradient, "all" does.
      implementation: "reference" computes in float32 and gathers the factors of every row; "xla" adds a thin product
        to the wide one, of all E adapters at once, set to zero where they are not the row's; "mosaic_gpu" is a kernel
        for Hopper that adds the thin product into the wide one's accumulator, and whose backward pass is that of
        "xla"; "auto" is "xla", and the kernel where a recorded run on this kind of device says that it is faster.
      config: of "mosaic_gpu"; None is the recorded one, else one by the shapes.

    Returns:
      `[..., N]` in x's dtype, accumulated in float32 or wider; between the factors a number has x's dtype. Kept for
      the gradient: the arguments, and x @ a.T, `[..., E r]` float32.

    Raises:
      TypeError, ValueError: name the argument whose shape or dtype is wrong.
      NotImplementedError: an implementation that is not here, with those that are; or the kernel cannot run on
        this device, these shapes or dtypes: says why.

    Example:
      >>> import jax.numpy as jnp
      >>> x, a, b = jnp.array([[1.0, 2.0]] * 2), jnp.ones((3, 1, 2)), jnp.ones((3, 2, 1))
      >>> lora_matmul(x, jnp.eye(2), a, b, 10.0, jnp.array([2, -1])).tolist()
      [[31.0, 32.0], [1.0, 2.0]]

    References:
      Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models", equation 3. Chen et al. 2023, "Punica:
      Multi-Tenant LoRA Serving" (one adapter a row). Deviation: rows are not sorted by adapter; the thin products of
      all E are computed, which is right for E r up to some hundreds.
    """
    fixed = isinstance(scale, float | int)
    x, weight, a, b, scale = arrays(x=x, weight=weight, a=a, b=b, scale=scale)
    (ids,) = optional(ids=ids)
    if fixed and jnp.issubdtype(x.dtype, jnp.floating):
        scale = scale.astype(np.result_type(np.float32, x.dtype))
    check(x, weight, a, b, scale, ids)
    check_config(config, Config)
    if trains not in ("adapter", "all"):
        raise ValueError(f"trains: expected 'adapter' or 'all', got {trains!r}")
    if ids is not None:
        ids = within(ids, -1, len(a))
    lead, (n, k) = x.shape[:-1], weight.shape
    m, rank = math.prod(lead), math.prod(a.shape[:-1])
    dtypes = (x.dtype, weight.dtype, b.dtype)
    refused = (config or default_config(m, n)).check(m, n, k, dtypes)
    ways = {"xla": None, "mosaic_gpu": needs_hopper() or refused, "reference": None}
    sizes = {"m": m, "n": n, "k": k, "r": rank}
    taken, tuned = choose("lora_matmul", implementation, ways, shape=sizes, dtype=x.dtype)
    if taken == "reference":
        base = weight if trains == "all" else jax.lax.stop_gradient(weight)
        return reference(x, base, a, b, scale, ids)
    joined: Joined = separate
    if taken == "mosaic_gpu":
        from .mosaic_gpu import forward  # here: Pallas takes a moment to load

        best = config or (Config(**tuned["forward"]) if "forward" in tuned else default_config(m, n))
        joined = partial(forward, config=best)
    each = None if ids is None else ids.reshape(m)
    args = vary_together((x.reshape(m, k), weight, a, b, scale, each))
    return low_rank(*args, trains, joined).reshape(*lead, n)
