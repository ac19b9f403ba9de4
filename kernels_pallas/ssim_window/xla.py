"""One frame at a time: four moments, each blurred along columns and then along rows."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from kernels_pallas._vary import vary_together

from .reference import Options, padded, quality, wide


def framewise(a: jax.Array, b: jax.Array, options: Options) -> jax.Array:
    """`reference`, holding the moments of one frame; the gradient computes each frame again."""
    lead, frame = a.shape[:-3], a.shape[-3:]
    frames = vary_together((a.reshape(-1, *frame), b.reshape(-1, *frame)))
    one = jax.checkpoint(partial(_frame, options=options))
    return lax.map(lambda pair: one(*pair), frames).reshape(lead)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def by_kernel(
    a: jax.Array, b: jax.Array, options: Options, forward: Callable[[jax.Array, jax.Array], jax.Array]
) -> jax.Array:
    """`forward(a, b)` of frames `[N, H, W, C]`, with the gradient of `framewise`; both are kept for it.

    Inside shard_map what a kernel returns counts as the same on all devices, which the gradient would not match.
    """
    return vary_together((forward(a, b), a, b))[0]


def _by_kernel_forward(
    a: jax.Array, b: jax.Array, options: Options, forward: Callable[[jax.Array, jax.Array], jax.Array]
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return by_kernel(a, b, options, forward), (a, b)


def _by_kernel_backward(
    options: Options, forward: Callable[..., jax.Array], kept: tuple[jax.Array, jax.Array], slope: jax.Array
) -> tuple[jax.Array, jax.Array]:
    return jax.vjp(partial(framewise, options=options), *kept)[1](slope)


by_kernel.defvjp(_by_kernel_forward, _by_kernel_backward)


def at_once(a: jax.Array, b: jax.Array, options: Options) -> jax.Array:
    """The same of all frames `[N, H, W, C]` side by side."""
    return jax.vmap(partial(_frame, options=options))(a, b)


def _frame(a: jax.Array, b: jax.Array, options: Options) -> jax.Array:
    """Of the variances only the sum is asked for, so four moments do: two means, the mean of a^2 + b^2, that of ab."""
    x, y = (padded(wide(f, options.data_range), options, (0, 1)).transpose(2, 0, 1) for f in (a, b))
    mean_a, mean_b, square, product = _blur(jnp.stack((x, y, x * x + y * y, x * y)), tuple(options.taps.tolist()))
    spread = square - mean_a * mean_a - mean_b * mean_b
    return jnp.mean(quality(mean_a, mean_b, spread, product - mean_a * mean_b, options))


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _blur(x: jax.Array, taps: tuple[float, ...]) -> jax.Array:
    """Images `[..., H, W]` by a symmetric window along both axes, whole windows only.

    By two convolutions of one channel: on a CPU sums of shifted copies take 20 times as long.
    """
    line = jnp.asarray(taps, x.dtype)
    images = x.reshape(-1, 1, *x.shape[-2:])
    for shape in ((1, 1, -1, 1), (1, 1, 1, -1)):
        images = lax.conv_general_dilated(images, line.reshape(shape), (1, 1), "VALID", precision=lax.Precision.HIGHEST)
    return images.reshape(*x.shape[:-2], *images.shape[-2:])


def _blur_forward(x: jax.Array, taps: tuple[float, ...]) -> tuple[jax.Array, None]:
    return _blur(x, taps), None


def _blur_backward(taps: tuple[float, ...], kept: None, slope: jax.Array) -> tuple[jax.Array]:
    room = len(taps) - 1
    return (_blur(jnp.pad(slope, [(0, 0)] * (slope.ndim - 2) + [(room, room)] * 2), taps),)


_blur.defvjp(_blur_forward, _blur_backward)
