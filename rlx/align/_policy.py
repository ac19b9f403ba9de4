"""The clipped policy-gradient surrogate and estimates of how far the policy has moved."""

from typing import Literal

import jax
import jax.numpy as jnp

from rlx._checks import check_choice, check_dtype, check_shapes

from ._masked import Reduce, masked_difference, masked_reduce


def policy_loss(
    logp: jax.Array,
    old_logp: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    *,
    clip: float | jax.Array = 0.2,
    clip_high: float | jax.Array | None = None,
    reduce: Reduce = "mean",
) -> jax.Array:
    """The PPO / GRPO surrogate of each completion.

    loss_t = -min(r_t A_t, clamp(r_t, 1 - clip, 1 + clip_high) A_t),   r_t = exp(logp_t - old_logp_t)

    Args:
      logp: `[B, T]`, log-probability of each token under the policy, nats.
      old_logp: `[B, T]`, the same under the policy that sampled; no gradient flows into it.
      advantages: `[B]`, or `[B, T]` if tokens have their own; no gradient flows into them.
      mask: `[B, T]`, 1 or True for the tokens of the completion.
      clip: how far below 1 a ratio still counts; 0.2 as in PPO.
      clip_high: how far above 1; None means `clip` (DAPO decouples them: 0.28).
      reduce: "mean" over the mask (GRPO), or "sum" (Dr. GRPO: divide by a constant length outside).

    Returns:
      `[B]`, to be minimised. The gradient where all ratios are 1 is the policy gradient `-A grad logp`.

    Raises:
      ValueError: dims disagree.

    Example:
      >>> logp = jnp.log(jnp.array([[0.5, 0.5]]))
      >>> policy_loss(logp, logp, jnp.array([2.0]), jnp.ones((1, 2))).tolist()
      [-2.0]

    References:
      Schulman et al. 2017, "Proximal Policy Optimization Algorithms", equation 7; Shao et al. 2024, equation 3;
      Yu et al. 2025, "DAPO", equation 10 (clip_high).
    """
    per_token = advantages.ndim == 2 if hasattr(advantages, "ndim") else False
    check_shapes(
        logp=(logp, "BT"),
        old_logp=(old_logp, "BT"),
        advantages=(advantages, "BT" if per_token else "B"),
        mask=(mask, "BT"),
    )
    check_dtype("floating", logp=logp, old_logp=old_logp, advantages=advantages)
    check_choice("reduce", reduce, ("mean", "sum"))
    ratio = jnp.exp(masked_difference(logp, jax.lax.stop_gradient(old_logp), mask))
    gain = jax.lax.stop_gradient(advantages).astype(ratio.dtype)
    gain = gain if per_token else gain[:, None]
    low = 1.0 - jnp.asarray(clip, ratio.dtype)
    high = 1.0 + jnp.asarray(clip if clip_high is None else clip_high, ratio.dtype)
    surrogate = jnp.minimum(ratio * gain, jnp.clip(ratio, low, high) * gain)
    return -masked_reduce(surrogate, mask, reduce)


def kl_estimate(
    logp: jax.Array,
    ref_logp: jax.Array,
    mask: jax.Array,
    *,
    estimator: Literal["k1", "k2", "k3"] = "k3",
    reduce: Reduce = "mean",
) -> jax.Array:
    """Estimate KL(policy || reference) of each completion from the tokens that the policy sampled.

    k1 = d,   k2 = d^2 / 2,   k3 = exp(-d) - 1 + d,   d = logp - ref_logp

    k1 and k3 are unbiased as values (k3 is never negative and varies less near the reference); as a loss, the
    gradient of k2 is unbiased for the gradient of the KL, that of k3 is not, and that of k1 is zero on average.

    Args:
      logp: `[B, T]`, nats.
      ref_logp: `[B, T]`, nats; no gradient flows into it.
      mask: `[B, T]`.
      estimator: "k1", "k2" or "k3".
      reduce: "mean" over the mask (nats a token) or "sum" (nats a completion).

    Returns:
      `[B]`, nats.

    Raises:
      ValueError: dims disagree or the estimator is unknown.

    Example:
      >>> logp = jnp.array([[-1.0, -2.0]])
      >>> kl_estimate(logp, logp - 0.5, jnp.ones((1, 2)), estimator="k1").tolist()
      [0.5]

    References:
      Schulman 2020, "Approximating KL Divergence"; Shao et al. 2024, equation 4 (k3).
    """
    check_shapes(logp=(logp, "BT"), ref_logp=(ref_logp, "BT"), mask=(mask, "BT"))
    check_dtype("floating", logp=logp, ref_logp=ref_logp)
    check_choice("estimator", estimator, ("k1", "k2", "k3"))
    check_choice("reduce", reduce, ("mean", "sum"))
    d = masked_difference(logp, jax.lax.stop_gradient(ref_logp), mask)
    value = {"k1": lambda: d, "k2": lambda: 0.5 * jnp.square(d), "k3": lambda: jnp.expm1(-d) + d}[estimator]()
    return masked_reduce(value, mask, reduce)
