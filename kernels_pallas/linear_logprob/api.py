"""Choose how to compute it."""

from functools import partial
from typing import Literal

import jax

from kernels_pallas._arguments import arrays, check_config, whole, within
from kernels_pallas._dispatch import choose, needs_hopper
from kernels_pallas._vary import vary_together

from .config import Config, default_config
from .reference import LinearLogprob, check, reference
from .xla import Forward, tiled

Implementation = Literal["auto", "xla", "mosaic_gpu", "reference"]


def linear_logprob(
    hidden: jax.Array,
    weight: jax.Array,
    targets: jax.Array,
    *,
    implementation: Implementation = "auto",
    rows: int = 4096,
    columns: int = 4096,
    config: Config | None = None,
) -> LinearLogprob:
    """Target log-probability, entropy and log-sum-exp of a linear head.

    logp[n] = z[n, t_n] - lse(z[n]),  H[n] = lse(z[n]) - sum_v softmax(z[n])_v z[n, v],  z = hidden @ weight.T

    Args:
      hidden: `[N, D]`, floating.
      weight: the vocabulary matrix `[V, D]`, floating.
      targets: `[N]` integers in `[0, V)`; one outside gives NaN.
      implementation: "reference" holds all `[N, V]` logits; "xla" those of one tile at a time, in the
        backward pass too; "mosaic_gpu" is a kernel for Hopper whose backward pass is that of "xla"; "auto" is
        "xla", and the kernel where a recorded run on this kind of device says that it is faster.
      rows, columns: tokens and words of a tile of "xla".
      config: of "mosaic_gpu"; None is the recorded one, else one by the shapes.

    Returns:
      `LinearLogprob(logp, entropy, logsumexp)`, each `[N]`, accumulated in float32 or wider.

    Raises:
      TypeError, ValueError: name the argument whose shape or dtype is wrong.
      NotImplementedError: an implementation that is not here, with those that are; or the kernel cannot run on
        this device, these shapes or dtypes: says why.

    Example:
      >>> import jax.numpy as jnp
      >>> out = linear_logprob(jnp.zeros((1, 4)), jnp.ones((8, 4)), jnp.array([3]))
      >>> [round(float(value[0]), 4) for value in out]        # -log 8, log 8, log 8
      [-2.0794, 2.0794, 2.0794]

    References:
      Milakov & Gimelshein 2018, "Online normalizer calculation for softmax"; Wijmans et al.
      2024, "Cut Your Losses in Large-Vocabulary Language Models" (no materialised logits). Deviation: no gradient is
      filtered.
    """
    hidden, weight, targets = arrays(hidden=hidden, weight=weight, targets=targets)
    check(hidden, weight, targets)
    check_config(config, Config)
    rows, columns = whole("rows", rows), whole("columns", columns)
    (n, d), v = hidden.shape, weight.shape[0]
    targets = within(targets, -1, v)
    ways = {"xla": None, "mosaic_gpu": needs_hopper() or _refused(hidden, weight, config), "reference": None}
    sizes = {"n": n, "d": d, "v": v}
    taken, tuned = choose("linear_logprob", implementation, ways, shape=sizes, dtype=hidden.dtype)
    if taken == "reference":
        return reference(hidden, weight, targets)
    kernel: Forward | None = None
    if taken == "mosaic_gpu":
        from .mosaic_gpu import forward  # here: Pallas takes a moment to load

        kernel = partial(forward, config=config or (Config(**tuned["forward"]) if tuned else default_config(n, v)))
    return tiled(*vary_together((hidden, weight, targets)), rows, columns, kernel)


def _refused(hidden: jax.Array, weight: jax.Array, config: Config | None) -> str | None:
    (n, d), v = hidden.shape, weight.shape[0]
    if hidden.dtype != weight.dtype:
        return f"needs one dtype, got {hidden.dtype} and {weight.dtype}"
    return (config or default_config(n, v)).check(n, d, v, hidden.dtype)
