"""How far a student is from its teacher, for training a low-bit model towards the float one."""

import jax
import jax.numpy as jnp

from rlx._checks import check_dtype, check_range
from rlx._numerics import wide


def distill_logits(
    logits: jax.Array, teacher: jax.Array, *, temperature: float | jax.Array = 1.0, mask: jax.Array | None = None
) -> jax.Array:
    """Divergence of a student's distribution from its teacher's, of each position.

    t^2 sum_v p_v (log p_v - log q_v),  p = softmax(teacher / t),  q = softmax(logits / t)

    Args:
      logits: the student's, `[..., V]`.
      teacher: `[..., V]`; no gradient goes there.
      temperature: t, positive. With `t^2` in front, gradients keep their size.
      mask: `[...]`, true where a position counts; others give 0, whatever is there.

    Returns:
      `[...]`, float32 (float64 for such inputs); in nats.

    Raises:
      TypeError: not floating.
      ValueError: shapes that differ; a temperature that is not positive.

    Example:
      >>> import jax.numpy as jnp
      >>> from rlx import quantize
      >>> quantize.distill_logits(jnp.zeros(2), jnp.log(jnp.array([0.25, 0.75]))).round(4)
      Array(0.1308, dtype=float32)

    References:
      Hinton et al. 2015, "Distilling the Knowledge in a Neural Network", section 2; their cross-entropy less the
      teacher's entropy, so that 0 is reached.
    """
    check_dtype("floating", logits=logits, teacher=teacher)
    check_range("temperature", temperature, 0.0, float("inf"), open_low=True, open_high=True)
    _check_same("logits", logits, teacher, mask)
    dtype = wide(logits.dtype, teacher.dtype)
    t = jnp.asarray(temperature, dtype)
    student, fixed = logits.astype(dtype), jax.lax.stop_gradient(teacher).astype(dtype)
    if mask is not None:
        student, fixed = (jnp.where(mask[..., None], x, 0.0) for x in (student, fixed))
    log_p, log_q = jax.nn.log_softmax(fixed / t), jax.nn.log_softmax(student / t)
    # A token that the teacher excludes (-inf) has no share, whatever the student gives it.
    there = log_p > -jnp.inf
    apart = jnp.where(there, log_p, 0.0) - jnp.where(there, log_q, 0.0)
    return t * t * jnp.sum(jnp.exp(log_p) * apart, axis=-1)


def distill_hidden(hidden: jax.Array, teacher: jax.Array, *, mask: jax.Array | None = None) -> jax.Array:
    """Squared distance of a student's hidden state from its teacher's, relative to the teacher's mean square.

    mean_d (hidden - teacher)^2 / mean_d teacher^2

    Args:
      hidden: `[..., D]`.
      teacher: `[..., D]`; no gradient goes there. Zeros divide by 1.
      mask: `[...]`, true where a position counts; others give 0, whatever is there.

    Returns:
      `[...]`, float32 (float64 for such inputs).

    Raises:
      TypeError: not floating.
      ValueError: shapes that differ.

    Example:
      >>> import jax.numpy as jnp
      >>> from rlx import quantize
      >>> quantize.distill_hidden(jnp.array([1.0, 1.0]), jnp.array([2.0, 0.0]))
      Array(0.5, dtype=float32)
    """
    check_dtype("floating", hidden=hidden, teacher=teacher)
    _check_same("hidden", hidden, teacher, mask)
    dtype = wide(hidden.dtype, teacher.dtype)
    student, fixed = hidden.astype(dtype), jax.lax.stop_gradient(teacher).astype(dtype)
    if mask is not None:
        student, fixed = (jnp.where(mask[..., None], x, 0.0) for x in (student, fixed))
    size = jnp.mean(jnp.square(fixed), axis=-1)
    return jnp.mean(jnp.square(student - fixed), axis=-1) / jnp.where(size > 0, size, 1.0)


def _check_same(name: str, student: jax.Array, teacher: jax.Array, mask: jax.Array | None) -> None:
    if student.ndim == 0 or student.shape != teacher.shape:
        raise ValueError(f"teacher: shape {teacher.shape} disagrees with {name} of shape {student.shape}")
    if mask is not None:
        check_dtype("boolean", mask=mask)
        if mask.shape != student.shape[:-1]:
            raise ValueError(f"mask: shape {mask.shape} disagrees with {name} of shape {student.shape}")
