"""How much better a completion is than the others of its prompt."""

from typing import Literal

import jax
import jax.numpy as jnp

from rlx._checks import check_choice, check_dtype, check_shapes
from rlx._numerics import wide


def group_advantages(
    rewards: jax.Array, *, kind: Literal["grpo", "rloo", "drgrpo"] = "grpo", eps: float = 1e-6
) -> jax.Array:
    """Advantages of G completions of each prompt over each other.

    grpo:   (r - mean) / (std + eps), std with G - 1 in the denominator
    rloo:   r - mean of the other G - 1
    drgrpo: r - mean

    Args:
      rewards: `[B, G]`, one row a prompt.
      kind: "grpo", "rloo" (leave one out) or "drgrpo" (Dr. GRPO: not divided by the deviation, so that easy and
        hard prompts count alike).
      eps: added to the deviation ("grpo"); a row of equal rewards has advantages 0, and so has its gradient.

    Returns:
      `[B, G]` in float32 or wider; rows sum to 0.

    Raises:
      ValueError: rewards are not [B, G] with G >= 2, or the kind is unknown.

    Example:
      >>> group_advantages(jnp.array([[1.0, 2.0, 3.0]]), kind="rloo").tolist()
      [[-1.5, 0.0, 1.5]]

    References:
      Shao et al. 2024, "DeepSeekMath", section 4.1.2; Ahmadian et al. 2024, "Back to Basics", equation 8 (RLOO); Liu
      et al. 2025, "Understanding R1-Zero-Like Training" (Dr. GRPO). eps 1e-6 is Tunix's; TRL adds 1e-4.
    """
    size = check_shapes(rewards=(rewards, "BG"))["G"]
    check_dtype("floating", rewards=rewards)
    check_choice("kind", kind, ("grpo", "rloo", "drgrpo"))
    if size < 2:
        raise ValueError(f"rewards: G={size}; an advantage within a group needs G >= 2 completions a prompt")
    rewards = rewards.astype(wide(rewards.dtype))
    centred = rewards - jnp.mean(rewards, axis=-1, keepdims=True)
    if kind == "drgrpo":
        return centred
    if kind == "rloo":
        return centred * (size / (size - 1))
    variance = jnp.sum(jnp.square(centred), axis=-1, keepdims=True) / (size - 1)
    # the square root has no derivative at 0, where all rewards of a row are equal
    varies = variance > 0
    deviation = jnp.where(varies, jnp.sqrt(jnp.where(varies, variance, 1.0)), 0.0)
    return jnp.where(varies, centred / (deviation + eps), 0.0)
