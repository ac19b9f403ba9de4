"""Choose how to compute it."""

from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from kernels_pallas._arguments import arrays, check_config, flag, number, optional
from kernels_pallas._dispatch import choose, needs_hopper
from kernels_pallas._vary import vary_together

from . import xla
from .config import Config, default_config
from .reference import AddNorm, Kind, check, reference

Implementation = Literal["auto", "xla", "mosaic_gpu", "reference"]


def add_norm(
    x: jax.Array,
    residual: jax.Array,
    weight: jax.Array,
    bias: jax.Array | None = None,
    *,
    kind: Kind = "rms",
    eps: float = 1e-6,
    weight_offset: float = 0.0,
    subtract: bool = False,
    dtype: Any = None,
    implementation: Implementation = "auto",
    config: Config | None = None,
) -> AddNorm:
    """Add a residual, and normalise the sum: the step between two blocks of a pre-norm transformer.

    s = x + residual,  normed = (s - m) / sqrt(mean((s - m)^2) + eps) * (weight + weight_offset) + bias

    with m the mean of s for "layer" and 0 for "rms", both over the channels.

    Args:
      x: `[..., D]`, floating: the stream.
      residual: `[..., D]`, floating: what a block returned.
      weight: `[D]`, floating.
      bias: `[D]`, floating, or None.
      kind: "rms" or "layer".
      eps: added to the mean square.
      weight_offset: 1 where a checkpoint holds the weight minus one, as Gemma's do.
      subtract: `s = x - residual`: an additive coupling undone, with the norm that its next block reads.
      dtype: of `normed`; None is that of the sum.
      implementation: "reference" is the formula, differentiated by jax; "xla" keeps the statistics and has its
        backward pass by hand; "mosaic_gpu" are kernels for Hopper, forward and backward; "auto" is "xla", and the
        kernels where a recorded run on this kind of device says that they are faster.
      config: of "mosaic_gpu"; None is the recorded one, else one by the shapes.

    Returns:
      `AddNorm(normed, sum)`, `[..., D]` each. Statistics are in float32 or wider, of the sum as it is returned. For
      the gradient the sum is kept and, for each row, one over the deviation and the mean of "layer".

    Raises:
      TypeError, ValueError: name the argument whose shape, dtype or value is wrong.
      NotImplementedError: an implementation that is not here, with those that are; or the kernel cannot run on
        this device, these shapes or dtypes: says why.

    Example:
      >>> import jax.numpy as jnp
      >>> out = add_norm(jnp.array([[1.0, 2.0]]), jnp.array([[2.0, 2.0]]), jnp.ones(2))
      >>> out.sum.tolist(), [round(float(y), 4) for y in out.normed[0]]        # 3 and 4 over sqrt(12.5)
      ([[3.0, 4.0]], [0.8485, 1.1314])

    References:
      Zhang & Sennrich 2019, "Root Mean Square Layer Normalization", equation 4; Ba et al. 2016, "Layer
      Normalization", equation 4. Deviation: eps inside the root, as is usual.
    """
    x, residual, weight = arrays(x=x, residual=residual, weight=weight)
    (bias,) = optional(bias=bias)
    eps, weight_offset, subtract = (
        number("eps", eps),
        number("weight_offset", weight_offset),
        flag("subtract", subtract),
    )
    check(x, residual, weight, bias, kind, eps)
    check_config(config, Config)
    dtype = np.dtype(np.result_type(x.dtype, residual.dtype) if dtype is None else dtype)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(f"dtype: expected a floating dtype, got {dtype}")
    d = x.shape[-1]
    n = x.size // d
    if config is None:
        config = default_config(n, d, x.dtype.itemsize)
        given = False
    else:
        given = True
    others = (residual.dtype, dtype)
    ways = {"xla": None, "mosaic_gpu": needs_hopper() or config.check(n, d, x.dtype, others), "reference": None}
    taken, tuned = choose("add_norm", implementation, ways, shape={"n": n, "d": d}, dtype=x.dtype)
    if taken == "reference":
        how = {"kind": kind, "eps": eps, "weight_offset": weight_offset, "subtract": subtract, "dtype": dtype}
        return reference(x, residual, weight, bias, **how)
    options = xla.Options(kind, eps, weight_offset, subtract, dtype)
    if taken == "mosaic_gpu":
        from . import mosaic_gpu  # here: Pallas takes a moment to load

        by = {way: config if given or way not in tuned else Config(**tuned[way]) for way in ("forward", "both")}
        options = xla.Options(
            *(kind, eps, weight_offset, subtract, dtype),
            partial(mosaic_gpu.forward, config=by["forward"]),
            partial(mosaic_gpu.backward, config=by["both"]),
        )
    rows = vary_together((x.reshape(n, d), residual.reshape(n, d), weight, bias))
    return AddNorm(*(out.reshape(x.shape) for out in xla.add_norm(options, *rows)))
