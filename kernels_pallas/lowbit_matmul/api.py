"""Choose how to compute it."""

import math
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp

from kernels_pallas._arguments import arrays, check_config, whole
from kernels_pallas._dispatch import choose, needs_hopper
from kernels_pallas._vary import vary_together

from .config import Config, default_config
from .reference import check, reference
from .xla import Forward, dequantised

Implementation = Literal["auto", "xla", "mosaic_gpu", "reference"]


def lowbit_matmul(
    x: jax.Array,
    codes: jax.Array,
    scales: jax.Array,
    *,
    bits: int,
    block: int | None = None,
    implementation: Implementation = "auto",
    config: Config | None = None,
) -> jax.Array:
    """Product with a weight of packed integer codes times scales.

    y[..., n] = sum_k x[..., k] scales[n, k // block] code[n, k],  without a block scales[n]

    Args:
      x: `[..., K]`, floating.
      codes: `[N, ceil(K * bits / 8)]` uint8: two's complement, the lowest bits first, each row padded to a byte.
      scales: `[N]`, or `[N, K / block]`, floating.
      bits: 2, 4 or 8: what a code takes.
      block: how many neighbouring inputs share a scale; None is one scale for each output.
      implementation: "reference" and "xla" write the weight out (as `[N, K]` in float32, or in x's dtype) and
        multiply once; "mosaic_gpu" is a kernel for Hopper for batches of at most 32 that reads the codes alone, and
        whose backward pass is that of "xla"; "auto" is "xla", and the kernel where a recorded run on this kind of
        device says that it is faster.
      config: of "mosaic_gpu"; None is the recorded one, else one by the shapes.

    Returns:
      `[..., N]` in x's dtype, accumulated in float32 or wider. x and scales have gradients; kept for them are the
      arguments, and the weight is made again.

    Raises:
      TypeError, ValueError: name the argument whose shape or dtype is wrong.
      NotImplementedError: an implementation that is not here, with those that are; or the kernel cannot run on
        this device, these shapes or dtypes: says why.

    Example:
      >>> import jax.numpy as jnp
      >>> codes = jnp.array([[215, 1]], jnp.uint8)            # 7, -3, 1 in 4 bits each
      >>> lowbit_matmul(jnp.array([1.0, 1.0, 2.0]), codes, jnp.array([0.5]), bits=4)
      Array([3.], dtype=float32)

    References:
      Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
      Inference", equation 1, the zero point of weights at 0. Deviation: activations are not rounded. Frantar et al.
      2024, "MARLIN: Mixed-Precision Auto-Regressive Parallel Inference on Large Language Models": the weight's
      bytes as the floor of a small batch. Deviation: codes stay in the order of storage; x is reordered instead.
    """
    x, codes, scales = arrays(x=x, codes=codes, scales=scales)
    bits, block = whole("bits", bits), None if block is None else whole("block", block)
    check(x, codes, scales, bits, block)
    check_config(config, Config)
    codes = jnp.asarray(codes)
    lead, k, n = x.shape[:-1], x.shape[-1], len(codes)
    m = math.prod(lead)
    rows = x.reshape(m, k)
    ways = {"xla": None, "mosaic_gpu": needs_hopper() or _refused(rows, n, bits, block, config), "reference": None}
    sizes = {"m": m, "n": n, "k": k, "bits": bits, "block": block or 0}
    taken, tuned = choose("lowbit_matmul", implementation, ways, shape=sizes, dtype=x.dtype)
    if taken == "reference":
        return reference(x, codes, scales, bits, block)
    kernel: Forward | None = None
    if taken == "mosaic_gpu":
        from .mosaic_gpu import forward  # here: Pallas takes a moment to load

        best = config or (Config(**tuned["forward"]) if "forward" in tuned else default_config(m, n, k, bits, block))
        kernel = partial(forward, bits=bits, block=block, config=best)
    return dequantised(*vary_together((rows, codes, scales)), bits, block, kernel).reshape(*lead, n)


def _refused(x: jax.Array, n: int, bits: int, block: int | None, config: Config | None) -> str | None:
    m, k = x.shape
    return (config or default_config(m, n, k, bits, block)).check(m, n, k, bits, block, x.dtype)
