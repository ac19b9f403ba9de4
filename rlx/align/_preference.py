"""Learning from pairs: one answer was preferred to another."""

from typing import Literal

import jax
import jax.numpy as jnp

from rlx._checks import check_choice, check_dtype, check_shapes
from rlx._numerics import wide


def preference_loss(
    chosen: jax.Array,
    rejected: jax.Array,
    ref_chosen: jax.Array,
    ref_rejected: jax.Array,
    *,
    beta: float | jax.Array = 0.1,
    kind: Literal["dpo", "ipo"] = "dpo",
    label_smoothing: float | jax.Array = 0.0,
) -> jax.Array:
    """The loss of each pair, from log-probabilities of whole answers.

    dpo: -(1 - s) log sigmoid(beta h) - s log sigmoid(-beta h)
    ipo: (h - 1 / (2 beta))^2
    h = (chosen - ref_chosen) - (rejected - ref_rejected)

    Args:
      chosen, rejected: `[B]`, summed log-probabilities under the policy, nats.
      ref_chosen, ref_rejected: `[B]`, the same under the frozen reference.
      beta: how strongly the policy is held to the reference, > 0.
      kind: "dpo" or "ipo".
      label_smoothing: s, the assumed share of wrong labels, in [0, 0.5) ("dpo" only).

    Returns:
      `[B]`, float32 or wider.

    Raises:
      ValueError: dims disagree or the kind is unknown.

    Example:
      >>> zeros = jnp.zeros(1)
      >>> round(float(preference_loss(zeros, zeros, zeros, zeros)[0]), 6)
      0.693147

    References:
      Rafailov et al. 2023, "Direct Preference Optimization", equation 7; Azar et al. 2023, "A General Theoretical
      Paradigm", equation 17 (IPO; sums, not means, of token log-probabilities); Mitchell 2023 (label smoothing).
    """
    arrays = {"chosen": chosen, "rejected": rejected, "ref_chosen": ref_chosen, "ref_rejected": ref_rejected}
    check_shapes(**{name: (value, "B") for name, value in arrays.items()})
    check_dtype("floating", **arrays)
    check_choice("kind", kind, ("dpo", "ipo"))
    dtype = wide(*(value.dtype for value in arrays.values()))
    values = {name: value.astype(dtype) for name, value in arrays.items()}
    margin = (values["chosen"] - values["ref_chosen"]) - (values["rejected"] - values["ref_rejected"])
    beta = jnp.asarray(beta, dtype)
    if kind == "ipo":
        return jnp.square(margin - 1.0 / (2.0 * beta))
    s = jnp.asarray(label_smoothing, dtype)
    return -(1.0 - s) * jax.nn.log_sigmoid(beta * margin) - s * jax.nn.log_sigmoid(-beta * margin)
